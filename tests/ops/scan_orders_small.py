"""Warps of the tensor-core forward scan in every order, emulated on the CPU: see test_scan_orders.py.

Each case runs with every order of warps and with copies that arrive as late as they may (cuda_shim/fibers.h), at
lengths where batches end, in both 16-bit types, with 16 and 8 states, both directions, one direction, chunks of time,
two warps for the states, and the saved states: all orders give the same bits. ``some`` cases and orders, or ``all``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from cuda_forms_small import draw, environment
from torch import Tensor
from triton_small import build, plain_proj

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import gpu, gpu_inference
from ssamba.ops.mamba.cuda import projection, scan, scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.cuda.sources import MMA_TYPES
from ssamba.ops.mamba.params import MixerParams
from ssamba.ops.mamba.triton import conv


class Case(NamedTuple):
    """Sizes and form of a call, the chunks of time that it is cut in, and the warps that share states."""

    clips: int
    length: int
    width: int
    rank: int
    directions: int = 1
    tied: bool = True
    alternating: bool = True
    states: int = 16
    chunks: int = 1
    split: int = 1

    def draw(self, dtype: torch.dtype) -> tuple[Tensor, MixerParams]:
        sizes = self.clips, self.length, 2, self.width, self.rank, self.directions
        xz, *rest = draw(*sizes, self.tied, self.states, dtype)
        return xz, MixerParams(*rest)


SOME = (
    Case(1, 17, 48, 12),
    Case(1, 33, 16, 36, 2, False, False),
)
CASES = (
    *SOME,
    Case(1, 1, 16, 4),
    Case(2, 17, 48, 12, 1, False),
    Case(2, 71, 80, 12, 1, chunks=3),
    Case(1, 49, 80, 36, 2, True, False),
    Case(2, 2, 48, 12),
    Case(1, 15, 16, 4, 2, True, False),
    Case(1, 16, 80, 4, states=8),
    Case(1, 33, 144, 12, 2, True, False, states=8),
    Case(1, 71, 48, 20, 2, False, False, chunks=3),
    Case(1, 97, 144, 48),
    *(Case(1, length, 48, 12, split=2) for length in (1, 16, 97, 129, 193)),
    Case(1, 129, 48, 12, 2, False, False, chunks=3, split=2),
)


def outputs(xz: Tensor, params: MixerParams, alternating: bool) -> list[Tensor]:
    """With the gate and without it, and the saved states of 16."""
    x = xz[:, :, 0].contiguous()
    work = torch.full((*x.shape[:2], 4 * x.shape[2] * x.shape[3]), float("nan"), dtype=x.dtype)
    bare = params._replace(x_proj_RKPE=params.x_proj_RKPE.to(x.dtype))
    found = [
        gpu.bimamba_inner_packed(xz, params, alternating),
        gpu_inference.inner_with_work(x, None, work, *bare, "cuda", alternating),
    ]
    if Shape(x, params, alternating).states == 16:
        found.append(saved(x, params, alternating))
    return found


def saved(x: Tensor, params: MixerParams, alternating: bool) -> Tensor:
    """The states before every 8 steps."""
    p = plain_proj(x.float(), params.conv_weight_RKEW, params.conv_bias_RKE, params.x_proj_RKPE, alternating)
    shape = Shape(x, params, alternating)
    found = x.new_full((shape.dir_blocks, shape.batch, -(-shape.length // 8), shape.width, 16), float("nan"))
    scan_mma.states(shape, {"x": x, "p": p.to(x.dtype), "ckpt": found, **scan._parameters(params)})
    return found


def same_bits(cases: Sequence[Case], orders: Sequence[int]) -> None:
    for i, case in enumerate(cases):
        for dtype in MMA_TYPES if i % 3 == 0 else MMA_TYPES[:1]:
            xz, params = case.draw(dtype)
            warps, stages = 4 + 4 * (case.width > 64), 3 + i % 2
            cut = f"split={case.split},warps={warps},stages={stages},blocks=1,chunks={case.chunks}"
            runs = []
            for skewed in orders:
                with environment(SSAMBA_CUT=cut, SSAMBA_SKEWED=skewed), torch.no_grad():
                    runs.append(outputs(xz, params, case.alternating))
            assert all(torch.isfinite(t).all() for t in runs[0]), (case, dtype)
            for skewed, found in zip(orders, runs, strict=True):
                for a, b in zip(found, runs[0], strict=True):
                    assert torch.equal(a, b), f"{case}, {dtype}, skewed {skewed}: {(a != b).sum()} values differ"


def main(part: str) -> None:
    nvrtc.kernel, scan.usable, conv.conv_proj = build, lambda *_: True, plain_proj  # type: ignore[assignment]
    projection.usable = lambda x, *_: x.dtype in MMA_TYPES and x.shape[-1] % 16 == 0  # type: ignore[assignment]
    if part == "some":
        same_bits(SOME, (0, 3, 4))
    else:
        same_bits(CASES, range(5))


if __name__ == "__main__":
    main(sys.argv[1])
