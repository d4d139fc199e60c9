"""Compiles Triton kernels of the backward for an H100, in a process of its own: test_few_states.py runs it.

The interpreter takes what the compiler does not, a variable of a loop that changes its type for one. No GPU is needed.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssamba.ops.mamba.triton import conv_backward, gradients, scan

FLOAT32 = {"part_ptr", "w_ptr", "a_log_ptr", "d_ptr", "bias_ptr", "state_ptr", "ckpt_ptr", "sum_ptr"}
"""Pointers to parameters and sums; all others are to activations."""


def compile_kernel(kernel: Any, number: str, warps: int, **constants: int) -> None:
    """For activations of type ``number``."""
    names = kernel.arg_names
    kinds = {n: "*fp32" if n in FLOAT32 else f"*{number}" if n.endswith("_ptr") else "i32" for n in names}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, kinds, {(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 2})
    assert compiled.asm["cubin"]


def main() -> None:
    for words, number in ((4, "i64"), (1, "i16")):
        sizes = {"RANK": 12 // words, "N": 8 // words, "WIDE": 16 // words, "BT": 128, "BW": 64 // words}
        compile_kernel(gradients._spread, number, 4, **sizes)
    for columns, more in ((32, 0), (16, 8)):
        sizes = {"RANK": 12, "DT": 16, "BC": columns, "MORE": more, "WIDTH": columns + 16, "PARTS": 4, "BT": 32}
        compile_kernel(gradients._join, "bf16", 4, **sizes, BW=64)
        sizes |= {"BE": 128, "BR": 16, "BB": columns}
        compile_kernel(gradients._join_products, "bf16", 8, **sizes)
    for directions, sums in ((1, 0), (1, 1), (2, 1)):
        sizes = {"R": directions, "K": 2, "BT": 16, "BE": 64, "ALT": directions == 1, "SUMS": sums}
        compile_kernel(conv_backward._conv_backward4, "bf16", 4, **sizes)
        compile_kernel(conv_backward._conv_backward, "bf16", 4, **sizes, W=3, WP=4 << sums)
        sizes = {"R": directions, "K": 2, "N": 16, "P": 44, "RANK": 12, "GRAD": 1, "GATE": 1, "TILE": 16, "NP": 16}
        for phase in (0,) if directions == 1 else (1, 2):
            more = {"PHASE": phase, "BE": 32, "ALT": directions == 1, "SUMS": sums}
            compile_kernel(scan._forward, "bf16", 1, **sizes, **more)


if __name__ == "__main__":
    main()
