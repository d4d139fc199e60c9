"""``ssamba fit`` on the command line, and every command that takes what it leaves."""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
from pathlib import Path

import layout_trees as trees
import numpy as np
import pytest
import torch

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.cli.main import main
from ssamba.inference.model import make_encoder
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(folder, make_encoder(Config(width=16, depth=2, frames=32, state_size=4)))
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.custom_folders(tmp_path_factory.mktemp("data") / "sounds")


@pytest.fixture(scope="module")
def run(sounds: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mine"
    assert fit("--data", sounds, "--from", source, "--out", out) == 0
    return out


def fit(*words: object) -> int:
    return main(["fit", *map(str, words), "--device", "cpu"])


def test_it_tells_choice_result_and_next_command(
    sounds: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", sounds, "--from", source, "--out", tmp_path / "run")
    assert fit(*words) == 0
    out, err = capsys.readouterr()
    notes = err.splitlines()
    assert notes[0] == "ssamba: note: no splits given: cross-validated in 5 folds, divided by class (seed 0)"
    assert notes[1].endswith("chosen for 30 clips of 3 classes: logistic regression, C by the loss of held-out clips,")
    assert notes[2].endswith("  on 256 values of the last layer (rows) of 32 frames, stride 16")
    assert re.fullmatch(r"ssamba: note: expected: 0\.8 GB of memory, \d+ s \(from passes made now\)", notes[3])
    lines = out.splitlines()
    assert lines[0].startswith("fit: accuracy ")
    assert " of 30, " in lines[0]
    assert lines[1] == f"{tmp_path}/run/results.md has every fold, {tmp_path}/run the model, fitted on all clips"
    assert lines[2] == f"next: ssamba predict FILES --model {tmp_path}/run"
    assert fit(*words) == 0  # finished: the result again
    assert capsys.readouterr().out == out


def test_predict_info_and_embed_take_the_run(
    run: Path, sounds: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(sounds), "--model", str(run), "--out", str(tmp_path / "x.csv"), "--top", "1"]) == 0
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["class"] == Path(row["path"]).parent.name for row in rows) >= 27  # it was fitted on these
    capsys.readouterr()
    assert main(["info", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "3 classes, fit" in shown
    assert "C with the lowest held-out loss" in shown
    clip = str(next(sounds.rglob("*.wav")))
    found = []
    for name, model in (("run", run), ("source", source)):
        assert main(["embed", clip, "--model", str(model), "--out", str(tmp_path / f"{name}.npz")]) == 0
        found.append(np.load(tmp_path / f"{name}.npz")["embedding"])
    np.testing.assert_array_equal(found[0], found[1])


def test_onnx_gives_the_classifiers_logits(run: Path, sounds: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(run), str(tmp_path / "x.onnx"), "--output", "logits"]) == 0
    audio = read_audio(next(sounds.rglob("*.wav")))
    (logits,) = onnxruntime.InferenceSession(tmp_path / "x.onnx").run(None, {"waveform": audio[None]})
    (expected,) = ssamba.load(run, device="cpu").predict(audio)
    assert (torch.from_numpy(logits).softmax(dim=1) - expected.scores).abs().max() < 1e-4


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_transformers_and_push_take_the_run(run: Path, sounds: Path, tmp_path: Path) -> None:
    import ssamba.hf
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    ssamba.hf.register()
    words = ["push", "me/mine", "--model", str(run), "--folder", str(tmp_path / "hub"), "--dry-run"]
    assert main(words) == 0
    audio = read_audio(next(sounds.rglob("*.wav")))
    (expected,) = ssamba.load(run, device="cpu").predict(audio)
    for folder in (run, tmp_path / "hub"):
        model = AutoModelForAudioClassification.from_pretrained(folder).eval()
        inputs = AutoFeatureExtractor.from_pretrained(folder)(audio, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits.softmax(dim=1)
        assert (scores - expected.scores).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head", "protoypes"], "--head protoypes: choose auto or logistic or prototypes, did you mean 'prototypes'"),
        (["--folds", "1"], "folds: 1, nothing could be trained on"),
        (["--c", "-1"], "c: -1.0, give 0 or more"),
        (["--head", "prototypes", "--c", "1"], "c: goes with --head logistic"),
        (["--layout", "esc-10"], "the data set 'esc-10' is unknown, did you mean 'esc10'"),
        (["--frames", "8"], "frames"),
        (["--from", "nowhere"], "nowhere"),
    ],
)
def test_bad_values_are_one_line(
    words: list[str], message: str, sounds: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", sounds, "--out", tmp_path / "run", *(["--from", source] if "--from" not in words else [])]
    assert fit(*given, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("ssamba: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bad_data_is_one_line(source: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sounds / "kind0", tmp_path / "one" / "kind0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("path,label\nnone.wav,dog\nother.wav,cat\n")
    cases = {
        "one": "1 class only",
        "empty": "no audio",
        "labels.csv": "2 of 2 audio files are missing",
        "no": "no such",
    }
    for name, message in cases.items():
        assert fit("--data", tmp_path / name, "--from", source, "--out", tmp_path / "run") == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_directories_of_other_runs_are_refused(
    run: Path, sounds: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--data", sounds, "--from", source, "--out", source) == 2
    assert "holds a model that is no run of ssamba fit" in capsys.readouterr().err
    assert main(["finetune", "custom", "--data", str(sounds), "--from", str(source), "--out", str(run)]) == 2
    assert "holds a run of another command" in capsys.readouterr().err
    other = tmp_path / "tuned"
    other.mkdir()
    (other / "recipe.yaml").write_text("recipe: {lr: 0.1, layout: custom}\nfrom: tiny\ndata: []\nplan: x\n")
    assert fit("--data", sounds, "--from", source, "--out", other) == 2
    assert "holds a run of another command" in capsys.readouterr().err
    more = tmp_path / "sounds"
    shutil.copytree(sounds, more)
    trees.write_clip(more / "kind0" / "new.wav", 0)
    assert fit("--data", more, "--from", source, "--out", run) == 2
    assert "the data changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [[], ["--events"], ["--model", "copy"]])
def test_outputs_name_files_as_asked(
    shape: list[str], sounds: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative names lead from the output to the recording wherever both are moved together."""
    shape = [str(shutil.copytree(run, tmp_path / "copy")) if word == "copy" else word for word in shape]
    monkeypatch.chdir(sounds)
    out = tmp_path / "found" / "x.csv"
    out.parent.mkdir()
    words = ["predict", "kind0/0.wav", "--model", str(run), *shape, "--out", str(out), "--no-reject", "--device", "cpu"]
    for option, expected in (
        ([], "kind0/0.wav"),
        (["--absolute"], str(sounds / "kind0" / "0.wav")),
        (["--relative"], None),
    ):
        assert main([*words, *option]) == 0
        with open(out, encoding="utf-8", newline="") as file:
            path = next(csv.DictReader(file))["path"]
        if expected is None:
            assert not Path(path).is_absolute()
            assert (out.parent / path).resolve() == (sounds / "kind0" / "0.wav").resolve()
        else:
            assert path == expected


def test_relative_names_need_an_output(sounds: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(sounds / "kind0" / "0.wav"), "--model", str(run), "--device", "cpu", "--relative"]
    assert main(words) == 2
    assert "need an output: give --out as well" in capsys.readouterr().err
    assert main([*words, "--events"]) == 2
    assert "need an output" in capsys.readouterr().err
