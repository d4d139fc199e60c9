"""The units of ``kernels/*.cu`` for NVRTC, with ``include/ssamba/*.cuh`` and the headers made from argument fields."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.cuda import kernel_args
from ssamba.ops.jit import nvrtc
from ssamba.ops.jit.nvrtc import Sources, defines

__all__ = ["TYPE_CODES", "defines", "headers", "unit", "usable", "values_at_once"]

TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Element types that the kernels take, as ``elements.cuh`` numbers them."""

_SOURCES = Sources(Path(__file__).parent, kernel_args.HEADERS)
headers, unit = _SOURCES.headers, _SOURCES.unit


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
