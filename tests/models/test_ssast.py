"""The transformer: both forms of attention, stochastic depth, published sizes, frame patches, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssamba.cli.main import main
from ssamba.inference.load import load
from ssamba.inference.model import SSAST
from ssamba.models.config import Config
from ssamba.models.pretrained.convert import convert
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import CheckpointError, ConfigError

SMALL = Config(encoder="ssast", width=32, depth=2, frames=128, attention_heads=2)


@pytest.fixture
def model() -> SSAST:
    return SSAST(SMALL, heads=True)


def test_written_out_attention_is_the_same(model: SSAST, rng: torch.Generator) -> None:
    features = torch.randn(2, 128, 128, generator=rng)
    results = []
    for written_out in (False, True):
        model.write_out_attention(written_out)
        model.zero_grad()
        model.losses(features, torch.arange(20).expand(2, -1))["loss"].backward()
        results.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(("size", "heads"), [("tiny", 3), ("small", 6), ("base", 12)])
def test_published_sizes(size: str, heads: int) -> None:
    config = getattr(Config, size)(encoder="ssast")
    assert (config.depth, config.attention_heads, config.drop_path) == (12, heads, 0.0)
    d = config.width
    block = 12 * d * d + 13 * d
    outside = 256 * d + d + 514 * d + 3 * d + 2 * d
    both_heads = 2 * (d * d + d + 256 * d + 256)
    with torch.device("meta"):
        count = sum(p.numel() for p in SSAST(config, heads=True).parameters())
    assert count == 12 * block + outside + both_heads


def test_stochastic_depth(model: SSAST, rng: torch.Generator) -> None:
    assert model.draw_keep(3, rng) is None
    other = SSAST(SMALL.replace(drop_path=0.5, depth=4), heads=True)
    keep = other.draw_keep(4000, rng)
    assert keep is not None
    assert keep.shape == (8, 4000)
    torch.testing.assert_close(keep.mean(dim=1), torch.ones(8), rtol=0, atol=0.06)
    shares = (keep == 0).float().mean(dim=1)
    torch.testing.assert_close(shares, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]) / 6, rtol=0, atol=0.03)
    features = torch.randn(3, 128, 128, generator=rng)
    none = other.encode_tokens(other.embed_patches(features), torch.zeros(8, 3))
    torch.testing.assert_close(none, other.norm(other.embed_patches(features)))


def test_frame_patches(rng: torch.Generator) -> None:
    model = SSAST(SMALL.replace(patch_frequency=128, patch_time=2, stride_frequency=128, stride_time=2), heads=True)
    assert model.config.grid == (1, 64)
    out = model.losses(torch.randn(2, 128, 128, generator=rng), torch.arange(30).expand(2, -1))
    assert set(out) == {"loss", "nce", "accuracy", "mse"}
    assert model.embed(torch.randn(16000, generator=rng)).frames.shape == (1, 49, 32)


def test_official_file_there_and_back(golden: Path, tmp_path: Path) -> None:
    official = golden / "ssast_official.pth"
    with pytest.raises(CheckpointError, match=r"ssamba convert FILE DIR --attention-heads N"):
        load(official)
    assert main(["convert", str(official), str(tmp_path / "two"), "--attention-heads", "2"]) == 0
    assert load(tmp_path / "two", device="cpu").config.attention_heads == 2
    model = load(official, device="cpu", heads=True, attention_heads=2)
    assert isinstance(model, SSAST)
    wide = SSAST(Config(encoder="ssast", width=64, depth=2), heads=True)
    save_model(tmp_path / "wide", wide)
    lines = convert(tmp_path / "wide", tmp_path / "wide.pth")
    assert "note: the official form does not hold attention_heads 1: give it when the file is read" in lines
    again = load(tmp_path / "wide.pth", device="cpu", heads=True, attention_heads=1)
    assert again.config == wide.config
    assert all(torch.equal(v, wide.state_dict()[k]) for k, v in again.state_dict().items())
    written = torch.load(tmp_path / "wide.pth", weights_only=True)
    assert set(written) == set(torch.load(official, weights_only=True))
    convert(tmp_path / "wide.pth", tmp_path / "back", attention_heads=1)
    for key, value in load_file(tmp_path / "wide" / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "back" / "model.safetensors")[key], value)


def test_official_files_that_do_not_fit(golden: Path, tmp_path: Path) -> None:
    state = torch.load(golden / "ssast_official.pth", weights_only=True)
    for change, reason in (
        ({"module.v.blocks.1.attn.qkv.bias": None}, "missing v.blocks.1.attn.qkv.bias"),
        ({"module.v.more": torch.zeros(1)}, "unexpected v.more"),
        ({"module.v.blocks.0.mlp.fc1.weight": torch.zeros(3, 3)}, "v.blocks.0.mlp.fc1.weight has shape (3, 3)"),
        ({"module.v.pos_embed": torch.zeros(1, 500, 32)}, "do not fit the grid"),
    ):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError) as refused:
            load(tmp_path / "x.pth", attention_heads=2)
        assert reason in str(refused.value)
    with pytest.raises(ConfigError, match="divisor of the width"):
        Config(encoder="ssast", width=32, attention_heads=5)
