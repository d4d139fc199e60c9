"""A model on disk: everything comes back, everything that does not fit is named."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.inference.model import SSAMBA
from ssamba.models.pretrained.model_dir import (
    Description,
    build,
    load_tensors,
    read_config,
    read_model,
    save_model,
)
from ssamba.utils.errors import CheckpointError, ConfigError, SsambaError
from ssamba.utils.tensor_file import write_tensors


@pytest.fixture
def folder(tmp_path: Path, small_model: SSAMBA) -> Path:
    save_model(tmp_path / "model", small_model, {"v.head.bias": torch.arange(3.0)})
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values.pop("digest", None)  # as one who edits the file on purpose
    path.write_text(json.dumps(values | changes))


def change_tensors(folder: Path, **changes: Tensor | None) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    write_tensors(folder / "model.safetensors", tensors)


def test_round_trip(folder: Path, small_model: SSAMBA) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert read_config(folder) == Description(small_model.config, heads=True)
    description, tensors = read_model(folder)
    assert description.config == small_model.config
    expected = small_model.state_dict() | {"extras.v.head.bias": torch.arange(3.0)}
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[k], v) for k, v in expected.items())
    again = build(description, tensors)
    assert all(torch.equal(v, small_model.state_dict()[k]) for k, v in again.state_dict().items())
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())


def test_heads_may_be_left_out(folder: Path, small_model: SSAMBA, tmp_path: Path) -> None:
    description, tensors = read_model(folder)
    bare = build(dataclasses.replace(description, heads=False), tensors)
    assert bare.heads is None
    save_model(tmp_path / "bare", bare)
    assert read_config(tmp_path / "bare") == Description(small_model.config)
    assert not any(k.startswith("heads.") for k in read_model(tmp_path / "bare")[1])


def test_weights_of_lower_precision_are_widened(folder: Path, small_model: SSAMBA) -> None:
    description, tensors = read_model(folder)
    model = build(description, {k: v.bfloat16() for k, v in tensors.items()})
    assert model.positions.dtype == torch.float32
    assert torch.equal(model.positions, small_model.positions.bfloat16().float())


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_damaged_weights(folder: Path, content: bytes | None) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file") as caught:
        read_model(folder)
    assert str(path) in str(caught.value)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        read_model(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing"):
        read_model(folder)


def test_weights_that_config_does_not_describe(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["config"]
    change_config(folder, config=config | {"width": 32, "dt_rank": 1})
    with pytest.raises(CheckpointError, match=r"cls_token has shape \(1, 1, 16\), config.json says \(1, 1, 32\)"):
        read_model(folder)
    change_config(folder, config=config | {"depth": 6})
    with pytest.raises(CheckpointError, match=r"missing pairs\.2\.norm_weight_Kd.* and 6 more"):
        read_model(folder)
    change_config(folder, config=config | {"depth": 2})
    with pytest.raises(CheckpointError, match=r"unexpected pairs\.1\."):
        read_model(folder)
    change_config(folder, config=config, heads=False)
    with pytest.raises(CheckpointError, match=r"unexpected heads\.discriminative"):
        read_model(folder)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    change_tensors(folder, cls_token=None, stray=torch.zeros(1), positions=torch.zeros(1, 3, 16))
    with pytest.raises(CheckpointError) as caught:
        read_model(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'model.safetensors'}: ")
    for part in (
        "missing cls_token",
        "unexpected stray",
        "positions has shape (1, 3, 16), config.json says (1, 65, 16)",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"format": 2}, CheckpointError, "format 2 with encoder 'ssamba', this version reads format 1"),
        ({"encoder": "resnet"}, CheckpointError, "encoder 'resnet'"),
        ({"config": [1]}, CheckpointError, "has no 'config' object"),
        ({"config": {"widht": 1}}, ConfigError, "did you mean 'width'"),
        ({"config": {"depth": 3}}, ConfigError, "depth is 3"),
    ],
)
def test_config_of_another_kind(folder: Path, changes: dict[str, Any], error: type[SsambaError], reason: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(error, match=reason) as caught:
        read_model(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_a_full_disk_leaves_the_old_weights(folder: Path, small_model: SSAMBA, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model.safetensors").read_bytes()
    plain = os.replace

    def full(source: Path, target: Path) -> None:
        if target.suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        plain(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SsambaError, match=r"model\.safetensors: cannot be written \(No space left on device\)"):
        save_model(folder, small_model)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_views_and_gradients_can_be_saved(tmp_path: Path) -> None:
    matrix = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    write_tensors(tmp_path / "t.safetensors", {"a": matrix.T, "b": matrix[:, 1]})
    tensors = load_tensors(tmp_path / "t.safetensors")
    assert torch.equal(tensors["a"], matrix.detach().T)
    assert torch.equal(tensors["b"], matrix.detach()[:, 1])
