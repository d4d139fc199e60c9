"""The CUDA C++ of the mixer as units for NVRTC: ``kernels/*.cu``, ``include/ssamba/*.cuh``, and generated headers.

Everything that varies is a macro (types, sizes, tiling), so nothing is decided at run time inside a loop.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda import kernel_args

KERNELS = Path(__file__).with_name("kernels")
INCLUDE = Path(__file__).with_name("include")

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Values of the macro DTYPE, the type of activations."""
MMA_TYPES = (torch.bfloat16, torch.float16)
"""Types of activations that the tensor-core kernels take."""


@functools.cache
def headers() -> tuple[tuple[str, str], ...]:
    """Name and text of every header, those in files and those that are generated."""
    files = sorted(INCLUDE.rglob("*.cuh"))
    texts = [(p.relative_to(INCLUDE).as_posix(), p.read_text(encoding="utf-8")) for p in files]
    return (*texts, *kernel_args.HEADERS)


@functools.cache
def unit(file: str) -> nvrtc.Unit:
    """The unit of ``kernels/<file>``. Raises OSError when the package was installed without it."""
    path = KERNELS / file
    return nvrtc.Unit(path, path.read_text(encoding="utf-8"), headers())


def defines(**values: int) -> tuple[str, ...]:
    """Macros in the form that ``nvrtc.kernel`` takes."""
    return tuple(f"{name}={value}" for name, value in values.items())
