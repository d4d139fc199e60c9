"""The backward scan kernel of tied decays: ``tied_forward``'s powers, and one gradient of A a channel instead of N.

With ``s[t] = sum over n of n r^n h_n[t-1] g_n[t]`` it is ``dA += delta s`` and ``ddelta += A s + u B g``. The decays
are made again where they are needed, so that of a chunk only the states are kept. Everything else is
``scan_backward``'s.
"""

from __future__ import annotations

from collections.abc import Callable

from ssamba.ops.jit.numba_simd import (
    fetch_add,
    fma,
    inline,
    load,
    load_scalar,
    splat,
    store,
)
from ssamba.ops.mamba.cpu.layout import COLUMN, GROUP, GROUP_PLANE, LANES, PLANE, ROW, VECTOR, Plane
from ssamba.ops.mamba.cpu.layout import ScanField as Field
from ssamba.ops.mamba.cpu.scan_backward import finish, make_scan_block, prepare, store_group
from ssamba.ops.mamba.cpu.scan_common import fill_tied_rates, get, groups_up, past_at, rates_at
from ssamba.ops.mamba.cpu.tied_forward import decay_ratio

# Where the free form keeps a chunk's decays lie r, and the decay of the next group's first state.
RATIO, FIRST = 0, PLANE


@inline
def _prepare(table, b, r, k, first, channels, start, steps, scratch):  # type: ignore[no-untyped-def]
    """What ``scan_backward`` prepares, and r."""
    prepare(table, b, r, k, first, channels, start, steps, scratch)
    to = past_at(scratch, groups_up(get(table, Field.STATES)))
    for v in range(0, channels, LANES):
        rate, rest = load(rates_at(scratch) + v * 4), load(rates_at(scratch) + 2 * ROW + v * 4)
        for t in range(steps):
            at = v // LANES * COLUMN + t * VECTOR
            ratio = decay_ratio(load(scratch + at + Plane.DELTA * PLANE), rate, rest)
            store(to + at + RATIO, ratio)
            store(to + at + FIRST, ratio)


@inline
def _replay_one(h, decay, b, c, here, dc, past):  # type: ignore[no-untyped-def]
    """One step of one state: keeps the state before, adds to dC and y. Returns the state and y."""
    drive, gradient, y = here
    store(past, h)
    h = fma(decay, h, drive * splat(load_scalar(b)))
    store(dc, fma(gradient, h, load(dc)))
    return h, (drive, gradient, fma(h, splat(load_scalar(c)), y))


@inline
def _replay(kept, step, powers, b, c, dc, past, n, steps):  # type: ignore[no-untyped-def]
    """Runs a group of states of sixteen channels through a chunk again, from the kept states."""
    h0, h1, h2, h3 = load(kept), load(kept + ROW), load(kept + 2 * ROW), load(kept + 3 * ROW)
    h4, h5, h6, h7 = load(kept + 4 * ROW), load(kept + 5 * ROW), load(kept + 6 * ROW), load(kept + 7 * ROW)
    for _ in range(steps):
        ratio, even = load(powers + RATIO), load(powers + FIRST)
        square, odd = ratio * ratio, even * ratio
        x = (load(step + Plane.DRIVE * PLANE), load(step + Plane.GRADIENT * PLANE), load(step + Plane.OUT * PLANE))
        h0, x = _replay_one(h0, even, b, c, x, dc, past)
        h1, x = _replay_one(h1, odd, b + 4, c + 4, x, dc + VECTOR, past + VECTOR)
        even, odd = even * square, odd * square
        h2, x = _replay_one(h2, even, b + 8, c + 8, x, dc + 2 * VECTOR, past + 2 * VECTOR)
        h3, x = _replay_one(h3, odd, b + 12, c + 12, x, dc + 3 * VECTOR, past + 3 * VECTOR)
        even, odd = even * square, odd * square
        h4, x = _replay_one(h4, even, b + 16, c + 16, x, dc + 4 * VECTOR, past + 4 * VECTOR)
        h5, x = _replay_one(h5, odd, b + 20, c + 20, x, dc + 5 * VECTOR, past + 5 * VECTOR)
        even, odd = even * square, odd * square
        h6, x = _replay_one(h6, even, b + 24, c + 24, x, dc + 6 * VECTOR, past + 6 * VECTOR)
        h7, x = _replay_one(h7, odd, b + 28, c + 28, x, dc + 7 * VECTOR, past + 7 * VECTOR)
        store(step + Plane.OUT * PLANE, x[2])
        step, powers, b, c = step + VECTOR, powers + VECTOR, b + 4 * n, c + 4 * n
        dc, past = dc + GROUP * VECTOR, past + GROUP * VECTOR


@inline
def _retreat_one(g, decay, count, b, c, here, db, past):  # type: ignore[no-untyped-def]
    """One step back of one state. ``here`` ends in the gradient of delta u, and s."""
    drive, gradient, to_drive, s = here
    g = fma(gradient, splat(load_scalar(c)), g)
    store(db, fma(g, drive, load(db)))
    to_drive = fma(g, splat(load_scalar(b)), to_drive)
    g = g * decay
    return g, (drive, gradient, to_drive, fma(g * load(past), splat(load_scalar(count)), s))


@inline
def _retreat(g, counts, step, powers, b, c, db, past, n, steps):  # type: ignore[no-untyped-def]
    """Walks a group of states of sixteen channels back through the chunk that ``_replay`` has just run."""
    g0, g1, g2, g3 = load(g), load(g + ROW), load(g + 2 * ROW), load(g + 3 * ROW)
    g4, g5, g6, g7 = load(g + 4 * ROW), load(g + 5 * ROW), load(g + 6 * ROW), load(g + 7 * ROW)
    back = steps - 1
    step, powers, b, c = step + back * VECTOR, powers + back * VECTOR, b + back * 4 * n, c + back * 4 * n
    db, past = db + back * GROUP * VECTOR, past + back * GROUP * VECTOR
    for _ in range(steps):
        ratio, even = load(powers + RATIO), load(powers + FIRST)
        square, odd = ratio * ratio, even * ratio
        x = (
            load(step + Plane.DRIVE * PLANE),
            load(step + Plane.GRADIENT * PLANE),
            load(step + Plane.TO_DRIVE * PLANE),
            load(step + Plane.TO_DELTA * PLANE),
        )
        g0, x = _retreat_one(g0, even, counts, b, c, x, db, past)
        g1, x = _retreat_one(g1, odd, counts + 4, b + 4, c + 4, x, db + VECTOR, past + VECTOR)
        even, odd = even * square, odd * square
        g2, x = _retreat_one(g2, even, counts + 8, b + 8, c + 8, x, db + 2 * VECTOR, past + 2 * VECTOR)
        g3, x = _retreat_one(g3, odd, counts + 12, b + 12, c + 12, x, db + 3 * VECTOR, past + 3 * VECTOR)
        even, odd = even * square, odd * square
        g4, x = _retreat_one(g4, even, counts + 16, b + 16, c + 16, x, db + 4 * VECTOR, past + 4 * VECTOR)
        g5, x = _retreat_one(g5, odd, counts + 20, b + 20, c + 20, x, db + 5 * VECTOR, past + 5 * VECTOR)
        even, odd = even * square, odd * square
        g6, x = _retreat_one(g6, even, counts + 24, b + 24, c + 24, x, db + 6 * VECTOR, past + 6 * VECTOR)
        g7, x = _retreat_one(g7, odd, counts + 28, b + 28, c + 28, x, db + 7 * VECTOR, past + 7 * VECTOR)
        store(powers + FIRST, odd * ratio)
        store(step + Plane.TO_DRIVE * PLANE, x[2])
        store(step + Plane.TO_DELTA * PLANE, x[3])
        step, powers, b, c = step - VECTOR, powers - VECTOR, b - 4 * n, c - 4 * n
        db, past = db - GROUP * VECTOR, past - GROUP * VECTOR
    store_group(g, g0, g1, g2, g3, g4, g5, g6, g7)


@inline
def _walk_group(kept, g, da, rates, i, v, column, b, c, db, dc, past, n, steps):  # type: ignore[no-untyped-def]
    """Group ``i`` of the sixteen channels ``v`` of a chunk, replayed and walked back; ``column``: their planes."""
    powers, states = past + v * COLUMN, past + GROUP_PLANE
    _replay(kept, column, powers, b, c, dc, states, n, steps)
    _retreat(g, rates + ROW + i * 4, column, powers, b, c, db, states, n, steps)


@inline
def _finish(table, b, r, k, first, channels, start, steps, scratch):  # type: ignore[no-untyped-def]
    """Turns s into the gradient of delta / ln 2 and adds to that of A; then as ``scan_backward``."""
    rates = rates_at(scratch)
    to = rates + 3 * groups_up(get(table, Field.STATES)) * ROW
    for v in range(0, channels, LANES):
        rate, total = load(rates + v * 4), load(to + v * 4)
        for t in range(steps):
            here = scratch + v // LANES * COLUMN + t * VECTOR
            s = load(here + Plane.TO_DELTA * PLANE)
            total = fma(s, load(here + Plane.DELTA * PLANE), total)
            store(here + Plane.TO_DELTA * PLANE, s * rate)
        store(to + v * 4, total)
    finish(table, b, r, k, first, channels, start, steps, scratch)


_scan_block = make_scan_block(fill_tied_rates, _prepare, _walk_group, _finish, True)


def tied_backward(version: int) -> Callable[[int], None]:
    """A worker's entry: takes tasks until none is left. Capturing ``version`` puts it into Numba's cache key."""

    def tied_backward(table):  # type: ignore[no-untyped-def]
        if version < 0:
            return
        slot = fetch_add(table + 8 * Field.SLOT, 1)
        scratch = get(table, Field.SCRATCH) + slot * get(table, Field.SCRATCH_BYTES)
        task = fetch_add(table + 8 * Field.NEXT, 1)
        while task < get(table, Field.TASKS):
            _scan_block(table, scratch, task)
            task = fetch_add(table + 8 * Field.NEXT, 1)

    return tied_backward
