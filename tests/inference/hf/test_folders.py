"""One folder serves ssamba and transformers: what either writes the other reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import CLASSES
from safetensors.torch import load_file
from test_models import auto

import ssamba
from ssamba.cli import main
from ssamba.models.pretrained import hub
from ssamba.models.pretrained.convert import convert
from ssamba.models.pretrained.load import locate
from ssamba.models.pretrained.model_dir import read_config, read_model
from ssamba.utils.errors import CheckpointError, ConfigError

SMALL = ["--workers", "1", "--precision", "fp32", "--device", "cpu"]


def write_tones(folder: Path, classes: int = 3, each: int = 6) -> Path:
    import soundfile

    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / CLASSES[c]).mkdir(parents=True)
        for i in range(each):
            t = np.arange(16000) / 16000
            wave = 0.3 * np.sin(2 * np.pi * 300 * 2**c * t + rng.uniform(0, 6)) + 0.01 * rng.standard_normal(len(t))
            soundfile.write(folder / CLASSES[c] / f"{i}.wav", wave, 16000)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_what_runs_write_is_loaded_by_auto_classes(hf: Any, tmp_path: Path, no_network: None) -> None:
    sounds = write_tones(tmp_path / "sounds")
    pre, fine = tmp_path / "pre", tmp_path / "fine"
    size = "--width 16 --depth 2 --frames 96 --mask 12 --validation-mask 12 --batch 4 --steps 2 --validate-every 2"
    assert main.main(["pretrain", str(sounds), "--out", str(pre), *size.split(), *SMALL]) == 0
    words = ["finetune", "custom", "--data", str(sounds), "--from", str(pre), "--out", str(fine), "--epochs", "1"]
    assert main.main([*words, "--frames", "96", "--batch", "4", *SMALL]) == 0
    assert main.main(["convert", str(pre), str(tmp_path / "half"), "--half"]) == 0
    assert main.main(["convert", str(pre), str(tmp_path / "official.pth")]) == 0
    assert main.main(["convert", str(tmp_path / "official.pth"), str(tmp_path / "back")]) == 0
    x = torch.randn(2, 96, 128, generator=torch.Generator().manual_seed(0))
    for folder in (pre, tmp_path / "half", tmp_path / "back", fine, fine / "fold-1"):
        model, reference = auto(folder), ssamba.load(folder, "cpu")
        assert type(model) is hf.SsambaModel
        with torch.no_grad():
            assert torch.equal(model(x).last_hidden_state, reference.encode(x))
        extractor = auto(folder, "AutoFeatureExtractor")
        assert (extractor.mean, extractor.std) == (reference.config.mean, reference.config.std)
    assert type(auto(pre, "AutoModelForPreTraining")) is hf.SsambaForPreTraining
    found, reference = auto(fine, "AutoModelForAudioClassification"), ssamba.load(fine, "cpu")
    assert list(found.config.id2label.values()) == list(reference.classifier.task.classes)
    with torch.no_grad():
        assert torch.equal(found(x).logits, reference.classify(x))
    kinds = {f: json.loads((f / "config.json").read_text())["architectures"] for f in (pre, fine)}
    assert kinds == {pre: ["SsambaForPreTraining"], fine: ["SsambaForAudioClassification"]}


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForPreTraining"])
@pytest.mark.parametrize("source", ["folder", "ssast_folder"])
def test_there_and_back(hf: Any, request: pytest.FixtureRequest, tmp_path: Path, source: str, kind: str) -> None:
    folder: Path = request.getfixturevalue(source)
    auto(folder, kind).save_pretrained(tmp_path / "saved")
    heads = kind == "AutoModelForPreTraining"
    assert read_config(tmp_path / "saved").heads == heads
    again, first = ssamba.load(tmp_path / "saved", "cpu", heads=heads), ssamba.load(folder, "cpu", heads=heads)
    assert again.config == first.config
    assert_equal(again.state_dict(), first.state_dict())
    assert_equal(load_file(tmp_path / "saved" / "model.safetensors"), first.state_dict())
    assert_equal(auto(tmp_path / "saved", kind).state_dict(), auto(folder, kind).state_dict())
    assert main.main(["info", str(tmp_path / "saved")]) == 0
    auto(folder, kind).save_pretrained(tmp_path / "shards", max_shard_size="1KB")  # all the same one file
    assert_equal(load_file(tmp_path / "shards" / "model.safetensors"), first.state_dict())
    convert(tmp_path / "saved", tmp_path / "half", half=True)


def test_a_classifier_there_and_back(hf: Any, classifying: Path, tmp_path: Path, waves: list[np.ndarray]) -> None:
    model = auto(classifying, "AutoModelForAudioClassification")
    model.save_pretrained(tmp_path / "saved")
    again = ssamba.load(tmp_path / "saved", "cpu")
    assert again.classifier is not None
    assert again.classifier.task.classes == CLASSES
    assert_equal(again.state_dict(), ssamba.load(classifying, "cpu").state_dict())
    torch.testing.assert_close(again.predict(waves)[3].scores, ssamba.load(classifying, "cpu").predict(waves)[3].scores)
    auto(classifying).save_pretrained(tmp_path / "bare")  # without its classifier
    assert ssamba.load(tmp_path / "bare", "cpu").classifier is None
    other = auto(classifying, "AutoModelForAudioClassification", num_labels=5, ignore_mismatched_sizes=True)
    assert other.encoder.classifier.linear.out_features == 5
    assert other.encoder.classifier.linear.weight.isfinite().all()
    other.save_pretrained(tmp_path / "five")
    assert ssamba.load(tmp_path / "five", "cpu").classifier.task.classes == tuple(f"LABEL_{i}" for i in range(5))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_directories_of_before(hf: Any, classifying: Path, folder: Path, waves: list[np.ndarray]) -> None:
    """Without the keys of transformers, the classes load them by name; ssamba reads both."""
    for path in (classifying, folder):
        values = json.loads((path / "config.json").read_text())
        for key in ("digest", "model_type", "architectures", "dtype"):
            del values[key]
        (path / "config.json").write_text(json.dumps(values))
        (path / "preprocessor_config.json").unlink()
        ssamba.load(path, "cpu")
    model = hf.SsambaForAudioClassification.from_pretrained(classifying)
    assert tuple(model.config.id2label.values()) == CLASSES
    assert hf.SsambaModel.from_pretrained(folder).dtype == torch.float32
    model.save_pretrained(classifying)
    assert auto(classifying, "AutoModelForAudioClassification").config.id2label == model.config.id2label
    assert auto(classifying, "AutoFeatureExtractor").feature_size == 128


def test_an_official_file_and_the_packaged_model(hf: Any, official_path: Path, tmp_path: Path) -> None:
    for source in (official_path, "tiny", None):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        files = hf.export(source, folder, "me/model", "cc-by-4.0")
        assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} < {f.name for f in files}
        x = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(auto(folder)(x).last_hidden_state, ssamba.load(source, "cpu").encode(x))
    assert read_model(folder)[1]["positions"].dtype == torch.float16
    with pytest.raises(ConfigError, match="exists already and is no empty folder"):
        hf.export("tiny", folder)
    with pytest.raises(CheckpointError, match="no such file"):
        hf.export("nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_shipped_folder_says_what_save_config_says(tmp_path: Path) -> None:
    from ssamba.models.pretrained.model_dir import save_config

    save_config(tmp_path, read_config(locate("tiny")))
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / name).read_bytes() == (locate("tiny") / name).read_bytes()
    assert hub.OFFICIAL  # names that need a download are not looked for here


def test_damaged_folders(hf: Any, folder: Path, tmp_path: Path) -> None:
    def broken(change: Any) -> Path:
        path = tmp_path / f"broken{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, path)
        values = json.loads((path / "config.json").read_text())
        change(values)
        values.pop("digest", None)
        (path / "config.json").write_text(json.dumps(values))
        return path

    for change, message in [
        (lambda v: v["config"].update(width="wide"), "width is 'wide'"),
        (lambda v: v["config"].update(wide=3), "unknown value 'wide'"),
        (lambda v: v.update(encoder="other"), "encoder is 'other'"),
        (lambda v: v.update(classification={"classes": ["a", "a"]}), "'a' is there twice"),
        (lambda v: v.update(classification=["a"]), "'classification' is damaged"),
    ]:
        kind = "AutoModelForAudioClassification" if "class" in message or "twice" in message else "AutoModel"
        with pytest.raises(ConfigError, match=message) as caught:
            auto(broken(change), kind)
        assert "\n" not in str(caught.value)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        auto(folder).save_pretrained(file)


def test_the_digest_is_checked_and_never_carried_on(hf: Any, classifying: Path, tmp_path: Path) -> None:
    """What transformers loads and saves again has no digest, whatever changed in between."""
    from transformers import AutoConfig

    from ssamba.models.pretrained.model_dir import save_model

    config = AutoConfig.from_pretrained(classifying)
    assert not hasattr(config, "digest")
    config.id2label = {0: "a", 1: "b", 2: "c"}
    config.mean = -5.0
    config.save_pretrained(tmp_path / "saved")
    assert "digest" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert read_config(tmp_path / "saved").config.mean == -5.0
    model = auto(classifying, "AutoModelForAudioClassification")
    model.save_pretrained(tmp_path / "model")
    assert "digest" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert ssamba.load(tmp_path / "model", "cpu").classifier is not None
    hf.export(classifying, tmp_path / "exported")
    assert "digest" in json.loads((tmp_path / "exported" / "config.json").read_text())
    assert auto(tmp_path / "exported").config.width == 16
    save_model(tmp_path / "again", ssamba.load(tmp_path / "model", "cpu"))
    path = classifying / "config.json"
    path.write_text(path.read_text().replace("4.5689974", "4.6"))
    for load in (AutoConfig.from_pretrained, hf.SsambaModel.from_pretrained, hf.SsambaConfig.from_pretrained):
        with pytest.raises(CheckpointError, match='remove its line "digest"'):
            load(classifying)


@pytest.mark.parametrize("kind", ["NaN", "1e30", "bool", "flipped bit", "pipe"])
def test_damaged_weights(hf: Any, folder: Path, kind: str) -> None:
    from ssamba.models.pretrained.model_dir import load_tensors
    from ssamba.utils.tensor_file import write_tensors

    path = folder / "model.safetensors"
    tensors = load_tensors(path)
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "flipped bit":
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        bad = tensors["norm.bias"] > 0 if kind == "bool" else torch.full_like(tensors["norm.bias"], float(kind))
        write_tensors(path, tensors | {"norm.bias": bad})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ") as caught:
        hf.SsambaModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_two_front_ends_in_one_folder(hf: Any, folder: Path) -> None:
    """ssamba reads that of config.json; who takes the other is warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf.SsambaFeatureExtractor.from_pretrained(folder)
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"mean": -6.5}))
    with pytest.warns(UserWarning, match=r"has mean -6\.5, the model -4\.26"):
        hf.SsambaFeatureExtractor.from_pretrained(folder)
    assert ssamba.load(folder, "cpu").config.mean == pytest.approx(-4.2677393)


def test_importing_ssamba_imports_no_transformers() -> None:
    code = """
        import sys, ssamba
        ssamba.hf, dir(ssamba.hf), ssamba.load, ssamba.hf.export
        print(*[m for m in ("transformers", "huggingface_hub", "accelerate") if m in sys.modules], ".")
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == ".\n"
