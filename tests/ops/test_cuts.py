"""How the tensor-core forward scan is tiled."""

from __future__ import annotations

import pytest
import torch

from ssamba.ops.mamba.cuda import scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape


def shape(batch: int, length: int) -> Shape:
    x = torch.empty(batch, length, 2, 384, device="meta", dtype=torch.bfloat16)
    return Shape(x, torch.empty(2, 2, 384, 16, device="meta"), 4, 44)


def test_few_channels_are_cut_finer() -> None:
    cuts = [scan_mma.choose_cut(shape(batch, 4096)) for batch in (1, 4, 64)]
    assert [cut.chunks > 1 for cut in cuts] == [True, False, False]
    assert [cut.split for cut in cuts] == [1, 2, 1]
    assert cuts[0].chunks == 8
    assert [scan_mma.choose_cut(shape(batch, 22016)).chunks for batch in (1, 2)] == [16, 8]


def test_the_environment_chooses_another_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    best = scan_mma.choose_cut(shape(4, 4096))
    monkeypatch.setenv("SSAMBA_CUT", "warps=1, stages=4")
    assert scan_mma.choose_cut(shape(4, 4096)) == best._replace(warps=1, stages=4)
    monkeypatch.setenv("SSAMBA_CUT", "width=1")
    with pytest.raises(ValueError, match="width"):
        scan_mma.choose_cut(shape(4, 4096))
