# mypy: disable-error-code="no-untyped-def"
"""Backward of the depthwise convolution + SiLU in both directions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssamba.ops.mamba.triton.conv import _preactivation, _sigmoid, _sign, _tiles


@triton.jit
def _activation_backward(
    x_ptr, w_ptr, b_ptr, du_ptr, u_ptr, batch, length, width, stride_b, stride_t, stride_k,
    R: tl.constexpr, K: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, ALT: tl.constexpr,
):  # fmt: skip
    """du becomes du silu'(v) in place, and u is written: the projection's weight gradient needs it."""
    t = tl.program_id(0) * BT + tl.arange(0, BT).to(tl.int64)
    col = tl.program_id(1) * BE + tl.arange(0, BE)
    b = (tl.program_id(2) // K).to(tl.int64)
    k = tl.program_id(2) % K
    col_ok = col < width
    ok = (t < length)[:, None] & col_ok[None, :]
    x_ptr += b * stride_b + k * stride_k
    for r in tl.static_range(R):
        rk = (r * K + k).to(tl.int64)
        v = _preactivation(
            x_ptr, w_ptr + rk * width * W, b_ptr + rk * width, t, length, stride_t, col, col_ok, width,
            _sign(r, k, ALT), W,
        )  # fmt: skip
        sig = _sigmoid(v)
        at = ((rk * batch + b) * length + t[:, None]) * width + col[None, :]
        du = tl.load(du_ptr + at, mask=ok, other=0.0).to(tl.float32)
        g = du * sig * (1.0 + v * (1.0 - sig))
        tl.store(du_ptr + at, g.to(du_ptr.dtype.element_ty), mask=ok)
        tl.store(u_ptr + at, (v * sig).to(u_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _tap_gradients(
    x, x_at_t, g_ptr, w_ptr, acc, dx, t, length, width, col, col_ok, sign, W: tl.constexpr, WP: tl.constexpr,
):  # fmt: skip
    """Adds one direction's share to ``dx`` and, row j of ``acc`` for tap j (row W for the bias), to the weights."""
    row = tl.arange(0, WP)
    for j in tl.static_range(W):
        at = t - j * sign
        ok = ((at >= 0) & (at < length) & x_at_t)[:, None] & col_ok[None, :]
        g = tl.load(g_ptr + at[:, None] * width + col[None, :], mask=ok, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + col * W + (W - 1 - j), mask=col_ok, other=0.0).to(tl.float32)
        dx += g * w[None, :]
        acc += tl.where(row[:, None] == W - 1 - j, tl.sum(g * x, 0)[None, :], 0.0)
        if j == 0:
            acc += tl.where(row[:, None] == W, tl.sum(g, 0)[None, :], 0.0)
    return acc, dx


@triton.jit
def _conv_backward(
    x_ptr, w_ptr, g_ptr, dx_ptr, part_ptr, batch, length, width, steps,
    stride_b, stride_t, stride_k, dstride_b, dstride_t, dstride_k,
    R: tl.constexpr, K: tl.constexpr, W: tl.constexpr, WP: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
    ALT: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """dx[t] = sum over r, j of w_r[W-1-j] g_r[t +- j]; the same reads of g give the weights' gradient, g_r[t +- j]
    x[t].

    One program owns ``steps`` positions and writes its sums over them: (time part, B, R, K, W + 1, E), bias last.
    SUMS: a row more is the sums of dx, in direction 0.
    """
    col = tl.program_id(0) * BE + tl.arange(0, BE)
    b = (tl.program_id(2) // K).to(tl.int64)
    k = tl.program_id(2) % K
    col_ok = col < width
    x_ptr += b * stride_b + k * stride_k
    dx_ptr += b * dstride_b + k * dstride_k
    g0_ptr = g_ptr + (k * batch + b) * length * width
    g1_ptr = g_ptr + ((K + k) * batch + b) * length * width
    first = tl.program_id(1) * steps
    acc0 = tl.zeros((WP, BE), tl.float32)
    acc1 = tl.zeros((WP, BE), tl.float32)
    for start in range(first, tl.minimum(first + steps, length), BT):
        t = start + tl.arange(0, BT).to(tl.int64)
        ok_t = (t < length) & (t < first + steps)
        ok = ok_t[:, None] & col_ok[None, :]
        x = tl.load(x_ptr + t[:, None] * stride_t + col[None, :], mask=ok, other=0.0).to(tl.float32)
        dx = tl.zeros((BT, BE), tl.float32)
        acc0, dx = _tap_gradients(
            x, ok_t, g0_ptr, w_ptr + k * width * W, acc0, dx, t, length, width, col, col_ok, _sign(0, k, ALT), W, WP
        )
        if R == 2:
            acc1, dx = _tap_gradients(
                x, ok_t, g1_ptr, w_ptr + (K + k) * width * W, acc1, dx, t, length, width, col, col_ok, 1, W, WP
            )
        if SUMS:
            acc0 += tl.where(tl.arange(0, WP)[:, None] == W + 1, tl.sum(dx, 0)[None, :], 0.0)
        tl.store(dx_ptr + t[:, None] * dstride_t + col[None, :], dx.to(dx_ptr.dtype.element_ty), mask=ok)
    row = tl.arange(0, WP)
    part_ptr += ((tl.program_id(1) * batch + b) * R * K + k) * (W + 1 + SUMS) * width
    ok = (row < W + 1 + SUMS)[:, None] & col_ok[None, :]
    tl.store(part_ptr + row[:, None] * width + col[None, :], acc0, mask=ok)
    if R == 2:
        tl.store(part_ptr + K * (W + 1 + SUMS) * width + row[:, None] * width + col[None, :], acc1, mask=ok)


@triton.jit
def _tap(x, g_ptr, w_ptr, acc, dx, t, ok_t, length, width, col, col_ok, j: tl.constexpr, sign):
    """One tap of a four-tap convolution, sums still spread over the tile."""
    at = t - j * sign
    ok = ((at >= 0) & (at < length) & ok_t)[:, None] & col_ok[None, :]
    g = tl.load(g_ptr + at[:, None] * width + col[None, :], mask=ok, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + col * 4 + (3 - j), mask=col_ok, other=0.0).to(tl.float32)
    return acc + g * x, dx + g * w[None, :], g


@triton.jit
def _store_sums(to, tiles, width, col_ok):
    """The sums of each tile over its tokens, a row for each."""
    for i in tl.static_range(len(tiles)):
        tl.store(to + i * width, tl.sum(tiles[i], 0), mask=col_ok)


@triton.jit
def _conv_backward4(
    x_ptr, w_ptr, g_ptr, dx_ptr, part_ptr, batch, length, width, steps,
    stride_b, stride_t, stride_k, dstride_b, dstride_t, dstride_k,
    R: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, ALT: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """``_conv_backward`` for four taps: the sums over steps stay spread over the threads until the end."""
    col = tl.program_id(0) * BE + tl.arange(0, BE)
    b = (tl.program_id(2) // K).to(tl.int64)
    k = tl.program_id(2) % K
    col_ok = col < width
    x_ptr += b * stride_b + k * stride_k
    dx_ptr += b * dstride_b + k * dstride_k
    g0 = g_ptr + (k * batch + b) * length * width
    g1 = g_ptr + ((K + k) * batch + b) * length * width
    w0 = w_ptr + k * width * 4
    w1 = w_ptr + (K + k) * width * 4
    first = tl.program_id(1) * steps
    sign = _sign(0, k, ALT)
    a0 = tl.zeros((BT, BE), tl.float32)
    a1, a2, a3, a4, c0, c1, c2, c3, c4, total = a0, a0, a0, a0, a0, a0, a0, a0, a0, a0
    for start in range(first, tl.minimum(first + steps, length), BT):
        t = start + tl.arange(0, BT).to(tl.int64)
        ok_t = (t < length) & (t < first + steps)
        ok = ok_t[:, None] & col_ok[None, :]
        x = tl.load(x_ptr + t[:, None] * stride_t + col[None, :], mask=ok, other=0.0).to(tl.float32)
        dx = tl.zeros((BT, BE), tl.float32)
        a3, dx, g = _tap(x, g0, w0, a3, dx, t, ok_t, length, width, col, col_ok, 0, sign)
        a4 += g
        a2, dx, g = _tap(x, g0, w0, a2, dx, t, ok_t, length, width, col, col_ok, 1, sign)
        a1, dx, g = _tap(x, g0, w0, a1, dx, t, ok_t, length, width, col, col_ok, 2, sign)
        a0, dx, g = _tap(x, g0, w0, a0, dx, t, ok_t, length, width, col, col_ok, 3, sign)
        if R == 2:
            c3, dx, g = _tap(x, g1, w1, c3, dx, t, ok_t, length, width, col, col_ok, 0, 1)
            c4 += g
            c2, dx, g = _tap(x, g1, w1, c2, dx, t, ok_t, length, width, col, col_ok, 1, 1)
            c1, dx, g = _tap(x, g1, w1, c1, dx, t, ok_t, length, width, col, col_ok, 2, 1)
            c0, dx, g = _tap(x, g1, w1, c0, dx, t, ok_t, length, width, col, col_ok, 3, 1)
        if SUMS:
            total += dx
        tl.store(dx_ptr + t[:, None] * dstride_t + col[None, :], dx.to(dx_ptr.dtype.element_ty), mask=ok)
    part_ptr += ((tl.program_id(1) * batch + b) * R * K + k) * (5 + SUMS) * width + col
    _store_sums(part_ptr, (a0, a1, a2, a3, a4), width, col_ok)
    if SUMS:
        _store_sums(part_ptr + 5 * width, (total,), width, col_ok)
    if R == 2:
        _store_sums(part_ptr + K * (5 + SUMS) * width, (c0, c1, c2, c3, c4), width, col_ok)


def backward(
    x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, du_GBLE: Tensor, dx_BLKE: Tensor,
    alternating: bool = False, token_sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Writes ``dx``; returns ``u_GBLE``, parts of the gradients of the taps and, after them, the bias, and with
    ``token_sums`` parts ``xKE`` of the sums of ``dx``.

    ``du`` is used up.
    """
    u, taps = _activation_backward_(x_BLKE, weight_RKEW, bias_RKE, du_GBLE, alternating), weight_RKEW.shape[-1]
    part_xRKVE = _conv_backward_(x_BLKE, weight_RKEW, du_GBLE, dx_BLKE, alternating, token_sums)
    return u, part_xRKVE[..., : taps + 1, :], part_xRKVE[:, 0, :, taps + 1] if token_sums else None


def _activation_backward_(
    x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, du_GBLE: Tensor, alternating: bool
) -> Tensor:
    """Multiplies ``du`` by silu' at the pre-activation, in place, and returns ``u_GBLE``."""
    batch, length, blocks, width = x_BLKE.shape
    u = torch.empty_like(du_GBLE)
    bt, be = _tiles(width)
    if u.numel():
        _activation_backward[(triton.cdiv(length, bt), triton.cdiv(width, be), batch * blocks)](
            x_BLKE, weight_RKEW, bias_RKE, du_GBLE, u, batch, length, width, *x_BLKE.stride()[:3],
            R=weight_RKEW.shape[0], K=blocks, W=weight_RKEW.shape[-1], BT=bt, BE=be, ALT=alternating,
            num_warps=4,
        )  # fmt: skip
    return u


def _conv_backward_(
    x_BLKE: Tensor, weight_RKEW: Tensor, g_GBLE: Tensor, dx_BLKE: Tensor, alternating: bool, token_sums: bool
) -> Tensor:
    """Writes ``dx`` (strided like ``x`` may be); returns (x, R, K, V, E), parts of the gradients in float32.

    V is W + 1, and one more with ``token_sums``.
    """
    batch, length, blocks, width = x_BLKE.shape
    directions, taps = weight_RKEW.shape[0], weight_RKEW.shape[-1]
    bt, be = _tiles(width)
    bt //= 2
    column_programs = triton.cdiv(width, be) * batch * blocks
    # Enough programs to fill a large GPU, few enough that the partial sums stay small.
    parts = max(1, min(triton.cdiv(length, 8 * bt), triton.cdiv(2048, max(column_programs, 1))))
    steps = triton.cdiv(triton.cdiv(length, parts), bt) * bt
    parts = max(1, triton.cdiv(length, steps)) if steps else 1
    rows = taps + 1 + token_sums
    part = torch.zeros(parts, batch, directions, blocks, rows, width, device=x_BLKE.device, dtype=torch.float32)
    grid = (triton.cdiv(width, be), parts, batch * blocks)
    strides = (*x_BLKE.stride()[:3], *dx_BLKE.stride()[:3])
    if g_GBLE.numel() and taps == 4:
        _conv_backward4[grid](
            x_BLKE, weight_RKEW, g_GBLE, dx_BLKE, part, batch, length, width, steps, *strides,
            R=directions, K=blocks, BT=bt, BE=be, ALT=alternating, SUMS=int(token_sums), num_warps=4,
        )  # fmt: skip
    elif g_GBLE.numel():
        _conv_backward[grid](
            x_BLKE, weight_RKEW, g_GBLE, dx_BLKE, part, batch, length, width, steps, *strides,
            R=directions, K=blocks, W=taps, WP=triton.next_power_of_2(rows), BT=bt, BE=be, ALT=alternating,
            SUMS=int(token_sums), num_warps=4,
        )  # fmt: skip
    return part.flatten(0, 1)
