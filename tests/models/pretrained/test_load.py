"""``ssamba.load``: every kind of weights by one call, every problem in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ssamba
from ssamba.inference.model import SSAMBA
from ssamba.models.pretrained.load import read_model_source
from ssamba.models.pretrained.model_dir import save_model
from ssamba.models.pretrained.official import from_official
from ssamba.utils.device import pick_device
from ssamba.utils.errors import CheckpointError, ConfigError, SsambaError


@pytest.fixture
def folder(tmp_path: Path, small_model: SSAMBA) -> Path:
    save_model(tmp_path / "run", small_model)
    return tmp_path / "run"


def same(model: SSAMBA, tensors: dict[str, Tensor]) -> bool:
    state = model.state_dict()
    return set(state) == set(tensors) and all(torch.equal(state[k], v) for k, v in tensors.items())


def test_official_file(official_path: Path, official: dict[str, Tensor]) -> None:
    _, tensors = from_official(official)
    model = ssamba.load(official_path, device="cpu", heads=True)
    assert same(model, tensors)
    assert not model.training
    bare = ssamba.load(str(official_path), device="cpu")
    assert bare.heads is None
    assert same(bare, {k: v for k, v in tensors.items() if not k.startswith("heads.")})


def test_directory(folder: Path, small_model: SSAMBA) -> None:
    model = ssamba.load(folder, device="cpu", heads=True)
    assert model.config == small_model.config
    assert same(model, small_model.state_dict())
    assert not model.training
    assert ssamba.load(folder, device="cpu").heads is None


def test_extras_of_official_files_are_kept_aside(official_path: Path, tmp_path: Path) -> None:
    _, tensors = read_model_source(official_path)
    extras = {k: v for k, v in tensors.items() if k.startswith("extras.")}
    assert set(extras) == {"extras.v.head.weight", "extras.v.head.bias", "extras.p_input_fdim", "extras.p_input_tdim"}
    model = ssamba.load(official_path, device="cpu", heads=True)
    save_model(tmp_path, model, {k.removeprefix("extras."): v for k, v in extras.items()})
    assert same(ssamba.load(tmp_path, device="cpu", heads=True), model.state_dict())
    _, again = read_model_source(tmp_path)
    assert all(torch.equal(again[k], v) for k, v in tensors.items())


def test_another_grid(folder: Path, small_model: SSAMBA) -> None:
    model = ssamba.load(folder, device="cpu", stride=10, frames=300)
    assert model.config.grid == (12, 29)
    assert torch.equal(model.positions, small_model.with_grid(10, 300).positions)
    assert ssamba.load(folder, device="cpu", frames=64).config.grid == (8, 4)
    with pytest.raises(ConfigError, match="stride_frequency is 0"):
        ssamba.load(folder, device="cpu", stride=0)


def test_heads_that_are_not_there(tmp_path: Path, small_config: ssamba.Config) -> None:
    save_model(tmp_path, SSAMBA(small_config))
    with pytest.raises(CheckpointError, match="has no pretraining heads: load it without heads=True") as caught:
        ssamba.load(tmp_path, device="cpu", heads=True)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_sources_that_are_none(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for source, reason in (
        (tmp_path / "none", "no such file or directory"),
        ("x" * 5000, "no such file or directory"),
        (tmp_path / "empty", r"holds no config\.json"),
        (tmp_path / "notes.txt", "not a plain file of tensors"),
        (folder / "model.safetensors", "give the directory"),
    ):
        with pytest.raises(SsambaError, match=reason) as caught:
            ssamba.load(source, device="cpu")
        assert str(source)[:400] in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "mps", "meta", "cuda:x", ""])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(ConfigError, match="give auto, cpu or cuda"):
        pick_device(device)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def visible(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    visible(0)
    assert pick_device("auto") == pick_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device is visible"):
        pick_device("cuda")
    visible(2)
    assert pick_device("auto").type == "cuda"
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="there are 2 CUDA devices"):
        pick_device("cuda:2")


def test_the_device_is_checked_before_the_file_is_read(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"device": "gpu"}
    with pytest.raises(ConfigError, match="device 'gpu'"):
        ssamba.load(tmp_path / "none", **arguments)


def test_a_loaded_model_embeds_and_trains(folder: Path) -> None:
    model = ssamba.load(folder, device="cpu", heads=True)
    assert model.embed(torch.zeros(8000)).clip.shape == (1, 16)
    mask = torch.tensor([[1, 5, 9]])
    model.losses(torch.zeros(1, 128, 128), mask)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_weights_in_other_precisions(official_path: Path, rng: torch.Generator) -> None:
    full, auto = (ssamba.load(official_path, "cpu", dtype=d) for d in ("fp32", "auto"))
    assert auto.positions.dtype == full.positions.dtype == torch.float32
    waveform = 0.1 * torch.randn(16000, generator=rng)
    expected = full.embed(waveform).frames
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        model = ssamba.load(official_path, "cpu", dtype=name)
        assert model.positions.dtype == dtype
        found = model.embed(waveform).frames
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 2e-2 * expected.norm()
    with pytest.raises(ConfigError, match="give auto, fp32, bf16, fp16"):
        ssamba.load(official_path, "cpu", dtype="int8")
