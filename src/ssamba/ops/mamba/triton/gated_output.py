# mypy: disable-error-code="no-untyped-def"
"""Gate and output product of a pair after the scan, in one pass that makes z as it goes, so that z is never in memory.

A program owns some tokens: it normalises their stream, and for some channels at a time multiplies out z, gates y with
it and adds to the output product, whose sums it keeps in registers. y is read once, and nothing is written but the
output. Two matrix products by tensor cores follow each other there as in fused attention. All of a token's outputs are
then in one program, so that it can also add them to the stream and normalise that, as the next pair begins.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssamba.ops.jit.limits import dynamic_limit

_WIDEST = 192  # of the stream: with more, registers spill, and pieces are as fast
_TOKENS, _CHANNELS = 64, 32  # of a program, at a time: two programs share a multiprocessor
_SHARED = 107 * 1024  # bytes that three stages take at the widest; two take 77 KB


@triton.jit
def _silu(z, TANH: tl.constexpr):
    # By the hardware's tanh, right to 2^-11, which is less than rounding to bfloat16 takes.
    if TANH:
        half = 0.5 * z
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [half], tl.float32, is_pure=True, pack=1)
        return half * t + half
    return tl.fdiv(z, 1.0 + tl.exp2(z * -1.4426950408889634))


@triton.jit
def _gated_output(
    y_ptr, stream_ptr, wz_ptr, bz_ptr, wo_ptr, out_ptr, rows, eps, res_scale,
    JOIN: tl.constexpr, TANH: tl.constexpr,
    X: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # The width in two parts, each a power of two: D0 + D1 = D, D1 may be 0.
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    ok = (row < rows)[:, None]
    c0 = tl.arange(0, D0)
    s0 = tl.load(stream_ptr + row[:, None] * D + c0[None, :], mask=ok, other=0.0).to(tl.float32)
    mean = tl.sum(s0, 1)
    if D1 > 0:
        c1 = D0 + tl.arange(0, D1)
        s1 = tl.load(stream_ptr + row[:, None] * D + c1[None, :], mask=ok, other=0.0).to(tl.float32)
        mean += tl.sum(s1, 1)
    mean /= D
    # The product's sums begin with the stream where they join it: it then need not be read again.
    sum0 = s0 * res_scale if JOIN else tl.zeros((BM, D0), tl.float32)
    s0 -= mean[:, None]
    square = tl.sum(s0 * s0, 1)
    if D1 > 0:
        sum1 = s1 * res_scale if JOIN else tl.zeros((BM, D1), tl.float32)
        s1 -= mean[:, None]
        square += tl.sum(s1 * s1, 1)
    rstd = 1.0 / tl.sqrt(square / D + eps)
    n0 = (s0 * rstd[:, None]).to(wz_ptr.dtype.element_ty)
    if D1 > 0:
        n1 = (s1 * rstd[:, None]).to(wz_ptr.dtype.element_ty)
    column = tl.arange(0, BN)
    y_next = tl.load(y_ptr + row[:, None] * X + column[None, :], mask=ok, other=0.0)
    for first in range(0, X, BN):
        x = first + column
        y = y_next.to(tl.float32)
        y_next = tl.load(y_ptr + row[:, None] * X + (x + BN)[None, :], mask=ok & (first + BN < X), other=0.0)
        z = tl.dot(n0, tl.load(wz_ptr + c0[:, None] + x[None, :] * D))
        if D1 > 0:
            z = tl.dot(n1, tl.load(wz_ptr + c1[:, None] + x[None, :] * D), z)
        z += tl.load(bz_ptr + x).to(tl.float32)[None, :]
        gated = (y * _silu(z, TANH)).to(wo_ptr.dtype.element_ty)
        sum0 = tl.dot(gated, tl.load(wo_ptr + c0[None, :] * X + x[:, None]), sum0)
        if D1 > 0:
            sum1 = tl.dot(gated, tl.load(wo_ptr + c1[None, :] * X + x[:, None]), sum1)
    at = row[:, None] * D
    if JOIN:
        tl.store(stream_ptr + at + c0[None, :], sum0.to(stream_ptr.dtype.element_ty), mask=ok)
        mean = tl.sum(sum0, 1)
        if D1 > 0:
            tl.store(stream_ptr + at + c1[None, :], sum1.to(stream_ptr.dtype.element_ty), mask=ok)
            mean += tl.sum(sum1, 1)
        mean /= D
        sum0 -= mean[:, None]
        square = tl.sum(sum0 * sum0, 1)
        if D1 > 0:
            sum1 -= mean[:, None]
            square += tl.sum(sum1 * sum1, 1)
        rstd = 1.0 / tl.sqrt(square / D + eps)
        sum0 *= rstd[:, None]
        if D1 > 0:
            sum1 *= rstd[:, None]
    tl.store(out_ptr + at + c0[None, :], sum0.to(out_ptr.dtype.element_ty), mask=ok)
    if D1 > 0:
        tl.store(out_ptr + at + c1[None, :], sum1.to(out_ptr.dtype.element_ty), mask=ok)


def parts_of(width: int) -> tuple[int, int] | None:
    """The width as two powers of two that a tensor core takes, the second of which may be 0; None if it is not so."""
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return (first, rest) if first >= 16 and (rest == 0 or (rest >= 16 and rest & (rest - 1) == 0)) else None


def usable(y_TX: Tensor, stream_Td: Tensor) -> bool:
    """Whether the one pass takes these sizes and this dtype."""
    width, channels = stream_Td.shape[1], y_TX.shape[1]
    fits = width <= _WIDEST and parts_of(width) is not None and channels % _CHANNELS == 0
    return fits and y_TX.dtype == torch.bfloat16


def gated_output(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, out_Td: Tensor, eps: float,
    residual_scale: float | None = None,
) -> None:  # fmt: skip
    """``out = (y silu(LayerNorm(stream) weight^T + bias)) out_proj^T``, all contiguous.

    With a ``residual_scale``, ``stream = residual_scale stream + that`` and ``out = LayerNorm(stream)``, both from the
    product's float32 sums.
    """
    rows, width = stream_Td.shape
    parts = parts_of(width)
    assert parts is not None
    if rows:
        stages = 2 if y_TX.is_cuda and dynamic_limit(y_TX.device.index or 0) < _SHARED else 3
        join, nvidia = residual_scale is not None, y_TX.is_cuda and torch.version.hip is None
        _gated_output[(triton.cdiv(rows, _TOKENS),)](
            y_TX, stream_Td, weight_Xd, bias_X, out_proj_dX, out_Td, rows, eps, residual_scale if join else 0.0,
            JOIN=join, TANH=nvidia, X=y_TX.shape[1], D=width, D0=parts[0], D1=parts[1], BM=_TOKENS,
            BN=_CHANNELS, num_warps=4, num_stages=stages,
        )  # fmt: skip
