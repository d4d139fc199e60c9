"""The fused convolution and projection against float64, emulated on the CPU: run by test_projection.py in a process of
its own.

``few``: one size for each form; ``many``: every form with odd lengths, ends of clips inside a warp, and both types.
"""

from __future__ import annotations

import itertools
import os
import sys

from projection_cases import BOUNDS, CASES, check, check_fine_taps, draw
from triton_small import build

from ssamba.ops.jit import nvrtc

SLICED = ((4, "1,slices=4,rows=16,stages=6"), (8, "1,slices=8,rows=16,stages=3,channels=128"), (4, "1,slices=2"))
LONG = ((4, "4"), (1, "1"), (1, "2,taps=runs"), (4, "1,taps=runs"))
"""Warps for each direction, and the rest of SSAMBA_PROJ."""


def run(launches: tuple[tuple[int, str], ...], cases: tuple[tuple[int, int, int, int, int, int, bool], ...]) -> None:
    for (i, (warps, rest)), dtype in itertools.product(enumerate(launches), BOUNDS):
        for j, (*sizes, alternating) in enumerate(cases):
            os.environ["SSAMBA_PROJ"] = launch = f"{warps * sizes[5]},{rest}"
            os.environ["SSAMBA_SKEWED"] = str(1 + (i + j) % 4)  # warps apart and copies late
            tensors = draw(*sizes, dtype, apart=bool((i + j) % 2))
            print(launch, sizes, alternating, dtype, f"{check(tensors, alternating):.2e}")
        if "runs" in rest:
            os.environ["SSAMBA_PROJ"] = f"{warps},{rest}"
            print(launch, dtype, f"{check_fine_taps(dtype, 1, True):.2e}")


if __name__ == "__main__":
    nvrtc.kernel = build
    if sys.argv[1] == "few":
        run((SLICED[0], LONG[2], LONG[3]), CASES[:2])
    else:
        run((*SLICED, *LONG), CASES)
