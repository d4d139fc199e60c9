"""A model that came with an earlier version: its folder under another name, its weights alone, what is said without."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ssamba
from ssamba.cli import main
from ssamba.models.config import Config
from ssamba.models.pretrained.convert import convert
from ssamba.models.pretrained.describe import describe
from ssamba.models.pretrained.model_dir import read_config, save_model
from ssamba.models.pretrained.weights import earlier
from ssamba.utils.errors import CheckpointError
from ssamba.utils.files import sha256_of

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Path(__file__).parent / "tiny-0.1.json"
"""``config.json`` of the tiny of version 0.2.0, as it was in the package."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder tiny-0.1: the configuration of that model, and random weights in its form, in the working directory."""
    monkeypatch.chdir(tmp_path)
    config = Config.from_dict(dict(earlier.TINY_0_1.config))
    model = ssamba.SSAMBA(config, heads=True, generator=torch.Generator().manual_seed(0))
    save_model(tmp_path / "run", model)
    convert(tmp_path / "run", tmp_path / "tiny-0.1", half=True)
    shutil.copy(CONFIG, tmp_path / "tiny-0.1" / "config.json")
    return tmp_path / "tiny-0.1"


def known(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these weights stand for those of the earlier model."""
    found = dataclasses.replace(earlier.TINY_0_1, size=weights.stat().st_size, sha256=sha256_of(weights))
    monkeypatch.setattr(earlier, "EARLIER", {found.name: found})


def test_the_configuration_is_that_of_its_folder(folder: Path) -> None:
    description = read_config(folder)
    assert description.config == Config.from_dict(dict(earlier.TINY_0_1.config))
    assert description.heads
    assert (description.config.decay, description.config.scan, description.config.directions) == ("free", "both", 2)


def test_its_folder_loads_under_any_name(folder: Path) -> None:
    sound = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    expected = ssamba.load(folder, "cpu").embed(sound, 16000).clip
    assert ssamba.load("tiny-0.1", "cpu", heads=True).source == "tiny-0.1"
    folder.rename(folder.parent / "old.safetensors")
    assert torch.equal(torch.as_tensor(ssamba.load("old.safetensors", "cpu").embed(sound, 16000).clip), expected)


@pytest.mark.parametrize("name", ["tiny-0.1.safetensors", "tiny.old", "kept"])
def test_its_weights_alone_load(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = ssamba.load(folder, "cpu", heads=True)
    shutil.copy(folder / "model.safetensors", name)
    known(Path(name), monkeypatch)
    model = ssamba.load(name, "cpu", heads=True)
    assert model.config == expected.config
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.state_dict().items())
    facts = describe(name)
    assert facts["kind"] == "weights of tiny-0.1"
    assert "assumed" not in facts
    assert facts["parameters"] == describe(folder)["parameters"]
    convert(name, Path("made"))
    assert read_config(Path("made")) == read_config(folder)


def test_other_weights_alone_do_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(folder / "model.safetensors", "kept.safetensors")
    known(Path("kept.safetensors"), monkeypatch)
    content = bytearray(Path("kept.safetensors").read_bytes())
    content[-1] ^= 1
    Path("kept.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="weights alone do not make a model"):
        ssamba.load("kept.safetensors", "cpu")


def test_without_it_the_line_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["info", "tiny-0.1"]) == 2
    assert capsys.readouterr().err == (
        "ssamba: error: tiny-0.1: no such file or directory; it is the model of ssamba 0.2.0: docs/models/tiny.md says "
        "how to get its folder\n"
    )
