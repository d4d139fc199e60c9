"""How the tensor-core forward scan is tiled."""

from __future__ import annotations

import pytest
import torch

from ssamba.ops.mamba.cuda import scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.params import MixerParams


def shape(batch: int, length: int, states: int = 16, directions: int = 2) -> Shape:
    x = torch.empty(batch, length, 2, 384, device="meta", dtype=torch.bfloat16)
    sizes = ((384, 4), (384,), (12 + 2 * states, 384), (384, 12), (384,), (384, states), (384,))
    return Shape(x, MixerParams(*(torch.empty(directions, 2, *size, device="meta") for size in sizes)))


def test_few_channels_are_split_finer() -> None:
    tilings = [scan_mma.choose_tiling(shape(batch, 4096)) for batch in (1, 4, 64)]
    assert [tiling.chunks > 1 for tiling in tilings] == [True, False, False]
    assert [tiling.state_split for tiling in tilings] == [1, 2, 1]
    assert tilings[0].chunks == 8
    assert [scan_mma.choose_tiling(shape(batch, 22016)).chunks for batch in (1, 2)] == [16, 8]


def test_the_environment_chooses_another_tiling(monkeypatch: pytest.MonkeyPatch) -> None:
    best = scan_mma.choose_tiling(shape(4, 4096))
    monkeypatch.setenv("SSAMBA_CUT", "warps=1, stages=4")
    assert scan_mma.choose_tiling(shape(4, 4096)) == best._replace(warps=1, stages=4)
    monkeypatch.setenv("SSAMBA_CUT", "split=2,blocks=1")
    assert scan_mma.choose_tiling(shape(4, 4096)) == best._replace(state_split=2, min_blocks_per_sm=1)
    monkeypatch.setenv("SSAMBA_CUT", "width=1")
    with pytest.raises(ValueError, match="width"):
        scan_mma.choose_tiling(shape(4, 4096))
