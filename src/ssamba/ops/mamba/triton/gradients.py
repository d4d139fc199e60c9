# mypy: disable-error-code="no-untyped-def"
"""The gradient of the projection p in one pass: its share of dt, and B and C summed over the blocks that made parts.

What matrix products read of it and of p comes out with rows that their fast kernels take, a multiple of eight long.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32


@triton.jit
def _join(
    dt_ptr, dbc_ptr, p_ptr, dp_ptr, low_ptr, rows, part_step,
    RANK: tl.constexpr, DT: tl.constexpr, BC: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    BT: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    col = tl.arange(0, BW)
    row_ok = row < rows
    of_dt, of_bc = col < RANK, (col >= RANK) & (col < RANK + BC)
    ok = row_ok[:, None] & of_dt[None, :]
    total = tl.load(dt_ptr + row[:, None] * DT + col[None, :], mask=ok, other=0.0).to(tl.float32)
    ok = row_ok[:, None] & of_bc[None, :]
    at = row[:, None] * BC + (col - RANK)[None, :]
    for part in tl.static_range(PARTS):
        total += tl.load(dbc_ptr + part * part_step + at, mask=ok, other=0.0).to(tl.float32)
    ok = row_ok[:, None] & (col < WIDTH)[None, :]
    tl.store(dp_ptr + row[:, None] * WIDTH + col[None, :], total.to(dp_ptr.dtype.element_ty), mask=ok)
    ok = row_ok[:, None] & of_dt[None, :]
    low = tl.load(p_ptr + row[:, None] * (RANK + BC) + col[None, :], mask=ok, other=0.0)
    tl.store(low_ptr + row[:, None] * DT + col[None, :], low, mask=row_ok[:, None] & (col < DT)[None, :])


def join(dt_GTm: Tensor, dbc_xGT2N: Tensor, p_GTP: Tensor, rank: int, pad: int) -> tuple[Tensor, Tensor]:
    """``dp_GTP``: the first ``rank`` columns of ``dt``, the sum of the parts of ``dbc``, and ``pad`` zeros.

    Also the first ``rank`` columns of p, with zeros after them, in the shape of ``dt``. Sums are in float32 and rounded
    once. All are contiguous.
    """
    pairs, tokens, stride = dt_GTm.shape
    parts, outputs = dbc_xGT2N.shape[0], dbc_xGT2N.shape[-1]
    width = rank + outputs + pad
    dp = torch.empty(pairs, tokens, width, device=dt_GTm.device, dtype=dt_GTm.dtype)
    low_GTm = torch.empty_like(dt_GTm)
    rows = pairs * tokens
    if rows:
        _join[(triton.cdiv(rows, _ROWS),)](
            dt_GTm, dbc_xGT2N, p_GTP, dp, low_GTm, rows, rows * outputs,
            RANK=rank, DT=stride, BC=outputs, WIDTH=width, PARTS=parts, BT=_ROWS, BW=triton.next_power_of_2(width),
            num_warps=4,
        )  # fmt: skip
    return dp, low_GTm
