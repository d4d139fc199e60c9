"""The pipeline and the feature extractor on every kind of recording, without ffmpeg, torchaudio or torchcodec."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_models import auto

import ssamba
from ssamba.utils.errors import AudioError

CLOSE = 1e-5


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ffmpeg, torchaudio nor torchcodec, whatever the machine has."""
    monkeypatch.setenv("PATH", "")
    for name in ("torchaudio", "torchcodec"):
        monkeypatch.setitem(sys.modules, name, None)


def scores(answer: Any) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer}


def expected(folder: Path, audio: Any, rate: int = 16000) -> dict[str, float]:
    prediction = ssamba.load(folder, "cpu").predict(audio, rate)[0]
    return dict(prediction.ranked())


def test_pipeline(hf: Any, classifying: Path, waves: list[np.ndarray], wav: Path) -> None:
    from transformers import pipeline

    pipe = pipeline("audio-classification", model=str(classifying))
    assert type(pipe) is hf.SsambaAudioClassificationPipeline
    for wave in (waves[0], waves[3]):  # padded to the grid, and in windows
        assert scores(pipe(wave)) == pytest.approx(expected(classifying, wave), abs=CLOSE)
    stereo, rate = soundfile.read(wav, dtype="float32")
    mono = stereo.mean(axis=1)
    wanted = expected(classifying, mono, rate)
    given = [str(wav), wav, wav.read_bytes(), {"array": mono, "sampling_rate": rate}]
    given += [{"raw": mono, "sampling_rate": rate}, {"bytes": wav.read_bytes(), "path": "any.wav"}]
    given += [{"bytes": None, "path": str(wav)}]
    for audio in given:
        assert scores(pipe(audio)) == pytest.approx(wanted, abs=CLOSE)
    both = pipe([waves[0], str(wav), waves[3]], batch_size=3, top_k=2)
    assert [len(answer) for answer in both] == [2, 2, 2]
    for answer, audio in zip(both, (waves[0], mono, waves[3]), strict=True):
        whole = expected(classifying, audio, rate if audio is mono else 16000)
        assert scores(answer) == pytest.approx({k: whole[k] for k in scores(answer)}, abs=CLOSE)


def test_the_command_gives_the_same_scores(
    hf: Any, classifying: Path, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from transformers import pipeline

    from ssamba.cli import main

    out = tmp_path / "p.json"
    assert main.main(["predict", str(wav), "--model", str(classifying), "--out", str(out), "--device", "cpu"]) == 0
    text = json.dumps(json.loads(out.read_text()))
    for entry in pipeline("audio-classification", model=str(classifying))(str(wav)):
        found = next(e for e in walk(json.loads(text)) if e.get("class", e.get("label")) == entry["label"])
        assert found["score"] == pytest.approx(entry["score"], abs=1e-4)


def walk(value: Any) -> Any:
    """All objects in a JSON value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    if isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def test_pipeline_whole_and_precision(hf: Any, classifying: Path, waves: list[np.ndarray]) -> None:
    from transformers import pipeline

    whole = pipeline("audio-classification", model=str(classifying), model_kwargs={"whole": True})
    model = ssamba.load(classifying, "cpu")
    features = ssamba.features(waves[3], mean=model.config.mean, std=model.config.std)
    columns = -(-(features.shape[1] - 16) // 16) + 1
    features = ssamba.features(waves[3], target_length=16 * columns, mean=model.config.mean, std=model.config.std)
    with torch.no_grad():
        wanted = model.classify(features).softmax(-1)[0]
    found = scores(whole(waves[3]))
    assert [found[c] for c in model.classifier.task.classes] == pytest.approx(wanted.tolist(), abs=CLOSE)
    half = pipeline("audio-classification", model=str(classifying), dtype=torch.bfloat16)
    assert scores(half(waves[3])) == pytest.approx(expected(classifying, waves[3]), abs=0.05)


def test_another_model_goes_the_way_of_transformers(hf: Any, waves: list[np.ndarray]) -> None:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline

    config = ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64)
    extractor = ASTFeatureExtractor(max_length=64)
    pipe = pipeline("audio-classification", model=ASTForAudioClassification(config), feature_extractor=extractor)
    assert len(pipe(waves[1])) == 2
    with pytest.raises(Exception, match="ffmpeg"):
        pipe(b"no audio")


def test_extractor(hf: Any, folder: Path, waves: list[np.ndarray], wav: Path, tmp_path: Path) -> None:
    model, extractor = ssamba.load(folder, "cpu"), auto(folder, "AutoFeatureExtractor")
    assert type(extractor) is hf.SsambaFeatureExtractor
    batch = extractor(waves, return_tensors="pt")
    for i, wave in enumerate(waves):
        alone = ssamba.features(wave, mean=model.config.mean, std=model.config.std)[0]
        n = len(alone)
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (batch["attention_mask"].shape[1] - n)
        torch.testing.assert_close(batch["input_values"][i, :n], alone, atol=CLOSE, rtol=0)
        assert (batch["input_values"][i, n:] - -model.config.mean / (2 * model.config.std)).abs().max() < 1e-6
    assert batch["input_values"].shape[1] % 16 == 0
    assert extractor(waves[0], padding=False)["input_values"][0].shape == (28, 128)
    cut = extractor(waves, max_length=40, truncation=True, return_tensors="np")
    assert cut["input_values"].shape == (4, 48, 128)
    assert cut["attention_mask"].sum(1).tolist() == [28, 40, 40, 40]
    assert extractor(waves, padding="max_length", max_length=64, truncation=True)["input_values"][0].shape == (64, 128)
    assert "attention_mask" not in extractor(waves, return_attention_mask=False)
    items = [extractor(w, padding=False) for w in waves]
    padded = extractor.pad([{k: v[0] for k, v in item.items()} for item in items], return_tensors="pt")
    for name in padded:
        assert torch.equal(padded[name], batch[name][:, : padded[name].shape[1]])
    for again in (waves[0].tolist(), torch.from_numpy(waves[0]), np.stack([waves[0]]), [waves[0]]):
        assert torch.equal(extractor(again, return_tensors="pt")["input_values"][0, :28], batch["input_values"][0, :28])
    file = extractor(str(wav), return_tensors="pt")["input_values"]
    stereo, rate = soundfile.read(wav, dtype="float32")
    array = extractor(stereo.mean(axis=1), sampling_rate=rate, return_tensors="pt")["input_values"]
    torch.testing.assert_close(file, array, atol=1e-4, rtol=0)
    extractor.save_pretrained(tmp_path / "e")
    assert auto(tmp_path / "e", "AutoFeatureExtractor").to_dict() == extractor.to_dict()


def test_rows_of_datasets(hf: Any, folder: Path, wav: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    extractor = auto(folder, "AutoFeatureExtractor")
    rows = datasets.Dataset.from_dict({"audio": [str(wav)] * 3, "label": [0, 1, 2]})
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    wanted = extractor(str(wav), return_tensors="pt")["input_values"]
    assert torch.equal(extractor([r["audio"] for r in rows], return_tensors="pt")["input_values"][:1], wanted)
    embedded = datasets.Dataset.from_dict({"audio": [{"bytes": wav.read_bytes(), "path": None}], "label": [0]})
    embedded = embedded.cast_column("audio", datasets.Audio(decode=False))
    assert embedded[0]["audio"]["bytes"]
    done = embedded.map(lambda b: extractor(b["audio"]), batched=True, remove_columns=["audio"])
    torch.testing.assert_close(torch.tensor(done[0]["input_values"]), wanted[0])


def test_bad_recordings_are_refused_in_one_line(hf: Any, folder: Path, tmp_path: Path) -> None:
    extractor = auto(folder, "AutoFeatureExtractor")
    (tmp_path / "no.wav").write_bytes(b"no audio")
    for audio, message in [
        ("missing.wav", "missing.wav: no such file"),
        (tmp_path / "no.wav", "no.wav: is not audio"),
        (b"no audio", "the given bytes: is not audio"),
        (np.zeros(399, np.float32), "399 samples at 16 kHz"),
        (np.full(16000, np.nan, np.float32), "NaN"),
        (np.zeros((2, 3, 4), np.float32), "shape"),
        ([], "an empty list"),
        ({"array": np.zeros(16000)}, "'array' needs 'sampling_rate'"),
        ({"samples": 3}, "give 'array' and 'sampling_rate', or 'bytes' or 'path'"),
        (["missing.wav", np.zeros(16000)], "missing.wav: no such file"),
    ]:
        with pytest.raises(AudioError, match=message) as caught:
            extractor(audio)
        assert "\n" not in str(caught.value)
