"""The forward scan kernel of tied decays: one exponential a channel and step.

With ``r = exp(delta A)`` state n of 1 .. N decays by ``r^n``. The powers are products: a group of states begins with
the power that the group before ended with, and its others follow by ``r`` and ``r^2``, two chains half as long as one.
Everything else is ``scan_forward``'s.
"""

from __future__ import annotations

from collections.abc import Callable

from ssamba.ops.jit.numba_simd import (
    LN2,
    exp2_decay,
    fetch_add,
    fma,
    inline,
    load,
    load_scalar,
    splat,
    store,
)
from ssamba.ops.mamba.cpu.layout import COLUMN, LANES, PLANE, ROW, VECTOR, Plane
from ssamba.ops.mamba.cpu.layout import ScanField as Field
from ssamba.ops.mamba.cpu.scan_common import ZERO, fill_tied_rates, get, rates_at
from ssamba.ops.mamba.cpu.scan_forward import make_scan_block, prepare

RATIO, FIRST = Plane.DELTA * PLANE, Plane.DERIVATIVE * PLANE
"""Where r lies, over the step size that made it, and the decay of the next group's first state."""


@inline
def decay_ratio(delta, rate, rest):  # type: ignore[no-untyped-def]
    """``2**(delta (rate + rest))``, with what the product rounds: powers multiply such errors."""
    product = delta * rate
    left = fma(delta, rest, fma(delta, rate, splat(ZERO) - product))
    ratio = exp2_decay(product)
    return fma(ratio, left * splat(LN2), ratio)


@inline
def _prepare(table, b, r, k, first, channels, start, steps, scratch):  # type: ignore[no-untyped-def]
    """What ``scan_forward`` prepares, and r."""
    prepare(table, b, r, k, first, channels, start, steps, scratch)
    for v in range(0, channels, LANES):
        rate, rest = load(rates_at(scratch) + v * 4), load(rates_at(scratch) + 2 * ROW + v * 4)
        for t in range(steps):
            here = scratch + v // LANES * COLUMN + t * VECTOR
            ratio = decay_ratio(load(here + Plane.DELTA * PLANE), rate, rest)
            store(here + RATIO, ratio)
            store(here + FIRST, ratio)


@inline
def _advance(h, rate, step, b, c, n, steps):  # type: ignore[no-untyped-def]
    """Runs a group of states of sixteen channels through a chunk, adding C . h to the output plane."""
    h0, h1, h2, h3 = load(h), load(h + ROW), load(h + 2 * ROW), load(h + 3 * ROW)
    h4, h5, h6, h7 = load(h + 4 * ROW), load(h + 5 * ROW), load(h + 6 * ROW), load(h + 7 * ROW)
    for _ in range(steps):
        ratio, even = load(step + RATIO), load(step + FIRST)
        drive, out = load(step + Plane.DRIVE * PLANE), load(step + Plane.OUT * PLANE)
        square, odd = ratio * ratio, even * ratio
        h0 = fma(even, h0, drive * splat(load_scalar(b)))
        out = fma(h0, splat(load_scalar(c)), out)
        h1 = fma(odd, h1, drive * splat(load_scalar(b + 4)))
        out = fma(h1, splat(load_scalar(c + 4)), out)
        even, odd = even * square, odd * square
        h2 = fma(even, h2, drive * splat(load_scalar(b + 8)))
        out = fma(h2, splat(load_scalar(c + 8)), out)
        h3 = fma(odd, h3, drive * splat(load_scalar(b + 12)))
        out = fma(h3, splat(load_scalar(c + 12)), out)
        even, odd = even * square, odd * square
        h4 = fma(even, h4, drive * splat(load_scalar(b + 16)))
        out = fma(h4, splat(load_scalar(c + 16)), out)
        h5 = fma(odd, h5, drive * splat(load_scalar(b + 20)))
        out = fma(h5, splat(load_scalar(c + 20)), out)
        even, odd = even * square, odd * square
        h6 = fma(even, h6, drive * splat(load_scalar(b + 24)))
        out = fma(h6, splat(load_scalar(c + 24)), out)
        h7 = fma(odd, h7, drive * splat(load_scalar(b + 28)))
        out = fma(h7, splat(load_scalar(c + 28)), out)
        store(step + FIRST, odd * ratio)
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


_scan_block = make_scan_block(fill_tied_rates, _prepare, _advance)


def tied_forward(version: int) -> Callable[[int], None]:
    """A worker's entry: takes tasks until none is left. Capturing ``version`` puts it into Numba's cache key."""

    def tied_forward(table):  # type: ignore[no-untyped-def]
        if version < 0:
            return
        slot = fetch_add(table + 8 * Field.SLOT, 1)
        scratch = get(table, Field.SCRATCH) + slot * get(table, Field.SCRATCH_BYTES)
        task = fetch_add(table + 8 * Field.NEXT, 1)
        while task < get(table, Field.TASKS):
            _scan_block(table, scratch, task)
            task = fetch_add(table + 8 * Field.NEXT, 1)

    return tied_forward
