"""What the forward and the backward scan kernel share: the plan, reading the argument table, filling the scratch area.

One task is one clip, one block of the pair and ``BLOCK`` channels; it runs both directions, so that their sum needs no
lock. With alternating scans each block has one direction, and odd blocks run from right to left. A task walks over the
sequence in chunks of ``CHUNK`` steps: a chunk's step sizes, inputs and outputs lie in a scratch area that stays in the
first two cache levels, and ``GROUP`` states of sixteen channels at a time stay in registers for the whole chunk. Steps
are counted along the direction of the scan; one to the left starts at the last position and has a negative time stride.

Rows of the scratch area are ``BLOCK`` floats; states beyond N and channels beyond E are zeros there and stay zeros.
"""

from __future__ import annotations

import numpy as np

from ssamba.ops.jit.numba_simd import LOG2E, inline, load_int, load_part, load_scalar, splat, store, store_scalar
from ssamba.ops.mamba.cpu.layout import BLOCK, CHUNK, GROUP, LANES, PLANE, ROW, SKEW, VECTOR, Plane
from ssamba.ops.mamba.cpu.layout import ScanField as Field

ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)


@inline
def get(table, field):  # type: ignore[no-untyped-def]
    """One entry of the argument table."""
    return load_int(table + 8 * field)


@inline
def groups_up(states):  # type: ignore[no-untyped-def]
    """``padded_states`` inside a kernel."""
    return (states + GROUP - 1) // GROUP * GROUP


@inline
def rates_at(scratch):  # type: ignore[no-untyped-def]
    """A log2(e), [N][BLOCK]; then h, its gradient and A's, all alike."""
    return scratch + Plane.END * PLANE + 2 * ROW


@inline
def rows_at(scratch, n):  # type: ignore[no-untyped-def]
    """B, [CHUNK][N]; then C."""
    return rates_at(scratch) + 4 * n * ROW


@inline
def shares_at(scratch, n):  # type: ignore[no-untyped-def]
    """dB, [N / GROUP][CHUNK][GROUP][LANES]; then dC; then one group's decays and states, alike."""
    return rows_at(scratch, n) + 2 * CHUNK * n * 4 + VECTOR


@inline
def past_at(scratch, n):  # type: ignore[no-untyped-def]
    """One group's decays of a chunk, [CHUNK][GROUP][LANES]; then its states, alike."""
    return shares_at(scratch, n) + 2 * CHUNK * n * VECTOR + SKEW


@inline
def way(table, r, k):  # type: ignore[no-untyped-def]
    """0 where direction ``r`` runs through block ``k`` from left to right, 1 where it runs from right to left."""
    return r | ((get(table, Field.BACKWARDS) >> k) & 1)


@inline
def origin(table, field, b, r, k):  # type: ignore[no-untyped-def]
    """Address of a tensor's first step of the scan in direction ``r``."""
    address = get(table, field) + b * get(table, field + 1) + r * get(table, field + 3) + k * get(table, field + 4)
    if way(table, r, k) == 1:
        address += (get(table, Field.LENGTH) - 1) * get(table, field + 2)
    return address


@inline
def time_stride(table, field, r, k):  # type: ignore[no-untyped-def]
    """Bytes from one step of the scan to the next."""
    return get(table, field + 2) if way(table, r, k) == 0 else -get(table, field + 2)


@inline
def clear(address, rows):  # type: ignore[no-untyped-def]
    """Zeros in ``rows`` rows."""
    for i in range(rows * (ROW // VECTOR)):
        store(address + i * VECTOR, splat(ZERO))


@inline
def fill_rates(table, r, k, first, channels, n, to):  # type: ignore[no-untyped-def]
    """A log2(e), transposed to [state][channel]."""
    states = get(table, Field.STATES)
    row = (r * get(table, Field.BLOCKS) + k) * get(table, Field.CHANNELS) + first
    source = get(table, Field.A) + row * states * 4
    clear(to, n)
    for c in range(channels):
        for i in range(states):
            store_scalar(to + i * ROW + c * 4, load_scalar(source + (c * states + i) * 4) * LOG2E)


@inline
def fill_tied_rates(table, r, k, first, channels, n, to):  # type: ignore[no-untyped-def]
    """The first state's A log2(e) of each channel; 1 .. n, by which states decay faster; what the first row rounds."""
    row = (r * get(table, Field.BLOCKS) + k) * get(table, Field.CHANNELS) + first
    clear(to, 3)
    for c in range(channels):
        exact = np.float64(load_scalar(get(table, Field.A) + (row + c) * 4)) * 1.4426950408889634
        store_scalar(to + c * 4, np.float32(exact))
        store_scalar(to + 2 * ROW + c * 4, np.float32(exact - np.float64(np.float32(exact))))
    for i in range(n):
        store_scalar(to + ROW + i * 4, np.float32(i + 1))


@inline
def task_place(table, task):  # type: ignore[no-untyped-def]
    """A task's clip, block of the pair, first channel and number of channels."""
    width, blocks = get(table, Field.CHANNELS), get(table, Field.BLOCKS)
    parts = (width + BLOCK - 1) // BLOCK
    clip_block, first = task // parts, task % parts * BLOCK
    return clip_block // blocks, clip_block % blocks, first, min(BLOCK, width - first)


@inline
def fill_rows(table, field, b, r, k, start, steps, n, to):  # type: ignore[no-untyped-def]
    """A chunk of B or C as [step][state]. A vector may overrun its row: the next row, written later, corrects that."""
    states, stride = get(table, Field.STATES), time_stride(table, field, r, k)
    source = origin(table, field, b, r, k) + start * stride
    for t in range(steps):
        for i in range(0, n, LANES):
            value = splat(ZERO)
            if states > i:
                value = load_part(source + t * stride + i * 4, states - i)
            store(to + (t * n + i) * 4, value)
