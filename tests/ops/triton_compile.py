"""Compiles Triton kernels of the backward for an H100, in a process of its own: test_few_states.py runs it.

The interpreter takes what the compiler does not, a variable of a loop that changes its type for one. No GPU is needed.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssamba.ops.mamba.triton import gradients

POINTERS = {"p_ptr", "wide_ptr", "dt_ptr", "dbc_ptr", "dp_ptr", "low_ptr", "ddt_ptr", "dt_proj_ptr"}


def compile_kernel(kernel: Any, number: str, warps: int, **constants: int) -> None:
    """For activations of type ``number``."""
    names = kernel.arg_names
    kinds = {n: "constexpr" if n in constants else f"*{number}" if n in POINTERS else "i32" for n in names}
    if "part_ptr" in kinds:
        kinds["part_ptr"] = "*fp32"
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


if __name__ == "__main__":
    main()
