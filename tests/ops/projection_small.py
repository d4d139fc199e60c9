"""The fused convolution and projection against float64, emulated on the CPU: run by test_projection.py in a process of
its own.

``few``: one size for each form; ``many``: every form with odd lengths, ends of clips inside a warp, and both types.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
import sys

import torch
from gated_output_small import matrix_of
from projection_cases import BOUNDS, BULK_CASES, CASES, check, check_fine_taps, draw
from triton_small import build

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda import projection

SLICED = ((4, "1,slices=4,rows=16,stages=6"), (8, "1,slices=8,rows=16,stages=3,channels=128"), (4, "1,slices=2"))
LONG = ((4, "4"), (1, "1"), (1, "2,taps=runs"), (4, "1,taps=runs"))
BULK = ((2, "1,taps=bulk"), (1, "1,taps=bulk,stages=3,unroll=4"), (4, "1,taps=bulk,unroll=2"))
"""Warps for each direction, and the rest of SSAMBA_PROJ."""


def run(launches: tuple[tuple[int, str], ...], cases: tuple[tuple[int, int, int, int, int, int, bool], ...]) -> None:
    for (i, (warps, rest)), dtype in itertools.product(enumerate(launches), BOUNDS):
        for j, (*sizes, alternating) in enumerate(cases):
            os.environ["SSAMBA_PROJ"] = launch = f"{warps * sizes[5]},{rest}"
            os.environ["SSAMBA_SKEWED"] = str(1 + (i + j) % 4)  # warps apart and copies late
            tensors = draw(*sizes, dtype, apart=bool((i + j) % 2))
            print(launch, sizes, alternating, dtype, f"{check(tensors, alternating):.2e}")
        if "taps" in rest:
            os.environ["SSAMBA_PROJ"] = f"{warps},{rest}"
            print(launch, dtype, f"{check_fine_taps(dtype, 1, True):.2e}")


def array_of(
    address: int, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
) -> ctypes.Array[ctypes.c_uint64]:
    """Stands in for ``nvrtc.make_tensor_map``: what the shim's ``Array`` holds."""
    packed = struct.pack("<Q4q5I5I", address, *strides, *sizes, *box)
    return nvrtc.TensorMap.from_buffer_copy(packed.ljust(128, b"\0"))


def compare_forms(cases: tuple[tuple[int, int, int, int, int, int, bool], ...]) -> None:
    """With tensor maps the bits are those of ``taps=runs``."""
    for dtype, (*sizes, alternating) in itertools.product(BOUNDS, cases):
        tensors = draw(*sizes, dtype, apart=sizes[1] == 72)
        found = []
        for warps, rest in ((1, "1,taps=runs"), *BULK):
            os.environ["SSAMBA_PROJ"] = f"{warps * sizes[5]},{rest}"
            os.environ["SSAMBA_SKEWED"] = str(1 + len(found) % 4)
            found.append(projection.conv_proj(*tensors, None, alternating))
        print(sizes, alternating, dtype, [torch.equal(other, found[0]) for other in found])
        assert all(torch.equal(other, found[0]) for other in found)


if __name__ == "__main__":
    nvrtc.kernel = build
    nvrtc.make_tensor_map, nvrtc.make_tensor_map_2d = array_of, matrix_of  # type: ignore[assignment]
    projection._takes_maps = lambda x, tokens_each: tokens_each % 4 == 0  # type: ignore[assignment]
    if sys.argv[1] == "few":
        run((SLICED[0], LONG[2], LONG[3]), CASES[:2])
        run(BULK[:1], BULK_CASES[:1])
    else:
        run((*SLICED, *LONG), CASES)
        run(BULK, BULK_CASES)
        compare_forms(BULK_CASES)
