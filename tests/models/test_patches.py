"""Cutting into patches, their order, and positions for other grids."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.inference.model import KINDS
from ssamba.models import patches
from ssamba.models.config import Config
from ssamba.models.token_chain import with_positions

GRIDS = [Config(frames=128), Config(frames=48, mel_bins=64, patch_time=4, stride_time=4)]


@pytest.mark.parametrize("config", GRIDS)
def test_unpatchify_reverses_patchify(config: Config, rng: torch.Generator) -> None:
    features = torch.randn(2, config.frames, config.mel_bins, generator=rng)
    cut = patches.patchify(features, config)
    assert cut.shape == (2, config.grid[0] * config.grid[1], config.patch_size)
    assert torch.equal(patches.unpatchify(cut, config, config.grid[1]), features)


@pytest.mark.parametrize("stride", [16, 10, 20])
def test_order_is_frequency_major(stride: int) -> None:
    config = Config(frames=70, stride_frequency=stride, stride_time=stride)
    frames, bins = torch.arange(70.0)[:, None], torch.arange(128.0)[None]
    cut = patches.patchify((1000 * frames + bins)[None], config)[0]
    rows, cols = config.grid
    for f, t in ((0, 0), (0, 1), (1, 0), (rows - 1, cols - 1)):
        patch = cut[f * cols + t].reshape(16, 16)  # frequency x time
        assert patch[0, 0] == 1000 * stride * t + stride * f
        assert patch[1, 0] == 1000 * stride * t + stride * f + 1
        assert patch[0, 1] == 1000 * (stride * t + 1) + stride * f


def test_frames_beyond_the_last_full_column_are_left_out(rng: torch.Generator) -> None:
    config = Config(frames=64)
    features = torch.randn(1, 79, 128, generator=rng)
    assert torch.equal(patches.patchify(features, config), patches.patchify(features[:, :64], config))


@pytest.mark.parametrize("stride", [16, 10])
def test_patch_convolution_is_a_product_with_patchify(stride: int, rng: torch.Generator) -> None:
    config = Config(frames=64, stride_frequency=stride, stride_time=stride)
    conv = torch.nn.Conv2d(1, 24, 16, stride)
    features = torch.randn(2, 64, 128, generator=rng)
    by_conv = conv(features.transpose(1, 2)[:, None]).flatten(2).transpose(1, 2)
    by_product = F.linear(patches.patchify(features, config), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(by_conv, by_product, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [4, 16, 20])
def test_columns_cover_all_frames_with_none_to_spare(stride: int) -> None:
    config = Config(frames=160, stride_time=stride)
    for frames in range(1, 160):
        n = patches.columns(frames, config)
        assert patches.covered_frames(n, config) >= frames
        assert n == 1 or patches.covered_frames(n - 1, config) < frames


def positions(rows: int, cols: int, rng: torch.Generator) -> Tensor:
    return torch.randn(1, 1 + rows * cols, 3, generator=rng)


def image(values: Tensor, rows: int, cols: int) -> Tensor:
    return values[0, 1:].reshape(rows, cols, -1)


@pytest.mark.parametrize(
    ("new", "row_slice", "col_slice"),
    [
        ((8, 4), slice(0, 8), slice(3, 7)),
        ((8, 5), slice(0, 8), slice(3, 8)),
        ((3, 10), slice(3, 6), slice(0, 10)),
        ((2, 1), slice(3, 5), slice(5, 6)),
    ],
)
def test_shorter_sides_are_cut_from_the_centre(
    new: tuple[int, int], row_slice: slice, col_slice: slice, rng: torch.Generator
) -> None:
    old = positions(8, 10, rng)
    ours = patches.resize_positions(old, (8, 10), new)
    assert torch.equal(ours[:, :1], old[:, :1])
    assert torch.equal(image(ours, *new), image(old, 8, 10)[row_slice, col_slice])


def test_an_odd_side_cut_to_an_even_one(rng: torch.Generator) -> None:
    # The reference takes old // 2 - new // 2 as the start.
    old = positions(7, 9, rng)
    assert torch.equal(image(patches.resize_positions(old, (7, 9), (4, 4)), 4, 4), image(old, 7, 9)[1:5, 2:6])


def interpolate(side: Tensor, length: int) -> Tensor:
    """Linear along the first axis, pixel centres at half steps, as a plain loop."""
    out = []
    for i in range(length):
        at = min(max((i + 0.5) * len(side) / length - 0.5, 0), len(side) - 1)
        low = int(at)
        high = min(low + 1, len(side) - 1)
        out.append(side[low] * (1 - (at - low)) + side[high] * (at - low))
    return torch.stack(out)


def test_longer_sides_are_interpolated(rng: torch.Generator) -> None:
    old = positions(4, 6, rng)
    in_time = torch.stack([interpolate(row, 15) for row in image(old, 4, 6)])
    ours = patches.resize_positions(old, (4, 6), (4, 15))
    torch.testing.assert_close(image(ours, 4, 15), in_time)
    ours = patches.resize_positions(old, (4, 6), (7, 15))
    torch.testing.assert_close(image(ours, 7, 15), interpolate(in_time, 7))
    assert torch.equal(ours[:, :1], old[:, :1])


def test_one_side_longer_and_one_shorter(rng: torch.Generator) -> None:
    old = positions(4, 6, rng)
    ours = patches.resize_positions(old, (4, 6), (9, 2))
    torch.testing.assert_close(image(ours, 9, 2), interpolate(image(old, 4, 6)[:, 2:4], 9))


def test_the_same_grid_is_left_alone(rng: torch.Generator) -> None:
    old = positions(4, 6, rng)
    assert torch.equal(patches.resize_positions(old, (4, 6), (4, 6)), old)


@pytest.mark.parametrize("longer", patches.LONGER)
def test_positions_of_a_longer_time(longer: str, rng: torch.Generator) -> None:
    positions = torch.randn(1, 1 + 2 * 3, 4, generator=rng)
    found = patches.resize_positions(positions, (2, 3), (2, 7), longer)
    assert torch.equal(found[:, 0], positions[:, 0])
    before, after = positions[0, 1:].view(2, 3, 4), found[0, 1:].view(2, 7, 4)
    if longer == "repeat":
        assert torch.equal(after, before[:, [0, 1, 2, 0, 1, 2, 0]])
    elif longer == "average":
        torch.testing.assert_close(after, before.mean(1, keepdim=True).expand(2, 7, 4))
    else:
        torch.testing.assert_close(after[:, 3], before[:, 1])  # the middle stays in the middle
        assert torch.equal(after[:, 0], before[:, 0])
    cut = patches.resize_positions(positions, (2, 3), (2, 1), longer)  # a shorter time is cut, whatever is asked for
    assert torch.equal(cut, patches.resize_positions(positions, (2, 3), (2, 1)))


OVERLAPPING = Config(frames=128, stride_frequency=10, stride_time=10)


def check_patch_embedding(config: Config, frames: int, device: str) -> None:
    """The product of patches and weights and the convolution, in values and gradients, against float64."""
    rng = torch.Generator().manual_seed(1)
    drawn = patches.PatchEmbedding(config)
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    features = torch.randn(3, frames, config.mel_bins, generator=rng)
    found = []
    for dtype, where in ((torch.float64, "cpu"), (torch.float32, device)):
        x, layer = features.to(where, dtype).requires_grad_(), copy.deepcopy(drawn).to(where, dtype)
        out = layer(x) if dtype == torch.float64 else layer.product(x)
        out.sin().sum().backward()
        tensors = out.detach(), x.grad, layer.weight.grad, layer.bias.grad
        found.append([t.cpu().double() for t in tensors if t is not None])
    assert len(found[0]) == 4
    for expected, given in zip(*found, strict=True):
        assert expected.shape == given.shape
        # Sums of up to 768 terms in float32 are off by 5e-7; in TF32, which PyTorch allows convolutions, by 5e-4.
        assert (given - expected).norm() < 2e-6 * expected.norm()


@pytest.mark.parametrize("config", [*GRIDS, OVERLAPPING])
@pytest.mark.parametrize("frames", [16, 48, 131])
def test_patch_embedding_as_a_product(config: Config, frames: int) -> None:
    check_patch_embedding(config, frames, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("config", [*GRIDS, OVERLAPPING])
def test_patch_embedding_on_a_gpu(config: Config) -> None:
    check_patch_embedding(config, 131, "cuda")


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_added_alike_with_and_without_gradients(encoder: str, dtype: torch.dtype) -> None:
    model = KINDS[encoder](
        Config(encoder=encoder, width=16, depth=2, frames=64, attention_heads=2 * (encoder == "ssast"))
    )
    tokens = torch.randn(3, model.config.grid[0] * 3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    with_gradients = with_positions(model, tokens, 3)
    with torch.no_grad():
        assert torch.equal(with_positions(model, tokens, 3), with_gradients)
    assert with_gradients.dtype == torch.float32
