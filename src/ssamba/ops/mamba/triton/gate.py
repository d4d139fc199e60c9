# mypy: disable-error-code="no-untyped-def"
"""The mixer's gate by itself, for passes that make z only after the scan."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_VALUES = 4096  # of a program


@triton.jit
def _gate(y_ptr, z_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < count
    y = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + at, mask=ok, other=0.0).to(tl.float32)
    y *= z / (1.0 + tl.exp2(z * -1.4426950408889634))
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=ok)


def gate(y: Tensor, z: Tensor) -> None:
    """``y *= silu(z)``, in place. Both contiguous and of one shape."""
    count = y.numel()
    if count:
        _gate[(triton.cdiv(count, _VALUES),)](y, z, count, BLOCK=_VALUES, num_warps=8)
