# mypy: disable-error-code="no-untyped-def"
"""Float32 products by three TF32 products of tensor cores, with the error of float32 (Ootomo and Yokota 2022).

Every value is a sum of two with 11 bits, ``high + low``, and ``a b`` is ``low high + high low + high high``; what is
left out is 2^-22 of it at most. Tensor cores cut their sums off instead of rounding them, so each stretch of ``depth``
values is a sum of its own, which is added in float32. A tile whose result is not finite, or nearly not, is computed
again by multiplications in float32: infinities, NaN and values that rounding to 11 bits makes infinite give what they
give there. Values below 1e-34 lose bits, an absolute error of 1.2e-38 at most.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.linear_layer.gpu_limits import MIN_LONG
from ssamba.ops.mamba.triton import partial_sums

MAX_SPLIT_VALUES = 1 << 25
"""Values of the second operand up to which it is split before the product, which takes eight bytes for each."""
_MIN_SPLIT_ROWS = 1024
"""Rows of the result of a long sum from which on it is: each tile of rows would split the second operand again."""
_MIN_WIDE_DEPTH = 512
"""Values of a sum from which on wide tiles pay: shorter ones are bound by memory."""
_PROGRAMS = 528  # that parts of sums may make: four for each multiprocessor, which runs two at a time
_SPLIT_VALUES = 1024  # of a program that splits


class ProductTile(NamedTuple):
    """What a program computes, and how."""

    rows: int = 128
    columns: int = 128
    depth: int = 32
    """Values of a sum that tensor cores add up: a sum of 64 would be off by twice as much."""
    warps: int = 8
    stages: int = 3


@triton.jit
def _rounded(x):
    """x to 11 bits, half away from zero. Values near the greatest become infinite, and some NaN zero."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _cut(x, CUT: tl.constexpr):
    """x as tensor cores read it, without its last 13 bits: to be done where there are none (CUT)."""
    return (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True) if CUT else x


@triton.jit
def _split(b_ptr, high_ptr, low_ptr, matrices, rows, width, padded, b_g, b_n, b_k, VALUES: tl.constexpr):
    """``high`` and ``low`` (matrices, rows, padded), zeros behind ``width``, of b with any strides."""
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    row, k = at // padded, at % padded
    there = row < matrices * rows
    b = tl.load(b_ptr + row // rows * b_g + row % rows * b_n + k * b_k, mask=there & (k < width), other=0.0)
    high = _rounded(b)
    low = b - high
    low = tl.where(low == low, _rounded(low), low)
    tl.store(high_ptr + at, high, mask=there)
    tl.store(low_ptr + at, low, mask=there)


@triton.jit
def _write_float32(
    a_ptr, b_ptr, bias_ptr, out_ptr, first_row, rows, columns, column, depth, a_m, a_k, b_n, b_k,
    BIAS: tl.constexpr, BM: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """A tile without tensor cores, a few rows at a time: it must not take the registers of the usual way."""
    column_ok = column < columns
    b_column = b_ptr + column.to(tl.int64) * b_n
    for start in tl.range(0, BM, FEW, num_stages=1, loop_unroll_factor=1):
        row = first_row + start + tl.arange(0, FEW).to(tl.int64)
        row_ok = row < rows
        a_at, b_at = a_ptr + row * a_m, b_column
        total = tl.zeros((FEW, column.shape[0]), tl.float32)
        for _ in tl.range(0, depth, num_stages=1, loop_unroll_factor=1):
            a = tl.load(a_at, mask=row_ok, other=0.0)
            b = tl.load(b_at, mask=column_ok, other=0.0)
            total += a[:, None] * b[None, :]
            a_at += a_k
            b_at += b_k
        if BIAS:
            total += tl.load(bias_ptr + column, mask=column_ok, other=0.0)[None, :]
        at = out_ptr + row[:, None] * columns + column[None, :]
        tl.store(at, total, mask=row_ok[:, None] & column_ok[None, :])


@triton.jit
def _product(
    a_ptr, b_ptr, high_ptr, low_ptr, bias_ptr, out_ptr, rows, columns, depth, part_depth,
    a_g, a_m, a_k, b_g, b_n, b_k, high_n,
    SPLIT: tl.constexpr, BIAS: tl.constexpr, CUT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # Programs that run at once have all columns of a few rows: the second-level cache holds what they read again.
    across = tl.cdiv(columns, BN)
    first_row = tl.program_id(0) // across * BM
    row = first_row + tl.arange(0, BM)
    column = tl.program_id(0) % across * BN + tl.arange(0, BN)
    row_ok, column_ok = row < rows, column < columns
    first = tl.program_id(1).to(tl.int64) * part_depth
    length = tl.minimum(depth - first, part_depth).to(tl.int32)
    g = tl.program_id(2).to(tl.int64)
    a_ptr += g * a_g + first * a_k
    b_ptr += g * b_g + first * b_k
    out_ptr += (tl.program_id(1) * tl.num_programs(2) + g) * rows * columns
    if BIAS:
        bias_ptr += g * columns
    step = tl.arange(0, BK)
    a_at = a_ptr + (row.to(tl.int64) * a_m)[:, None] + (step * a_k)[None, :]
    b_at = b_ptr + (column.to(tl.int64) * b_n)[None, :] + (step * b_k)[:, None]
    split_at = ((g * columns + column) * high_n + first)[None, :] + step[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, length, BK):
        inside = step < length - k
        a = tl.load(a_at, mask=row_ok[:, None] & inside[None, :], other=0.0)
        a_high = _rounded(a)
        a_low = _cut(a - a_high, CUT)
        if SPLIT:
            b_high = tl.load(high_ptr + split_at, mask=column_ok[None, :], other=0.0)
            b_low = tl.load(low_ptr + split_at, mask=column_ok[None, :], other=0.0)
            split_at += BK
        else:
            b = tl.load(b_at, mask=column_ok[None, :] & inside[:, None], other=0.0)
            b_high = _rounded(b)
            b_low = _cut(b - b_high, CUT)
            b_at += BK * b_k
        found = tl.dot(a_low, b_high, input_precision="tf32")
        found = tl.dot(a_high, b_low, found, input_precision="tf32")
        total += tl.dot(a_high, b_high, found, input_precision="tf32")
        a_at += BK * a_k
    # NaN, if a value is not finite, or so great (2^121) that a stretch's sum may have been cut off at the greatest.
    if tl.sum(total * 128.0 * 0.0) != 0.0:
        sizes = first_row, rows, columns, column, length
        _write_float32(a_ptr, b_ptr, bias_ptr, out_ptr, *sizes, a_m, a_k, b_n, b_k, BIAS, BM, 16)
    else:
        if BIAS:
            total += tl.load(bias_ptr + column, mask=column_ok, other=0.0)[None, :]
        at = out_ptr + (row.to(tl.int64) * columns)[:, None] + column[None, :]
        tl.store(at, total, mask=row_ok[:, None] & column_ok[None, :])


def _tile(columns: int, depth: int) -> ProductTile:
    """By the width of the result; values of ``SSAMBA_FP32`` stand in place of the chosen ones.

    64 columns take half the registers, so two programs share a multiprocessor.
    """
    _, given = environment.fp32_products()
    tile = ProductTile(columns=128 if columns % 128 == 0 and _MIN_WIDE_DEPTH <= depth < MIN_LONG else 64)
    return tile._replace(**{name: value for name, value in given.items() if name != "parts"})


def _parts(matrices: int, rows: int, columns: int, depth: int, tile: ProductTile) -> int:
    """Parts that a long sum is cut into, so that there are programs enough: sizes alone decide."""
    _, given = environment.fp32_products()
    programs = matrices * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    least = 1 if depth < MIN_LONG else min(max(1, _PROGRAMS // programs), depth // (MIN_LONG // 4))
    return given.get("parts", least)


def _plain_strides(matrices: Tensor) -> Tensor:
    """``matrices`` with neighbours in one of their two directions: they themselves, or a copy."""
    return matrices if 1 in matrices.stride()[1:] else matrices.contiguous()


def product(a_GMk: Tensor, b_GNk: Tensor, bias_GN: Tensor | None = None) -> Tensor:
    """``a b^T + bias`` (G, M, N), contiguous, of float32 matrices with any strides. The same bits for the same sizes.

    Splitting the rows of ``a`` among calls changes no bit, unless sizes change how a long sum is cut.
    """
    (matrices, rows, depth), columns = a_GMk.shape, b_GNk.shape[1]
    if not (matrices and rows and columns and depth):
        out = a_GMk.new_zeros(matrices, rows, columns)
        return out if bias_GN is None else out + bias_GN[:, None]
    a, b = _plain_strides(a_GMk), _plain_strides(b_GNk)
    bias = None if bias_GN is None else bias_GN.contiguous()
    tile = _tile(columns, depth)
    parts = _parts(matrices, rows, columns, depth, tile)
    part_depth = triton.cdiv(triton.cdiv(depth, parts), tile.depth) * tile.depth
    parts = triton.cdiv(depth, part_depth)
    form, _ = environment.fp32_products()
    pays = b.numel() <= MAX_SPLIT_VALUES and (parts == 1 or rows >= _MIN_SPLIT_ROWS)
    split = form == "split" or (form != "fused" and pays)
    high, low = _halves(b, tile.depth) if split else (b, b)
    out_xGMN = a.new_empty(parts, matrices, rows, columns)
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    _product[(programs, parts, matrices)](
        a, b, high, low, bias, out_xGMN, rows, columns, depth, part_depth, *a.stride(), *b.stride(), high.stride(1),
        SPLIT=split, BIAS=bias is not None and parts == 1, CUT=environment.interprets_triton(),
        BM=tile.rows, BN=tile.columns, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if parts == 1:
        return out_xGMN[0]
    out = a.new_empty(matrices, rows, columns)
    partial_sums.add_parts([(out_xGMN, out)])
    return out if bias is None else out.add_(bias[:, None])


def _halves(b: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """``high`` and ``low`` of b, rows padded with zeros to a multiple of ``depth``."""
    matrices, rows, width = b.shape
    padded = triton.cdiv(width, depth) * depth
    high, low = torch.empty(2, matrices, rows, padded, dtype=b.dtype, device=b.device)
    programs = triton.cdiv(matrices * rows * padded, _SPLIT_VALUES)
    sizes = matrices, rows, width, padded
    _split[(programs,)](b, high, low, *sizes, *b.stride(), VALUES=_SPLIT_VALUES, num_warps=4)
    return high, low
