# mypy: disable-error-code="no-untyped-def"
"""Residual addition and layer normalisation in one pass over memory, with the backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssamba.ops.layer_norm.naive import two_gradients


@triton.jit
def _forward(
    x_ptr, res_ptr, scale_ptr, w_ptr, b_ptr, out_ptr, new_ptr, mean_ptr, rstd_ptr,
    rows, length, width, eps, res_scale,
    HAS_RES: tl.constexpr, HAS_SCALE: tl.constexpr, AFFINE: tl.constexpr, KEEP: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    # KEEP: write the sum and the statistics, too.
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    col = tl.arange(0, BD)
    row_ok = row < rows
    ok = row_ok[:, None] & (col < width)[None, :]
    at = row[:, None] * width + col[None, :]
    x = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if HAS_SCALE:
        x *= tl.load(scale_ptr + row // length, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    if HAS_RES:
        x += res_scale * tl.load(res_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(new_ptr + at, x.to(new_ptr.dtype.element_ty), mask=ok)
    mean = tl.sum(x, 1) / width
    centred = tl.where(ok, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    out = centred * rstd[:, None]
    if AFFINE:
        w = tl.load(w_ptr + col, mask=col < width, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + col, mask=col < width, other=0.0).to(tl.float32)
        out = out * w[None, :] + b[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=ok)
    if KEEP:
        tl.store(mean_ptr + row, mean, mask=row_ok)
        tl.store(rstd_ptr + row, rstd, mask=row_ok)


@triton.jit
def _backward(
    dout_ptr, dnew_ptr, saved_ptr, w_ptr, mean_ptr, rstd_ptr, scale_ptr, dx_ptr, dres_ptr, dw_ptr, db_ptr,
    rows, length, width, res_scale, rows_per_program,
    HAS_DNEW: tl.constexpr, HAS_SCALE: tl.constexpr, AFFINE: tl.constexpr, TWO: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    # ``saved`` is the normalised output without an affine map, the summed residual with one.
    col = tl.arange(0, BD)
    col_ok = col < width
    first = tl.program_id(0).to(tl.int64) * rows_per_program
    dw = tl.zeros((BD,), tl.float32)
    db = tl.zeros((BD,), tl.float32)
    for start in range(0, rows_per_program, BR):
        row = first + start + tl.arange(0, BR)
        row_ok = row < rows
        ok = row_ok[:, None] & col_ok[None, :]
        at = row[:, None] * width + col[None, :]
        dout = tl.load(dout_ptr + at, mask=ok, other=0.0).to(tl.float32)
        hat = tl.load(saved_ptr + at, mask=ok, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row_ok, other=0.0)
        if AFFINE:
            mean = tl.load(mean_ptr + row, mask=row_ok, other=0.0)
            hat = tl.where(ok, (hat - mean[:, None]) * rstd[:, None], 0.0)
            dw += tl.sum(dout * hat, 0)
            db += tl.sum(dout, 0)
            dout *= tl.load(w_ptr + col, mask=col_ok, other=0.0).to(tl.float32)[None, :]
        c1 = tl.sum(dout, 1) / width
        c2 = tl.sum(dout * hat, 1) / width
        d = (dout - c1[:, None] - hat * c2[:, None]) * rstd[:, None]
        if HAS_DNEW:
            d += tl.load(dnew_ptr + at, mask=ok, other=0.0).to(tl.float32)
        if TWO:
            tl.store(dres_ptr + at, (d * res_scale).to(dres_ptr.dtype.element_ty), mask=ok)
        if HAS_SCALE:
            d *= tl.load(scale_ptr + row // length, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        tl.store(dx_ptr + at, d.to(dx_ptr.dtype.element_ty), mask=ok)
    if AFFINE:
        tl.store(dw_ptr + tl.program_id(0) * width + col, dw, mask=col_ok)
        tl.store(db_ptr + tl.program_id(0) * width + col, db, mask=col_ok)


def _tile(width: int) -> tuple[int, int, int]:
    """Rows of a tile, columns of a tile, warps: about 2,048 values for each program."""
    columns = max(16, triton.next_power_of_2(width))
    rows = max(1, 2048 // columns)
    return rows, columns, 4 if rows * columns <= 4096 else 8


def forward(
    x_BLd: Tensor,
    residual_BLd: Tensor | None,
    x_scale_B: Tensor | None,
    weight_d: Tensor | None,
    bias_d: Tensor | None,
    eps: float,
    residual_scale: float,
    out_dtype: torch.dtype,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``new = residual_scale residual + x_scale x``; returns LayerNorm(new), new, mean and 1/std of each token.

    ``in_place``: new over the residual and the norm over x; a program reads its rows before it writes them.
    """
    x = x_BLd.contiguous()
    residual, weight_d, bias_d, x_scale_B = (
        None if given is None else given.contiguous() for given in (residual_BLd, weight_d, bias_d, x_scale_B)
    )
    width = x.shape[-1]
    rows = x.numel() // max(width, 1)
    if in_place and (not x_BLd.is_contiguous() or residual_BLd is None or not residual_BLd.is_contiguous()):
        raise ValueError("in place, x and the residual must be contiguous")
    out = x if in_place else torch.empty_like(x, dtype=out_dtype)
    new = residual if in_place and residual is not None else torch.empty_like(x if residual is None else residual)
    mean = torch.empty(x.shape[:-1], device=x.device, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    br, bd, warps = _tile(width)
    if rows:
        _forward[(triton.cdiv(rows, br),)](
            x, residual, x_scale_B, weight_d, bias_d, out, new, mean, rstd,
            rows, x.shape[1] if x.dim() == 3 else 1, width, eps, residual_scale,
            HAS_RES=residual is not None, HAS_SCALE=x_scale_B is not None, AFFINE=weight_d is not None, KEEP=True,
            BR=br, BD=bd, num_warps=warps,
        )  # fmt: skip
    return out, new, mean, rstd


def normalise(x_Td: Tensor, eps: float, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """LayerNorm(x) of contiguous tokens in ``dtype``, without weights or gradients; written to ``out`` if given."""
    rows, width = x_Td.shape
    out = torch.empty_like(x_Td, dtype=dtype) if out is None else out
    br, bd, warps = _tile(width)
    if rows:
        _forward[(triton.cdiv(rows, br),)](
            x_Td, None, None, None, None, out, None, None, None, rows, 1, width, eps, 1.0,
            HAS_RES=False, HAS_SCALE=False, AFFINE=False, KEEP=False, BR=br, BD=bd, num_warps=warps,
        )  # fmt: skip
    return out


def backward(
    dout: Tensor,
    dnew: Tensor | None,
    saved: Tensor,
    weight_d: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    x_scale_B: Tensor | None,
    residual_scale: float,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for x, residual, weight and bias. Column sums are partial for each program and added in fixed order."""
    dout, saved = dout.contiguous(), saved.contiguous()
    dnew, weight_d, x_scale_B = (None if x is None else x.contiguous() for x in (dnew, weight_d, x_scale_B))
    width = saved.shape[-1]
    rows = saved.numel() // max(width, 1)
    dx = torch.empty_like(saved, dtype=x_dtype)
    # One tensor serves both when they would be equal.
    two = two_gradients(residual_scale, x_scale_B, x_dtype, residual_dtype)
    dres = torch.empty_like(saved, dtype=residual_dtype) if two else None
    br, bd, warps = _tile(width)
    per_program = br if weight_d is None else br * max(1, triton.cdiv(triton.cdiv(rows, br), 512))
    programs = max(1, triton.cdiv(rows, per_program))
    dw = db = None
    if weight_d is not None:
        dw = torch.zeros(programs, width, device=saved.device, dtype=torch.float32)
        db = torch.zeros_like(dw)
    if rows:
        _backward[(programs,)](
            dout, dnew, saved, weight_d, mean, rstd, x_scale_B, dx, dres, dw, db,
            rows, saved.shape[1] if saved.dim() == 3 else 1, width, residual_scale, per_program,
            HAS_DNEW=dnew is not None, HAS_SCALE=x_scale_B is not None, AFFINE=weight_d is not None, TWO=two,
            BR=br, BD=bd, num_warps=warps,
        )  # fmt: skip
    if residual_dtype is not None and not two:
        dres = dx
    return (
        dx,
        dres,
        None if dw is None or weight_d is None else dw.sum(0).to(weight_d.dtype),
        None if db is None or weight_d is None else db.sum(0).to(weight_d.dtype),
    )
