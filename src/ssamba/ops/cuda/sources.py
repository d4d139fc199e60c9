"""The units of ``kernels/*.cu`` for NVRTC, with ``include/ssamba/*.cuh`` and the headers made from argument fields."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.cuda import kernel_args
from ssamba.ops.jit import nvrtc

KERNELS = Path(__file__).with_name("kernels")
INCLUDE = Path(__file__).with_name("include")

TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Element types that the kernels take, as ``elements.cuh`` numbers them."""


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


def usable(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these types on this device; ``SSAMBA_GPU_SCAN=triton`` in the environment forbids it."""
    given = [t for t in tensors if t is not None]
    if not all(t.is_cuda and t.dtype in TYPE_CODES for t in given) or environment.gpu_scan() == "triton":
        return False
    return not given or nvrtc.multiplies_bfloat16(given[0].device.index or 0)


def values_at_once(width: int, *tensors: Tensor | None) -> int:
    """Neighbours that a lane loads at once: 16 bytes of the widest type, fewer where rows or addresses do not allow it.

    ``tensors`` are matrices of rows of ``width`` values, or such rows.
    """
    given = [t for t in tensors if t is not None]
    values = 16 // max(t.element_size() for t in given)
    while values > 1 and (width % values or any(t.data_ptr() % (values * t.element_size()) for t in given)):
        values //= 2
    return values
