# mypy: disable-error-code="no-untyped-def"
"""p with more states; its gradient in one pass: its share of dt, and B and C summed over the blocks that made parts.

What matrix products read of it and of p comes out with rows that their fast kernels take, a multiple of eight long.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32
_STEP = 32  # tokens of a step of a program that multiplies, too
_PROGRAMS = 264  # of those: two for each multiprocessor of an H100
_RANK, _CHANNELS = 16, 512  # what such a program holds at most
_SPREAD_ROWS = 128


@triton.jit
def _column(bc, BC: tl.constexpr, MORE: tl.constexpr):
    # Where column bc of the gradients of (B, C) lies, behind whose states each there may be MORE that are zero.
    if MORE:
        bc = tl.where(bc < BC // 2, bc, bc + MORE)
    return bc


@triton.jit
def _join(
    dt_ptr, dbc_ptr, p_ptr, dp_ptr, low_ptr, rows, part_step,
    RANK: tl.constexpr, DT: tl.constexpr, BC: tl.constexpr, MORE: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr, BT: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    col = tl.arange(0, BW)
    row_ok = row < rows
    of_dt, of_bc = col < RANK, (col >= RANK) & (col < RANK + BC)
    ok = row_ok[:, None] & of_dt[None, :]
    total = tl.load(dt_ptr + row[:, None] * DT + col[None, :], mask=ok, other=0.0).to(tl.float32)
    ok = row_ok[:, None] & of_bc[None, :]
    at = row[:, None] * (BC + 2 * MORE) + _column(col - RANK, BC, MORE)[None, :]
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
    once. ``dbc`` may have more states than p: what is behind those of p is left out. All are contiguous.
    """
    pairs, tokens, stride = dt_GTm.shape
    parts, outputs, of_parts = dbc_xGT2N.shape[0], p_GTP.shape[-1] - rank, dbc_xGT2N.shape[-1]
    width = rank + outputs + pad
    dp = torch.empty(pairs, tokens, width, device=dt_GTm.device, dtype=dt_GTm.dtype)
    low_GTm = torch.empty_like(dt_GTm)
    rows = pairs * tokens
    if rows:
        _join[(triton.cdiv(rows, _ROWS),)](
            dt_GTm, dbc_xGT2N, p_GTP, dp, low_GTm, rows, rows * of_parts,
            RANK=rank, DT=stride, BC=outputs, MORE=(of_parts - outputs) // 2, WIDTH=width, PARTS=parts, BT=_ROWS,
            BW=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
    return dp, low_GTm


@triton.jit
def _join_products(
    ddt_ptr, dt_proj_ptr, dbc_ptr, p_ptr, dp_ptr, part_ptr, tokens, channels, part_step, per_program,
    RANK: tl.constexpr, DT: tl.constexpr, BC: tl.constexpr, MORE: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BR: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    # What _join does, with the products around it: the gradient of dt goes through once, not twice.
    pair = tl.program_id(1)
    e, r, bc, pad = tl.arange(0, BE), tl.arange(0, BR), tl.arange(0, BB), tl.arange(0, 8)
    e_ok, r_ok = e < channels, r < RANK
    at = (pair * channels + e)[:, None] * DT + r[None, :]
    dt_proj = tl.load(dt_proj_ptr + at, mask=e_ok[:, None] & r_ok[None, :], other=0.0)
    total = tl.zeros((BE, BR), tl.float32)
    first = tl.program_id(0) * per_program
    for start in range(0, per_program, BT):
        t = first + start + tl.arange(0, BT)
        t_ok = t < tokens
        row = pair.to(tl.int64) * tokens + t
        ok = t_ok[:, None] & e_ok[None, :]
        ddt = tl.load(ddt_ptr + row[:, None] * channels + e[None, :], mask=ok, other=0.0)
        ok = t_ok[:, None] & r_ok[None, :]
        low = tl.load(p_ptr + row[:, None] * (RANK + BC) + r[None, :], mask=ok, other=0.0)
        dt = tl.dot(ddt, dt_proj)
        total = tl.dot(tl.trans(ddt), low, total)
        to = dp_ptr + row[:, None] * WIDTH
        tl.store(to + r[None, :], dt.to(dp_ptr.dtype.element_ty), mask=ok)
        ok = t_ok[:, None] & (bc < BC)[None, :]
        dbc = tl.zeros((BT, BB), tl.float32)
        for part in tl.static_range(PARTS):
            of_part = dbc_ptr + part * part_step + row[:, None] * (BC + 2 * MORE) + _column(bc, BC, MORE)[None, :]
            dbc += tl.load(of_part, mask=ok, other=0.0).to(tl.float32)
        tl.store(to + RANK + bc[None, :], dbc.to(dp_ptr.dtype.element_ty), mask=ok)
        ok = t_ok[:, None] & (RANK + BC + pad < WIDTH)[None, :]
        tl.store(to + (RANK + BC + pad)[None, :], tl.zeros((BT, 8), dp_ptr.dtype.element_ty), mask=ok)
    at = ((tl.program_id(0) * tl.num_programs(1) + pair).to(tl.int64) * channels + e)[:, None] * RANK + r[None, :]
    tl.store(part_ptr + at, total, mask=e_ok[:, None] & r_ok[None, :])


def supports_products(ddt_GTE: Tensor, rank: int) -> str | None:
    """None, or why ``join_products`` does not take these sizes: a program holds all channels of a token."""
    if ddt_GTE.dtype not in (torch.bfloat16, torch.float16) or not ddt_GTE.numel():
        return "only 16-bit numbers are multiplied in one pass"
    if ddt_GTE.dtype == torch.bfloat16 and not ddt_GTE.is_cuda:
        return "Triton's interpreter multiplies no bfloat16"
    if rank > _RANK or ddt_GTE.shape[2] > _CHANNELS:
        return "a product of this width is better left to the library"
    return None


def join_products(
    ddt_GTE: Tensor, dbc_xGT2N: Tensor, p_GTP: Tensor, dt_proj_GEr: Tensor, rank: int, pad: int
) -> tuple[Tensor, Tensor]:
    """``dp_GTP`` of ``join`` with ``dt = ddt dt_proj``, and the gradient ``xGEr`` of ``dt_proj`` in parts to be summed.

    ``dt_proj`` may have more columns than ``rank``, and ``dbc`` more states than p. All are contiguous.
    """
    pairs, tokens, channels = ddt_GTE.shape
    parts, outputs, of_parts = dbc_xGT2N.shape[0], p_GTP.shape[-1] - rank, dbc_xGT2N.shape[-1]
    width = rank + outputs + pad
    per_program = triton.cdiv(triton.cdiv(tokens, triton.cdiv(_PROGRAMS, pairs)), _STEP) * _STEP
    programs = triton.cdiv(tokens, per_program)
    dp_GTP = ddt_GTE.new_empty(pairs, tokens, width)
    part_xGEr = torch.empty(programs, pairs, channels, rank, device=dp_GTP.device, dtype=torch.float32)
    _join_products[(programs, pairs)](
        ddt_GTE, dt_proj_GEr, dbc_xGT2N, p_GTP, dp_GTP, part_xGEr, tokens, channels, pairs * tokens * of_parts,
        per_program, RANK=rank, DT=dt_proj_GEr.shape[-1], BC=outputs, MORE=(of_parts - outputs) // 2, WIDTH=width,
        PARTS=parts, BT=_STEP, BE=max(16, triton.next_power_of_2(channels)), BR=_RANK,
        BB=triton.next_power_of_2(outputs), num_warps=8, num_stages=3,
    )  # fmt: skip
    return dp_GTP, part_xGEr


@triton.jit
def _spread(
    p_ptr, wide_ptr, rows,
    RANK: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, BT: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    col = tl.arange(0, BW)
    second = col >= RANK + WIDE
    n = col - RANK - tl.where(second, WIDE, 0)
    of = tl.where(col < RANK, col, RANK + tl.where(second, N, 0) + n)
    ok = (row < rows)[:, None] & (n < N)[None, :]  # n is negative in the columns of dt
    found = tl.load(p_ptr + row[:, None] * (RANK + 2 * N) + of[None, :], mask=ok, other=0)
    to = wide_ptr + row[:, None] * (RANK + 2 * WIDE) + col[None, :]
    tl.store(to, found, mask=(row < rows)[:, None] & (col < RANK + 2 * WIDE)[None, :])


_WORDS = {1: torch.int16, 2: torch.int32, 4: torch.int64}


def spread_states(p_GBLP: Tensor, wide_GBLP: Tensor, rank: int) -> None:
    """``naive.spread_states`` of 16-bit numbers in one launch, up to four of them at a time. Both are contiguous."""
    states, wide = ((p.shape[-1] - rank) // 2 for p in (p_GBLP, wide_GBLP))
    each = 4
    while any(n % each for n in (rank, states, wide, p_GBLP.storage_offset(), p_GBLP.data_ptr() // 2)):
        each //= 2
    source, target = (p.view(_WORDS[each]) for p in (p_GBLP, wide_GBLP))
    rows = target.numel() // target.shape[-1]
    if rows:
        _spread[(triton.cdiv(rows, _SPREAD_ROWS),)](
            source, target, rows, RANK=rank // each, N=states // each, WIDE=wide // each, BT=_SPREAD_ROWS,
            BW=triton.next_power_of_2(target.shape[-1]), num_warps=4,
        )  # fmt: skip
