"""The CPU kernels of the depthwise convolution with SiLU, forward and backward: both directions in one pass over x.

Forward, one task is one clip, one block of the pair and ``CHUNK`` steps of all channels, read and written row by row.
Backward, one task is one clip, one block and ``BLOCK`` channels, because dw and db are sums over the steps. It goes
through the sequence in chunks: it first makes the gradient before SiLU of both directions, with the few rows around the
chunk that the taps reach, then gathers dx, dw and db from it, so that nothing is scattered. Weights are [R][K][W][E].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssamba.ops.jit.numba_simd import (
    fetch_add,
    fma,
    inline,
    load,
    load_int,
    load_part,
    sigmoid,
    silu,
    splat,
    store,
    store_part,
)
from ssamba.ops.mamba.cpu.layout import BLOCK, LANES, ROW
from ssamba.ops.mamba.cpu.layout import CONV_CHUNK as CHUNK
from ssamba.ops.mamba.cpu.layout import ConvField as Field

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@inline
def _get(table, field):  # type: ignore[no-untyped-def]
    return load_int(table + 8 * field)


@inline
def _at(table, field, b, r, k):  # type: ignore[no-untyped-def]
    offset = b * _get(table, field + 1) + r * _get(table, field + 3) + k * _get(table, field + 4)
    return _get(table, field) + offset


@inline
def _way(table, r, k):  # type: ignore[no-untyped-def]
    """0 where the taps of direction ``r`` and block ``k`` reach to the left, 1 where they reach to the right."""
    return r | ((_get(table, Field.BACKWARDS) >> k) & 1)


@inline
def _convolve(x, stride, weight, tap_stride, width, bias, reach, lanes):  # type: ignore[no-untyped-def]
    """Sum over the taps; ``reach`` is how many positions exist on the taps' side, ``stride`` leads there."""
    y = bias
    for j in range(min(width, reach + 1)):
        value = load_part(x + j * stride, lanes)
        y = fma(load_part(weight + (width - 1 - j) * tap_stride, lanes), value, y)
    return y


@inline
def _forward_rows(table, b, k, start, stop):  # type: ignore[no-untyped-def]
    length, width = _get(table, Field.LENGTH), _get(table, Field.WIDTH)
    channels = _get(table, Field.CHANNELS)
    row, stride, u_stride = 4 * channels, _get(table, Field.X_L), _get(table, Field.U_L)
    x = _at(table, Field.X, b, 0, k)
    for r in range(_get(table, Field.R_FROM), _get(table, Field.R_TO)):
        rk = r * _get(table, Field.BLOCKS) + k
        weight, bias = _get(table, Field.WEIGHT) + rk * width * row, _get(table, Field.BIAS) + rk * row
        u = _at(table, Field.U, b, r, k)
        way = _way(table, r, k)
        for t in range(start, stop):
            reach, side = (t, -stride) if way == 0 else (length - 1 - t, stride)
            for v in range(0, channels, LANES):
                lanes = channels - v
                first = load_part(bias + v * 4, lanes)
                y = _convolve(x + t * stride + v * 4, side, weight + v * 4, row, width, first, reach, lanes)
                store_part(u + t * u_stride + v * 4, silu(y), lanes)


def conv_forward(version: int) -> Callable[[int], None]:
    """A worker's entry: takes tasks until none is left. Capturing ``version`` puts it into Numba's cache key."""

    def conv_forward(table):  # type: ignore[no-untyped-def]
        if version < 0:
            return
        length, blocks = _get(table, Field.LENGTH), _get(table, Field.BLOCKS)
        parts = (length + CHUNK - 1) // CHUNK
        task = fetch_add(table + 8 * Field.NEXT, 1)
        while task < _get(table, Field.TASKS):
            clip_block, start = task // parts, task % parts * CHUNK
            _forward_rows(table, clip_block // blocks, clip_block % blocks, start, min(start + CHUNK, length))
            task = fetch_add(table + 8 * Field.NEXT, 1)

    return conv_forward


@inline
def _before_silu(table, b, r, k, first, channels, start, rows, to):  # type: ignore[no-untyped-def]
    """Gradient before SiLU at positions start .. start + rows - 1, zeros outside of the sequence."""
    length, width = _get(table, Field.LENGTH), _get(table, Field.WIDTH)
    row = 4 * _get(table, Field.CHANNELS)
    stride, u_stride = _get(table, Field.X_L), _get(table, Field.U_L)
    x = _at(table, Field.X, b, 0, k) + first * 4
    du = _at(table, Field.U, b, r, k) + first * 4
    rk = r * _get(table, Field.BLOCKS) + k
    weight = _get(table, Field.WEIGHT) + rk * width * row + first * 4
    way = _way(table, r, k)
    for i in range(rows):
        t = start + i
        reach, side = (t, -stride) if way == 0 else (length - 1 - t, stride)
        for v in range(0, channels, LANES):
            lanes = channels - v
            value = splat(ZERO)
            if t >= 0 and t < length:
                bias = load_part(_get(table, Field.BIAS) + rk * row + (first + v) * 4, lanes)
                here = x + t * stride + v * 4
                y = _convolve(here, side, weight + v * 4, row, width, bias, reach, lanes)
                s = sigmoid(y)
                derivative = s * fma(y, splat(ONE) - s, splat(ONE))
                value = derivative * load_part(du + t * u_stride + v * 4, lanes)
            store(to + i * ROW + v * 4, value)


@inline
def _gather_weight(table, b, r, k, first, channels, start, steps, gradient, sums):  # type: ignore[no-untyped-def]
    """Adds a chunk to dw and db; ``gradient`` is the row of position ``start``."""
    length, width = _get(table, Field.LENGTH), _get(table, Field.WIDTH)
    stride = _get(table, Field.X_L)
    x = _at(table, Field.X, b, 0, k) + first * 4
    for v in range(0, channels, LANES):
        lanes = channels - v
        for j in range(width):
            # tap width-1-j reads j positions away: only positions that have that neighbour count
            away = -j if _way(table, r, k) == 0 else j
            begin, end = max(start, -away), min(start + steps, length - away)
            to = sums + (width - 1 - j) * ROW + v * 4
            value = load(to)
            for t in range(begin, end):
                here = load_part(x + (t + away) * stride + v * 4, lanes)
                value = fma(load(gradient + (t - start) * ROW + v * 4), here, value)
            store(to, value)
        to = sums + width * ROW + v * 4
        value = load(to)
        for t in range(steps):
            value = value + load(gradient + t * ROW + v * 4)
        store(to, value)


@inline
def _gather_input(table, b, k, first, channels, start, steps, g0, g1):  # type: ignore[no-untyped-def]
    """dx of a chunk: position t was read by t .. t+W-1 to its right (g0) and by t-W+1 .. t to its left (g1)."""
    width, row = _get(table, Field.WIDTH), 4 * _get(table, Field.CHANNELS)
    stride = _get(table, Field.DX_L)
    dx = _at(table, Field.DX, b, 0, k) + first * 4 + start * stride
    weight0 = _get(table, Field.WEIGHT) + k * width * row + first * 4
    weight1 = weight0 + (_get(table, Field.DIRECTIONS) - 1) * _get(table, Field.BLOCKS) * width * row
    for t in range(steps):
        for v in range(0, channels, LANES):
            lanes = channels - v
            value = splat(ZERO)
            for j in range(width):
                tap = (width - 1 - j) * row + v * 4
                if g0 != 0:
                    value = fma(load_part(weight0 + tap, lanes), load(g0 + (t + j) * ROW + v * 4), value)
                if g1 != 0:
                    value = fma(load_part(weight1 + tap, lanes), load(g1 + (t - j) * ROW + v * 4), value)
            store_part(dx + t * stride + v * 4, value, lanes)


@inline
def _backward_block(table, b, k, first, channels, scratch):  # type: ignore[no-untyped-def]
    length, width = _get(table, Field.LENGTH), _get(table, Field.WIDTH)
    directions, row = _get(table, Field.DIRECTIONS), 4 * _get(table, Field.CHANNELS)
    halo = width - 1
    plane = (CHUNK + halo) * ROW
    sums = scratch + directions * plane
    for i in range(directions * (width + 1) * (BLOCK // LANES)):
        store(sums + i * 64, splat(ZERO))
    for start in range(0, length, CHUNK):
        steps = min(CHUNK, length - start)
        g0, g1 = 0, 0
        for r in range(directions):
            here, of_direction = scratch + r * plane, sums + r * (width + 1) * ROW
            before = _way(table, r, k) * halo  # rows in front of the chunk that its taps reach
            _before_silu(table, b, r, k, first, channels, start - before, steps + halo, here)
            _gather_weight(table, b, r, k, first, channels, start, steps, here + before * ROW, of_direction)
            if _way(table, r, k) == 0:
                g0 = here
            else:
                g1 = here + before * ROW
        _gather_input(table, b, k, first, channels, start, steps, g0, g1)
    for r in range(directions):
        index = (b * directions + r) * _get(table, Field.BLOCKS) + k
        here = sums + r * (width + 1) * ROW
        for v in range(0, channels, LANES):
            lanes, column = channels - v, (first + v) * 4
            for j in range(width):
                to = _get(table, Field.DWEIGHT) + (index * width + j) * row + column
                store_part(to, load(here + j * ROW + v * 4), lanes)
            store_part(_get(table, Field.DBIAS) + index * row + column, load(here + width * ROW + v * 4), lanes)


def conv_backward(version: int) -> Callable[[int], None]:
    """A worker's entry: takes tasks until none is left. Capturing ``version`` puts it into Numba's cache key."""

    def conv_backward(table):  # type: ignore[no-untyped-def]
        if version < 0:
            return
        slot = fetch_add(table + 8 * Field.SLOT, 1)
        scratch = _get(table, Field.SCRATCH) + slot * _get(table, Field.SCRATCH_BYTES)
        task = fetch_add(table + 8 * Field.NEXT, 1)
        while task < _get(table, Field.TASKS):
            channels = _get(table, Field.CHANNELS)
            parts = (channels + BLOCK - 1) // BLOCK
            clip_block, first = task // parts, task % parts * BLOCK
            b, k = clip_block // _get(table, Field.BLOCKS), clip_block % _get(table, Field.BLOCKS)
            _backward_block(table, b, k, first, min(BLOCK, channels - first), scratch)
            task = fetch_add(table + 8 * Field.NEXT, 1)

    return conv_backward
