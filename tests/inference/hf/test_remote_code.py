"""A saved folder in a process that has torch and transformers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_models import auto

import ssamba
from ssamba.inference.model import make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.load import locate
from ssamba.models.pretrained.model_dir import save_model

CLOSE = 1e-4
BLOCKED = ("ssamba", "numba", "soundfile", "soxr", "llvmlite")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All installed packages but those of ``BLOCKED``, linked into a folder."""
    folder = tmp_path_factory.mktemp("packages")
    for entry in Path(torch.__file__).parents[1].iterdir():
        name = entry.name.lower().removeprefix("_").removeprefix("_editable___")
        if not name.startswith(BLOCKED) and entry.suffix != ".pth" and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    return folder


def fresh(code: str, tmp_path: Path, packages: Path) -> str:
    """What code prints in a new process, offline, without ssamba and its decoders."""
    before = f"""
        import importlib.util
        assert not any(importlib.util.find_spec(name) for name in {BLOCKED!r})
        import sys, torch, numpy as np, json
        from pathlib import Path
        from safetensors.torch import load_file, save_file
        from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, AutoFeatureExtractor, pipeline
    """
    text = textwrap.dedent(before) + textwrap.dedent(code)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(packages)
    command = [sys.executable, "-S", "-c", text]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def audio(tmp_path: Path, waves: list[np.ndarray]) -> Path:
    np.savez(tmp_path / "waves.npz", *waves)
    return tmp_path / "waves.npz"


def test_tokens_without_ssamba(
    hf: Any, folder: Path, ssast_folder: Path, audio: Path, waves: list[np.ndarray], tmp_path: Path, packages: Path
) -> None:
    one = Config(width=16, depth=2, frames=128, state_size=4, directions=1, residual_scale=1, stride_time=10)
    save_model(tmp_path / "one", make_encoder(one))
    forms = Config(width=16, depth=2, frames=128, state_size=4, decay="tied", scan="alternating")
    save_model(tmp_path / "forms", make_encoder(forms))
    sources = {"folder": folder, "ssast": ssast_folder, "tiny": locate("tiny")}
    sources |= {name: tmp_path / name for name in ("one", "forms")}
    for name, source in sources.items():
        auto(source).save_pretrained(tmp_path / "saved" / name)
    code = f"""
        names = {sorted(sources)!r}
        waves = list(np.load({str(audio)!r}).values())
        for name in names:
            folder = {str(tmp_path / "saved")!r} + "/" + name
            model = AutoModel.from_pretrained(folder, trust_remote_code=True)
            assert not any(m.split(".")[0] == "ssamba" for m in sys.modules)
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
            with torch.no_grad():
                out = model(**extractor(waves, return_tensors="pt"), output_hidden_states=True)
            save_file({{"tokens": out[0], "pooled": out[1], "layer": out.hidden_states[1].clone()}}, name + ".out")
    """
    fresh(code, tmp_path, packages)
    for name, source in sources.items():
        found, reference = load_file(tmp_path / f"{name}.out"), ssamba.load(source, "cpu")
        with torch.no_grad():
            batch = auto(source, "AutoFeatureExtractor")(waves, return_tensors="pt")
            expected = auto(source)(**batch, output_hidden_states=True)
        size = expected.last_hidden_state.abs().max()
        assert (found["tokens"] - expected.last_hidden_state).abs().max() < CLOSE * size, name
        layer = expected.hidden_states[1]
        assert (found["layer"] - layer).abs().max() < CLOSE * layer.abs().max(), name
        for pooled, wave in zip(found["pooled"], waves, strict=True):
            assert (pooled - reference.embed(wave).clip[0]).abs().max() < CLOSE * size, name


@pytest.mark.parametrize(
    "pooling", ["mean", pytest.param("rows", marks=pytest.mark.slow), pytest.param("cls", marks=pytest.mark.slow)]
)
def test_classification_training_and_saving_without_ssamba(
    hf: Any, small_config: Config, audio: Path, waves: list[np.ndarray], tmp_path: Path, pooling: str, packages: Path
) -> None:
    task = Classification(("cat", "dog", "rain"), pooling=pooling)
    save_model(tmp_path / "fine", make_encoder(small_config, classification=task))
    auto(tmp_path / "fine", "AutoModelForAudioClassification").save_pretrained(tmp_path / "saved")
    code = f"""
        folder = {str(tmp_path / "saved")!r}
        waves = list(np.load({str(audio)!r}).values())
        pipe = pipeline("audio-classification", model=folder, trust_remote_code=True)
        Path("scores.json").write_text(json.dumps([pipe(w) for w in waves]))
        torch.manual_seed(0)
        model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True, num_labels=4,
                                                                ignore_mismatched_sizes=True)
        x = pipe.feature_extractor(waves[:2], return_tensors="pt")
        gradients = []
        for checkpointing in (False, True):
            model.train().zero_grad()
            if checkpointing:
                model.gradient_checkpointing_enable()
            torch.manual_seed(1)
            loss = model(**x, labels=torch.tensor([3, 1])).loss
            loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert all(torch.equal(a, b) for a, b in zip(*gradients))
        assert len(gradients[0]) >= 20 and bool(loss.isfinite())
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.01 * (p.grad if p.grad is not None else 0))
        model.eval().save_pretrained("again")
        pipe.feature_extractor.save_pretrained("again")
        back = AutoModelForAudioClassification.from_pretrained("again", trust_remote_code=True)
        assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values()))
        with torch.no_grad():
            save_file({{"logits": model(**x).logits}}, "logits")
        AutoFeatureExtractor.from_pretrained("again", trust_remote_code=True)
    """
    fresh(code, tmp_path, packages)
    reference = ssamba.load(tmp_path / "fine", "cpu")
    answers = json.loads((tmp_path / "scores.json").read_text())
    for answer, prediction in zip(answers, reference.predict(waves), strict=True):
        expected = pytest.approx(dict(prediction.ranked()), abs=CLOSE)
        assert {e["label"]: e["score"] for e in answer} == expected
    again = ssamba.load(tmp_path / "again", "cpu")  # what it saved is ours, too
    assert again.classifier is not None
    assert again.classifier.task.classes == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    logits = torch.stack([p.scores[0] for p in again.predict(waves[:2])])
    assert (load_file(tmp_path / "logits")["logits"].softmax(-1) - logits).abs().max() < CLOSE


def test_refused_without_trust(hf: Any, folder: Path, tmp_path: Path, packages: Path) -> None:
    auto(folder).save_pretrained(tmp_path / "saved")
    auto(folder).save_pretrained(tmp_path / "bare", remote_code=False)
    assert sorted(p.name for p in (tmp_path / "bare").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert "auto_map" not in json.loads((tmp_path / "bare" / "config.json").read_text())
    code = """
        for name in ("saved", "bare"):
            for kind in (AutoConfig, AutoModel, AutoFeatureExtractor):
                for trust in (None, False):
                    try:
                        kind.from_pretrained(name, trust_remote_code=trust)
                        print("loaded")
                    except ValueError as error:
                        print("", "custom code" in str(error))
        assert not any("ssamba" in m for m in sys.modules)
    """
    lines = fresh(code, tmp_path, packages).splitlines()
    found = [line.rpartition(" ")[2] for line in lines if line.endswith(("True", "False", "loaded"))]
    assert found == ["True"] * 6 + ["False"] * 6


@pytest.mark.slow
def test_bad_input_without_ssamba(hf: Any, folder: Path, tmp_path: Path, packages: Path) -> None:
    auto(folder).save_pretrained(tmp_path / "saved")
    code = """
        extractor = AutoFeatureExtractor.from_pretrained("saved", trust_remote_code=True)
        for audio, rate in [(np.zeros(300), None), (np.zeros(16000), 44100), ("x.wav", None), ([], None),
                            (np.full(16000, np.nan), None), ({"array": np.zeros(16000)}, None)]:
            try:
                extractor(audio, sampling_rate=rate)
                print("taken")
            except ValueError as error:
                print(error)
    """
    lines = fresh(code, tmp_path, packages).splitlines()
    assert len(lines) == 6
    parts = ["25 ms", "pip install soxr", "pip install soundfile", "empty", "NaN", "sampling_rate"]
    for line, part in zip(lines, parts, strict=True):
        assert part in line


def test_with_ssamba_the_fast_classes_are_taken(hf: Any, folder: Path, tmp_path: Path) -> None:
    auto(folder).save_pretrained(tmp_path / "saved")
    assert type(auto(tmp_path / "saved")) is hf.SsambaModel
    assert type(auto(tmp_path / "saved", "AutoFeatureExtractor")) is hf.SsambaFeatureExtractor
