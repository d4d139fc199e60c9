# mypy: disable-error-code="no-untyped-def"
"""The selective scan in both directions with skip, mean and gate: the portable form (one program, a few channels).

The two directions meet in the middle: in phase 1 each scans its first half and writes its raw output; in phase 2 each
goes on over the other's half, adds what it finds there, halves, gates and writes the result. So all directions and
blocks run at once and none waits for, or races with, another inside a launch.

States are carried over the phases in ``state_BGEN``. Saved states: ``ckpt`` holds the state at the start of each tile
of ``TILE`` steps; tiles are counted from the start of each phase (``tiles``), which is where the backward cuts them
too.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssamba.ops.mamba.triton.conv import _sigmoid

TILE = 16


def tiles(length: int, directions: int, tile: int = TILE) -> int:
    """Tiles that ``length`` steps are cut into, over both phases (the same number for both directions)."""
    if directions == 1:
        return -(-length // tile)
    half = (length + 1) // 2
    return -(-half // tile) + -(-(length - half) // tile)


@triton.jit
def _softplus(v):
    # log(1 + e) loses digits for small e: a short series takes over there.
    e = tl.exp(tl.minimum(v, 20.0))
    small = e * (1.0 - e * (0.5 - e * (0.33333333 - e * 0.25)))
    return tl.where(v > 20.0, v, tl.where(e < 0.0625, small, tl.log(1.0 + e)))


@triton.jit
def _phase_range(length, r, PHASE: tl.constexpr):
    """Steps (scan order) of one direction in one phase; phase 0 is the whole scan of a single direction."""
    half = (length + 1) // 2
    cut = tl.where(r == 0, half, length - half)
    if PHASE == 0:
        lo, hi = 0 * length, length
    elif PHASE == 1:
        lo, hi = 0 * length, cut
    else:
        lo, hi = cut, length
    return lo, hi


@triton.jit
def _forward(
    u_ptr, dt_ptr, p_ptr, z_ptr, a_log_ptr, d_ptr, bias_ptr, y_ptr, state_ptr, ckpt_ptr, dy_ptr, dz_ptr, sum_ptr,
    batch, length, width, count, stride_b, stride_t, stride_k, dstride_b, dstride_t, dstride_k,
    R: tl.constexpr, K: tl.constexpr, N: tl.constexpr, P: tl.constexpr, RANK: tl.constexpr, PHASE: tl.constexpr,
    GRAD: tl.constexpr, GATE: tl.constexpr, TILE: tl.constexpr, NP: tl.constexpr, BE: tl.constexpr,
    ALT: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    col = tl.program_id(0) * BE + tl.arange(0, BE)
    n = tl.arange(0, NP)
    b = (tl.program_id(1) // K).to(tl.int64)
    k = tl.program_id(1) % K
    r = tl.program_id(2)
    reverse = k % 2 if ALT else r  # whether steps go from right to left
    rk = (r * K + k).to(tl.int64)
    col_ok = col < width
    n_ok = n < N
    en_ok = n_ok[:, None] & col_ok[None, :]
    en = col[None, :] * N + n[:, None]
    a2 = -1.4426950408889634 * tl.exp(tl.load(a_log_ptr + rk * width * N + en, mask=en_ok, other=0.0).to(tl.float32))
    skip = tl.load(d_ptr + rk * width + col, mask=col_ok, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + rk * width + col, mask=col_ok, other=0.0).to(tl.float32)
    row0 = (rk * batch + b) * length
    z_ptr += b * stride_b + k * stride_k + col
    dz_ptr += b * dstride_b + k * dstride_k + col
    state_ptr += (rk * batch + b) * width * N
    ckpt_ptr += (rk * batch + b) * count * width * N
    h = tl.zeros((NP, BE), tl.float32)
    if PHASE == 2:
        h = tl.load(state_ptr + en, mask=en_ok, other=0.0)
    lo, hi = _phase_range(length, r, PHASE)
    tile0 = 0
    if PHASE == 2:
        tile0 = ((length + 1) // 2 + TILE - 1) // TILE
        if R == 2:
            tile0 = tl.where(r == 0, tile0, (length // 2 + TILE - 1) // TILE)
    dz_sum = tl.zeros((BE,), tl.float32)
    for s in range(lo, hi):
        t = tl.where(reverse == 0, s, length - 1 - s).to(tl.int64)
        if GRAD and (s - lo) % TILE == 0:
            tl.store(ckpt_ptr + (tile0 + (s - lo) // TILE) * width * N + en, h, mask=en_ok)
        row = row0 + t
        u = tl.load(u_ptr + row * width + col, mask=col_ok, other=0.0).to(tl.float32)
        delta = _softplus(tl.load(dt_ptr + row * width + col, mask=col_ok, other=0.0).to(tl.float32) + bias)
        b_in = tl.load(p_ptr + row * P + RANK + n, mask=n_ok, other=0.0).to(tl.float32)
        c_out = tl.load(p_ptr + row * P + RANK + N + n, mask=n_ok, other=0.0).to(tl.float32)
        h = tl.exp2(a2 * delta[None, :]) * h + b_in[:, None] * (delta * u)[None, :]
        y = tl.sum(h * c_out[:, None], 0) + skip * u
        y_at = ((b * length + t) * K + k) * width + col
        if PHASE == 2:
            y = 0.5 * (y + tl.load(y_ptr + y_at, mask=col_ok, other=0.0).to(tl.float32))
        if PHASE != 1:  # noqa: SIM102
            if GATE:
                z = tl.load(z_ptr + t * stride_t, mask=col_ok, other=0.0).to(tl.float32)
                sig = _sigmoid(z)
                if GRAD:
                    dz = tl.load(dy_ptr + y_at, mask=col_ok, other=0.0).to(tl.float32) * y
                    dz *= sig * (1.0 + z * (1.0 - sig))
                    if SUMS:
                        dz_sum += dz
                    tl.store(dz_ptr + t * dstride_t, dz.to(dz_ptr.dtype.element_ty), mask=col_ok)
                y *= z * sig
        tl.store(y_ptr + y_at, y.to(y_ptr.dtype.element_ty), mask=col_ok)
    if PHASE == 1:
        tl.store(state_ptr + en, h, mask=en_ok)
    elif SUMS:
        tl.store(sum_ptr + (b * (R * K) + rk) * width + col, dz_sum, mask=col_ok)


@triton.jit
def _backward(
    u_ptr, dt_ptr, p_ptr, z_ptr, a_log_ptr, d_ptr, bias_ptr, ckpt_ptr, dy_ptr, hist_ptr,
    du_ptr, ddt_ptr, dbc_ptr, da_ptr, dvec_ptr,
    batch, length, width, count, stride_b, stride_t, stride_k,
    R: tl.constexpr, K: tl.constexpr, N: tl.constexpr, P: tl.constexpr, RANK: tl.constexpr,
    GATE: tl.constexpr, TILE: tl.constexpr, NP: tl.constexpr, BE: tl.constexpr, ALT: tl.constexpr,
):  # fmt: skip
    """Tile by tile from the end: states from the saved one into a private scratch, then the adjoint."""
    col = tl.program_id(0) * BE + tl.arange(0, BE)
    n = tl.arange(0, NP)
    b = (tl.program_id(1) // K).to(tl.int64)
    k = tl.program_id(1) % K
    r = tl.program_id(2)
    reverse = k % 2 if ALT else r  # whether steps go from right to left
    rk = (r * K + k).to(tl.int64)
    col_ok = col < width
    n_ok = n < N
    en_ok = n_ok[:, None] & col_ok[None, :]
    en = col[None, :] * N + n[:, None]
    a_log = tl.load(a_log_ptr + rk * width * N + en, mask=en_ok, other=0.0).to(tl.float32)
    a = -tl.exp(a_log)
    a2 = a * 1.4426950408889634
    skip = tl.load(d_ptr + rk * width + col, mask=col_ok, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + rk * width + col, mask=col_ok, other=0.0).to(tl.float32)
    row0 = (rk * batch + b) * length
    z_ptr += b * stride_b + k * stride_k + col
    ckpt_ptr += (rk * batch + b) * count * width * N
    program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * tl.num_programs(0)
    hist_ptr += (program + tl.program_id(0)) * TILE * NP * BE + n[:, None] * BE + tl.arange(0, BE)[None, :]
    dbc_row0 = tl.program_id(0).to(tl.int64) * tl.num_programs(1) * tl.num_programs(2) * length + row0
    first = length
    if R == 2:
        first = tl.where(r == 0, (length + 1) // 2, length // 2)
    first_tiles = (first + TILE - 1) // TILE
    carry = tl.zeros((NP, BE), tl.float32)
    da = tl.zeros((NP, BE), tl.float32)
    dskip = tl.zeros((BE,), tl.float32)
    dbias = tl.zeros((BE,), tl.float32)
    for back in range(count):
        tile = count - 1 - back
        s0 = tl.where(tile < first_tiles, tile * TILE, first + (tile - first_tiles) * TILE)
        steps = tl.minimum(TILE, tl.where(tile < first_tiles, first, length) - s0)
        h = tl.load(ckpt_ptr + tile * width * N + en, mask=en_ok, other=0.0)
        for j in range(steps):
            tl.store(hist_ptr + j * (NP * BE), h)
            row = row0 + tl.where(reverse == 0, s0 + j, length - 1 - s0 - j)
            u = tl.load(u_ptr + row * width + col, mask=col_ok, other=0.0).to(tl.float32)
            delta = _softplus(tl.load(dt_ptr + row * width + col, mask=col_ok, other=0.0).to(tl.float32) + bias)
            b_in = tl.load(p_ptr + row * P + RANK + n, mask=n_ok, other=0.0).to(tl.float32)
            h = tl.exp2(a2 * delta[None, :]) * h + b_in[:, None] * (delta * u)[None, :]
        tl.debug_barrier()
        for jj in range(steps):
            j = steps - 1 - jj
            t = tl.where(reverse == 0, s0 + j, length - 1 - s0 - j).to(tl.int64)
            row = row0 + t
            before = tl.load(hist_ptr + j * (NP * BE))
            u = tl.load(u_ptr + row * width + col, mask=col_ok, other=0.0).to(tl.float32)
            raw = tl.load(dt_ptr + row * width + col, mask=col_ok, other=0.0).to(tl.float32) + bias
            delta = _softplus(raw)
            b_in = tl.load(p_ptr + row * P + RANK + n, mask=n_ok, other=0.0).to(tl.float32)
            c_out = tl.load(p_ptr + row * P + RANK + N + n, mask=n_ok, other=0.0).to(tl.float32)
            y_at = ((b * length + t) * K + k) * width + col
            ds = tl.load(dy_ptr + y_at, mask=col_ok, other=0.0).to(tl.float32) * (1.0 / R)
            if GATE:
                z = tl.load(z_ptr + t * stride_t, mask=col_ok, other=0.0).to(tl.float32)
                ds *= z * _sigmoid(z)
            decay = tl.exp2(a2 * delta[None, :])
            dh = carry + c_out[:, None] * ds[None, :]
            carry = dh * decay
            kept = carry * before
            da += kept * delta[None, :]
            ddrive = tl.sum(dh * b_in[:, None], 0)
            ddelta = tl.sum(kept * a, 0) + u * ddrive
            ddt = ddelta * _sigmoid(raw)
            dskip += ds * u
            dbias += ddt
            drive = delta * u
            tl.store(du_ptr + row * width + col, (delta * ddrive + skip * ds).to(du_ptr.dtype.element_ty), mask=col_ok)
            tl.store(ddt_ptr + row * width + col, ddt.to(ddt_ptr.dtype.element_ty), mask=col_ok)
            db = tl.sum(dh * drive[None, :], 1)
            dc = tl.sum((decay * before + b_in[:, None] * drive[None, :]) * ds[None, :], 1)
            tl.store(dbc_ptr + (dbc_row0 + t) * (2 * N) + n, db.to(dbc_ptr.dtype.element_ty), mask=n_ok)
            tl.store(dbc_ptr + (dbc_row0 + t) * (2 * N) + N + n, dc.to(dbc_ptr.dtype.element_ty), mask=n_ok)
        tl.debug_barrier()
    clip_rk = b * (R * K) + rk
    tl.store(da_ptr + clip_rk * width * N + en, da * a, mask=en_ok)
    tl.store(dvec_ptr + clip_rk * 2 * width + col, dskip, mask=col_ok)
    tl.store(dvec_ptr + clip_rk * 2 * width + width + col, dbias, mask=col_ok)


def _channels(width: int, states: int, programs: int) -> int:
    """Channels of one program: narrow when there are few programs, so that the chip fills; at most 512 states."""
    widest = max(4, min(64, 1024 // states, triton.next_power_of_2(width)))
    while widest > 8 and programs * triton.cdiv(width, widest) < 1500:
        widest //= 2
    return widest


def forward(
    u_GBLE: Tensor,
    dt_GBLE: Tensor,
    p_GBLP: Tensor,
    z_BLKE: Tensor | None,
    a_log_RKEN: Tensor,
    skip_RKE: Tensor,
    bias_RKE: Tensor,
    dy_BLKE: Tensor | None = None,
    dz_BLKE: Tensor | None = None,
    alternating: bool = False,
    dz_sums_BRKE: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``y_BLKE``; with ``dy`` also the saved states, and ``dz`` is written.

    And ``dz_sums``, where it is given: the sums of ``dz`` over the tokens that each direction ends with.
    """
    pairs, batch, length, width = u_GBLE.shape
    directions, blocks, _, states = a_log_RKEN.shape
    y = u_GBLE.new_empty(batch, length, blocks, width)
    if not u_GBLE.numel():
        return y, None
    grad = dy_BLKE is not None
    count = tiles(length, directions)
    kept = torch.empty(pairs, batch, width, states, device=y.device, dtype=torch.float32)
    ckpt = torch.empty(pairs, batch, count, width, states, device=y.device, dtype=torch.float32) if grad else kept
    padded = triton.next_power_of_2(states)
    be = _channels(width, padded, pairs * batch)
    gate = z_BLKE if z_BLKE is not None else y
    dgate = dz_BLKE if dz_BLKE is not None else gate
    for phase in (0,) if directions == 1 else (1, 2):
        _forward[(triton.cdiv(width, be), batch * blocks, directions)](
            u_GBLE, dt_GBLE, p_GBLP, gate, a_log_RKEN, skip_RKE, bias_RKE, y, kept, ckpt,
            dy_BLKE if dy_BLKE is not None else y, dgate, dz_sums_BRKE if dz_sums_BRKE is not None else kept,
            batch, length, width, count, *gate.stride()[:3], *dgate.stride()[:3],
            R=directions, K=blocks, N=states, P=p_GBLP.shape[-1], RANK=p_GBLP.shape[-1] - 2 * states, PHASE=phase,
            GRAD=grad, GATE=z_BLKE is not None, TILE=TILE, NP=padded, BE=be, ALT=alternating,
            SUMS=dz_sums_BRKE is not None, num_warps=1,
        )  # fmt: skip
    return y, ckpt if grad else None


def backward(
    u_GBLE: Tensor,
    dt_GBLE: Tensor,
    p_GBLP: Tensor,
    z_BLKE: Tensor | None,
    a_log_RKEN: Tensor,
    skip_RKE: Tensor,
    bias_RKE: Tensor,
    ckpt: Tensor,
    dy_BLKE: Tensor,
    alternating: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``du_GBLE``, ``ddt_GBLE`` (of the raw dt), ``dBC_xGBL2N``, ``dA_log_xRKEN`` and (dD, ddt_bias) ``_xRK2E``.

    The last three in parts to be summed.
    """
    pairs, batch, length, width = u_GBLE.shape
    directions, blocks, _, states = a_log_RKEN.shape
    count = tiles(length, directions)
    padded = triton.next_power_of_2(states)
    be = _channels(width, padded, pairs * batch)
    parts = triton.cdiv(width, be)
    du, ddt = torch.empty_like(u_GBLE), torch.empty_like(u_GBLE)
    wide: dict[str, Any] = {"device": du.device, "dtype": torch.float32}
    hist = torch.empty(parts * pairs * batch, TILE, padded, be, **wide)
    dbc = torch.empty(parts, pairs, batch, length, 2 * states, **wide)
    da = torch.empty(batch, directions, blocks, width, states, **wide)
    dvec = torch.empty(batch, directions, blocks, 2, width, **wide)
    gate = z_BLKE if z_BLKE is not None else dy_BLKE
    _backward[(parts, batch * blocks, directions)](
        u_GBLE, dt_GBLE, p_GBLP, gate, a_log_RKEN, skip_RKE, bias_RKE, ckpt, dy_BLKE, hist, du, ddt, dbc, da, dvec,
        batch, length, width, count, *gate.stride()[:3],
        R=directions, K=blocks, N=states, P=p_GBLP.shape[-1], RANK=p_GBLP.shape[-1] - 2 * states,
        GATE=z_BLKE is not None, TILE=TILE, NP=padded, BE=be, ALT=alternating, num_warps=1,
    )  # fmt: skip
    return du, ddt, dbc, da, dvec
