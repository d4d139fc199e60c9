"""The CUDA C++ of the mixer as units for NVRTC: ``kernels/*.cu``, ``include/ssamba/*.cuh``, and generated headers.

Everything that varies is a macro (types, sizes, tiling), so nothing is decided at run time inside a loop.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ssamba.ops.jit.nvrtc import Sources, defines
from ssamba.ops.mamba.cuda import kernel_args

__all__ = ["DTYPE_CODES", "MMA_TYPES", "defines", "headers", "unit"]

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Values of the macro DTYPE, the type of activations."""
MMA_TYPES = (torch.bfloat16, torch.float16)
"""Types of activations that the tensor-core kernels take."""

_SOURCES = Sources(Path(__file__).parent, kernel_args.HEADERS)
headers, unit = _SOURCES.headers, _SOURCES.unit
