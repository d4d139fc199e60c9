# mypy: disable-error-code="no-untyped-def"
"""Depthwise convolution + SiLU in both directions: alone, and fused with the x projection."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(v * -1.4426950408889634))


@triton.jit
def _sign(r, k, ALT: tl.constexpr):
    """1 where direction r of mixer k reads from right to left, else -1. ALT: every second mixer does, with one
    direction."""
    return 2 * (k % 2) - 1 if ALT else 2 * r - 1


@triton.jit
def _preactivation(
    x_ptr, w_ptr, b_ptr, t, length, stride_t, col, col_ok, width, sign, W: tl.constexpr
):  # fmt: skip
    """bias + sum_j w[W-1-j] x[t + sign j] for a tile of positions ``t`` (any int vector) and channels ``col``."""
    v = tl.load(b_ptr + col, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(W):
        w = tl.load(w_ptr + col * W + (W - 1 - j), mask=col_ok, other=0.0).to(tl.float32)
        at = t + j * sign
        ok = ((at >= 0) & (at < length))[:, None] & col_ok[None, :]
        v += w[None, :] * tl.load(x_ptr + at[:, None] * stride_t + col[None, :], mask=ok, other=0.0).to(tl.float32)
    return v


@triton.jit
def _conv_silu(
    x_ptr, w_ptr, b_ptr, u_ptr, batch, length, width, stride_b, stride_t, stride_k,
    R: tl.constexpr, K: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, ALT: tl.constexpr,
):  # fmt: skip
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
        u = v * _sigmoid(v)
        at = ((rk * batch + b) * length + t[:, None]) * width + col[None, :]
        tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _conv_proj(
    x_ptr, w_ptr, b_ptr, proj_ptr, p_ptr, batch, length, width, stride_b, stride_t, stride_k,
    R: tl.constexpr, K: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
    BT: tl.constexpr, BE: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr, ALT: tl.constexpr,
):  # fmt: skip
    """p = silu(conv(x)) @ proj^T for every direction; u stays in registers, one read of x serves both."""
    t = tl.program_id(0) * BT + tl.arange(0, BT).to(tl.int64)
    b = (tl.program_id(1) // K).to(tl.int64)
    k = tl.program_id(1) % K
    x_ptr += b * stride_b + k * stride_k
    out = tl.arange(0, BP)
    acc0 = tl.zeros((BT, BP), tl.float32)
    acc1 = tl.zeros((BT, BP), tl.float32)
    dtype = p_ptr.dtype.element_ty
    for start in range(0, width, BE):
        col = start + tl.arange(0, BE)
        col_ok = col < width
        w_ok = col_ok[:, None] & (out < P)[None, :]
        w_at = out[None, :] * width + col[:, None]
        v = _preactivation(
            x_ptr, w_ptr + k * width * W, b_ptr + k * width, t, length, stride_t, col, col_ok, width,
            _sign(0, k, ALT), W,
        )  # fmt: skip
        u = tl.where(col_ok[None, :], v * _sigmoid(v), 0.0).to(dtype)
        proj = tl.load(proj_ptr + k * P * width + w_at, mask=w_ok, other=0.0).to(dtype)
        acc0 = tl.dot(u, proj, acc0, input_precision=PREC)
        if R == 2:
            rk = K + k
            v = _preactivation(
                x_ptr, w_ptr + rk * width * W, b_ptr + rk * width, t, length, stride_t, col, col_ok, width, 1, W
            )
            u = tl.where(col_ok[None, :], v * _sigmoid(v), 0.0).to(dtype)
            proj = tl.load(proj_ptr + rk * P * width + w_at, mask=w_ok, other=0.0).to(dtype)
            acc1 = tl.dot(u, proj, acc1, input_precision=PREC)
    ok = (t < length)[:, None] & (out < P)[None, :]
    at = ((k.to(tl.int64) * batch + b) * length + t[:, None]) * P + out[None, :]
    tl.store(p_ptr + at, acc0.to(dtype), mask=ok)
    if R == 2:
        at = (((K + k).to(tl.int64) * batch + b) * length + t[:, None]) * P + out[None, :]
        tl.store(p_ptr + at, acc1.to(dtype), mask=ok)


def _tiles(width: int) -> tuple[int, int]:
    """Positions and channels of an elementwise tile."""
    channels = min(64, max(16, triton.next_power_of_2(width)))
    return 2048 // channels, channels


def conv_silu(x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, alternating: bool = False) -> Tensor:
    """``u_GBLE`` for all directions and blocks; ``x`` may be strided in all but its last dimension."""
    batch, length, blocks, width = x_BLKE.shape
    directions, taps = weight_RKEW.shape[0], weight_RKEW.shape[-1]
    u = x_BLKE.new_empty(directions * blocks, batch, length, width)
    bt, be = _tiles(width)
    if u.numel():
        _conv_silu[(triton.cdiv(length, bt), triton.cdiv(width, be), batch * blocks)](
            x_BLKE, weight_RKEW, bias_RKE, u, batch, length, width, *x_BLKE.stride()[:3],
            R=directions, K=blocks, W=taps, BT=bt, BE=be, ALT=alternating, num_warps=4,
        )  # fmt: skip
    return u


def conv_proj(
    x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, proj_RKPE: Tensor, alternating: bool = False
) -> Tensor:
    """``p_GBLP = silu(conv(x)) proj^T`` without writing ``silu(conv(x))`` to memory."""
    batch, length, blocks, width = x_BLKE.shape
    directions, taps, outputs = weight_RKEW.shape[0], weight_RKEW.shape[-1], proj_RKPE.shape[2]
    p = x_BLKE.new_empty(directions * blocks, batch, length, outputs)
    bp = max(16, triton.next_power_of_2(outputs))
    precision = "ieee" if x_BLKE.dtype != torch.float32 or torch.version.cuda is None else "tf32x3"
    # Three tf32 products keep their operands three times over: they, and wide outputs, need a smaller tile to fit.
    bt, stages = (64, 3) if bp <= 128 and x_BLKE.dtype != torch.float32 else (32, 1)
    if p.numel():
        _conv_proj[(triton.cdiv(length, bt), batch * blocks)](
            x_BLKE, weight_RKEW, bias_RKE, proj_RKPE, p, batch, length, width, *x_BLKE.stride()[:3],
            R=directions, K=blocks, W=taps, P=outputs, BT=bt, BE=32, BP=bp, PREC=precision,
            ALT=alternating, num_warps=4, num_stages=stages,
        )  # fmt: skip
    return p
