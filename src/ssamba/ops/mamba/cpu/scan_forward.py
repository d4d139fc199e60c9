"""The forward scan kernel. See ``scan_common`` for the plan."""

from __future__ import annotations

from collections.abc import Callable

from ssamba.ops.jit.numba_simd import (
    exp2_decay,
    fetch_add,
    fma,
    inline,
    load,
    load_part,
    load_scalar,
    silu,
    softplus,
    splat,
    store,
    store_part,
)
from ssamba.ops.mamba.cpu.layout import CHUNK, COLUMN, GROUP, LANES, PLANE, ROW, VECTOR, Plane
from ssamba.ops.mamba.cpu.layout import ScanField as Field
from ssamba.ops.mamba.cpu.scan_common import (
    HALF,
    clear,
    fill_rates,
    fill_rows,
    get,
    groups_up,
    origin,
    rates_at,
    rows_at,
    task_place,
    time_stride,
)


@inline
def prepare(table, b, r, k, first, channels, start, steps, scratch):  # type: ignore[no-untyped-def]
    """delta = softplus(dt + bias), drive = delta u and out = D u of a chunk."""
    u_stride, dt_stride = time_stride(table, Field.U, r, k), time_stride(table, Field.DT, r, k)
    u = origin(table, Field.U, b, r, k) + first * 4 + start * u_stride
    dt = origin(table, Field.DT, b, r, k) + first * 4 + start * dt_stride
    row = ((r * get(table, Field.BLOCKS) + k) * get(table, Field.CHANNELS) + first) * 4
    for v in range(0, channels, LANES):
        lanes = channels - v
        skip = load_part(get(table, Field.D) + row + v * 4, lanes)
        bias = load_part(get(table, Field.BIAS) + row + v * 4, lanes)
        for t in range(steps):
            x = load_part(u + t * u_stride + v * 4, lanes)
            delta = softplus(load_part(dt + t * dt_stride + v * 4, lanes) + bias)
            here = scratch + v // LANES * COLUMN + t * VECTOR
            store(here + Plane.DELTA * PLANE, delta)
            store(here + Plane.DRIVE * PLANE, delta * x)
            store(here + Plane.OUT * PLANE, skip * x)


@inline
def _advance(h, rate, step, b, c, n, steps):  # type: ignore[no-untyped-def]
    """Runs a group of states of sixteen channels through a chunk, adding C . h to the output plane."""
    h0, h1, h2, h3 = load(h), load(h + ROW), load(h + 2 * ROW), load(h + 3 * ROW)
    h4, h5, h6, h7 = load(h + 4 * ROW), load(h + 5 * ROW), load(h + 6 * ROW), load(h + 7 * ROW)
    for _ in range(steps):
        delta, drive, out = load(step), load(step + Plane.DRIVE * PLANE), load(step + Plane.OUT * PLANE)
        h0 = fma(exp2_decay(delta * load(rate)), h0, drive * splat(load_scalar(b)))
        out = fma(h0, splat(load_scalar(c)), out)
        h1 = fma(exp2_decay(delta * load(rate + ROW)), h1, drive * splat(load_scalar(b + 4)))
        out = fma(h1, splat(load_scalar(c + 4)), out)
        h2 = fma(exp2_decay(delta * load(rate + 2 * ROW)), h2, drive * splat(load_scalar(b + 8)))
        out = fma(h2, splat(load_scalar(c + 8)), out)
        h3 = fma(exp2_decay(delta * load(rate + 3 * ROW)), h3, drive * splat(load_scalar(b + 12)))
        out = fma(h3, splat(load_scalar(c + 12)), out)
        h4 = fma(exp2_decay(delta * load(rate + 4 * ROW)), h4, drive * splat(load_scalar(b + 16)))
        out = fma(h4, splat(load_scalar(c + 16)), out)
        h5 = fma(exp2_decay(delta * load(rate + 5 * ROW)), h5, drive * splat(load_scalar(b + 20)))
        out = fma(h5, splat(load_scalar(c + 20)), out)
        h6 = fma(exp2_decay(delta * load(rate + 6 * ROW)), h6, drive * splat(load_scalar(b + 24)))
        out = fma(h6, splat(load_scalar(c + 24)), out)
        h7 = fma(exp2_decay(delta * load(rate + 7 * ROW)), h7, drive * splat(load_scalar(b + 28)))
        out = fma(h7, splat(load_scalar(c + 28)), out)
        store(step + Plane.OUT * PLANE, out)
        step, b, c = step + VECTOR, b + 4 * n, c + 4 * n
    store(h, h0)
    store(h + ROW, h1)
    store(h + 2 * ROW, h2)
    store(h + 3 * ROW, h3)
    store(h + 4 * ROW, h4)
    store(h + 5 * ROW, h5)
    store(h + 6 * ROW, h6)
    store(h + 7 * ROW, h7)


@inline
def _finish(table, b, r, k, first, channels, start, steps, scratch):  # type: ignore[no-untyped-def]
    """Writes a chunk of y: direction 0 of two leaves its own y there, the last one takes the mean and gates it."""
    last = r == get(table, Field.DIRECTIONS) - 1
    y_stride, z_stride = time_stride(table, Field.Y, r, k), time_stride(table, Field.Z, r, k)
    y = origin(table, Field.Y, b, r, k) + first * 4 + start * y_stride
    gated = last and get(table, Field.Z) != 0
    z = origin(table, Field.Z, b, r, k) + first * 4 + start * z_stride
    for t in range(steps):
        for v in range(0, channels, LANES):
            lanes = channels - v
            value = load(scratch + Plane.OUT * PLANE + v // LANES * COLUMN + t * VECTOR)
            here = y + t * y_stride + v * 4
            if r == 1:
                value = (value + load_part(here, lanes)) * splat(HALF)
            if gated:
                value = value * silu(load_part(z + t * z_stride + v * 4, lanes))
            store_part(here, value, lanes)


@inline
def _copy_states(h, to, n):  # type: ignore[no-untyped-def]
    for i in range(n * (ROW // VECTOR)):
        store(to + i * VECTOR, load(h + i * VECTOR))


def make_scan_block(fill, prepare, advance):  # type: ignore[no-untyped-def]
    """All directions of one task, from how rates are laid out, a chunk is prepared and a group of states goes on."""

    @inline
    def scan_block(table, scratch, task):  # type: ignore[no-untyped-def]
        b, k, first, channels = task_place(table, task)
        n = groups_up(get(table, Field.STATES))
        length, directions = get(table, Field.LENGTH), get(table, Field.DIRECTIONS)
        chunks = (length + CHUNK - 1) // CHUNK
        rates = rates_at(scratch)
        h, b_rows = rates + n * ROW, rows_at(scratch, n)
        c_rows = b_rows + CHUNK * n * 4
        kept = get(table, Field.CHECKPOINTS)
        carry = get(table, Field.CARRY)
        for r in range(get(table, Field.R_FROM), get(table, Field.R_TO)):
            fill(table, r, k, first, channels, n, rates)
            if carry != 0:
                _copy_states(carry + task * n * ROW, h, n)
            else:
                clear(h, n)
            for chunk in range(chunks):
                start = chunk * CHUNK
                steps = min(CHUNK, length - start)
                if kept != 0:
                    _copy_states(h, kept + ((task * directions + r) * chunks + chunk) * n * ROW, n)
                fill_rows(table, Field.B, b, r, k, start, steps, n, b_rows)
                fill_rows(table, Field.C, b, r, k, start, steps, n, c_rows)
                prepare(table, b, r, k, first, channels, start, steps, scratch)
                for v in range((channels + LANES - 1) // LANES):
                    for i in range(0, n, GROUP):
                        at = i * ROW + v * VECTOR
                        advance(h + at, rates + at, scratch + v * COLUMN, b_rows + i * 4, c_rows + i * 4, n, steps)
                _finish(table, b, r, k, first, channels, start, steps, scratch)
            if carry != 0:
                _copy_states(h, carry + task * n * ROW, n)

    return scan_block


_scan_block = make_scan_block(fill_rates, prepare, _advance)


def scan_forward(version: int) -> Callable[[int], None]:
    """A worker's entry: takes tasks until none is left. Capturing ``version`` puts it into Numba's cache key."""

    def scan_forward(table):  # type: ignore[no-untyped-def]
        if version < 0:
            return
        slot = fetch_add(table + 8 * Field.SLOT, 1)
        scratch = get(table, Field.SCRATCH) + slot * get(table, Field.SCRATCH_BYTES)
        task = fetch_add(table + 8 * Field.NEXT, 1)
        while task < get(table, Field.TASKS):
            _scan_block(table, scratch, task)
            task = fetch_add(table + 8 * Field.NEXT, 1)

    return scan_forward
