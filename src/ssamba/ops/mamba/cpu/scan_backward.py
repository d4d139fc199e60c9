"""The backward scan kernel. See ``scan_common`` for the plan.

With ``g[t]`` the gradient of ``h[t]`` and ``a[t] = exp(delta[t] A)``, each chunk is replayed from its kept state and
then walked back: ``g[t] = C dy + a[t+1] g[t+1]``, ``dA += delta a h[t-1] g``, ``ddelta += A a h[t-1] g + u B g``,
``dB += delta u g``, ``dC += dy h`` (Mamba, arXiv 2312.00752, section 3.3.2: recomputation instead of stored states).
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
    load_part,
    load_scalar,
    sigmoid,
    silu,
    softplus_and_derivative,
    splat,
    store,
    store_part,
    totals,
)
from ssamba.ops.mamba.cpu.layout import BLOCK, CHUNK, COLUMN, GROUP, GROUP_PLANE, LANES, PLANE, ROW, VECTOR, Plane
from ssamba.ops.mamba.cpu.layout import ScanField as Field
from ssamba.ops.mamba.cpu.scan_common import (
    HALF,
    ONE,
    ZERO,
    clear,
    fill_rates,
    fill_rows,
    get,
    groups_up,
    origin,
    past_at,
    rates_at,
    rows_at,
    shares_at,
    task_place,
    time_stride,
)


@inline
def prepare(table, b, r, k, first, channels, start, steps, scratch):  # type: ignore[no-untyped-def]
    """The planes of a chunk: delta, its derivative, u, delta u, D u, y's gradient before gate and mean; two zeros."""
    u_stride, dt_stride, y_stride = (
        time_stride(table, Field.U, r, k),
        time_stride(table, Field.DT, r, k),
        time_stride(table, Field.Y, r, k),
    )
    z_stride = time_stride(table, Field.Z, r, k)
    u = origin(table, Field.U, b, r, k) + first * 4 + start * u_stride
    dt = origin(table, Field.DT, b, r, k) + first * 4 + start * dt_stride
    dy = origin(table, Field.Y, b, r, k) + first * 4 + start * y_stride
    z = origin(table, Field.Z, b, r, k) + first * 4 + start * z_stride
    row = ((r * get(table, Field.BLOCKS) + k) * get(table, Field.CHANNELS) + first) * 4
    share = splat(HALF) if get(table, Field.DIRECTIONS) == 2 else splat(ONE)
    gated = get(table, Field.Z) != 0
    for v in range(0, channels, LANES):
        lanes = channels - v
        skip = load_part(get(table, Field.D) + row + v * 4, lanes)
        bias = load_part(get(table, Field.BIAS) + row + v * 4, lanes)
        for t in range(steps):
            x = load_part(u + t * u_stride + v * 4, lanes)
            raw = load_part(dt + t * dt_stride + v * 4, lanes) + bias
            delta, derivative = softplus_and_derivative(raw)
            gradient = load_part(dy + t * y_stride + v * 4, lanes) * share
            if gated:
                gradient = gradient * silu(load_part(z + t * z_stride + v * 4, lanes))
            here = scratch + v // LANES * COLUMN + t * VECTOR
            store(here + Plane.DELTA * PLANE, delta)
            store(here + Plane.DERIVATIVE * PLANE, derivative)
            store(here + Plane.INPUT * PLANE, x)
            store(here + Plane.DRIVE * PLANE, delta * x)
            store(here + Plane.OUT * PLANE, skip * x)
            store(here + Plane.GRADIENT * PLANE, gradient)
            store(here + Plane.TO_DRIVE * PLANE, splat(ZERO))
            store(here + Plane.TO_DELTA * PLANE, splat(ZERO))


@inline
def _replay_one(h, rate, b, c, here, dc, past):  # type: ignore[no-untyped-def]
    """One step of one state: keeps its decay and the state before, adds to dC and y. Returns the state and the step."""
    delta, drive, gradient, y = here
    decay = exp2_decay(delta * load(rate))
    store(past, decay)
    store(past + GROUP_PLANE, h)
    h = fma(decay, h, drive * splat(load_scalar(b)))
    store(dc, fma(gradient, h, load(dc)))
    return h, (delta, drive, gradient, fma(h, splat(load_scalar(c)), y))


@inline
def _replay(kept, rate, step, b, c, dc, past, n, steps):  # type: ignore[no-untyped-def]
    """Runs a group of states of sixteen channels through a chunk again, from the kept states."""
    h0, h1, h2, h3 = load(kept), load(kept + ROW), load(kept + 2 * ROW), load(kept + 3 * ROW)
    h4, h5, h6, h7 = load(kept + 4 * ROW), load(kept + 5 * ROW), load(kept + 6 * ROW), load(kept + 7 * ROW)
    for _ in range(steps):
        x = (
            load(step),
            load(step + Plane.DRIVE * PLANE),
            load(step + Plane.GRADIENT * PLANE),
            load(step + Plane.OUT * PLANE),
        )
        h0, x = _replay_one(h0, rate, b, c, x, dc, past)
        h1, x = _replay_one(h1, rate + ROW, b + 4, c + 4, x, dc + VECTOR, past + VECTOR)
        h2, x = _replay_one(h2, rate + 2 * ROW, b + 8, c + 8, x, dc + 2 * VECTOR, past + 2 * VECTOR)
        h3, x = _replay_one(h3, rate + 3 * ROW, b + 12, c + 12, x, dc + 3 * VECTOR, past + 3 * VECTOR)
        h4, x = _replay_one(h4, rate + 4 * ROW, b + 16, c + 16, x, dc + 4 * VECTOR, past + 4 * VECTOR)
        h5, x = _replay_one(h5, rate + 5 * ROW, b + 20, c + 20, x, dc + 5 * VECTOR, past + 5 * VECTOR)
        h6, x = _replay_one(h6, rate + 6 * ROW, b + 24, c + 24, x, dc + 6 * VECTOR, past + 6 * VECTOR)
        h7, x = _replay_one(h7, rate + 7 * ROW, b + 28, c + 28, x, dc + 7 * VECTOR, past + 7 * VECTOR)
        store(step + Plane.OUT * PLANE, x[3])
        step, b, c, dc, past = step + VECTOR, b + 4 * n, c + 4 * n, dc + GROUP * VECTOR, past + GROUP * VECTOR


@inline
def _retreat_one(g, da, rate, b, c, here, db, past):  # type: ignore[no-untyped-def]
    """One step back of one state. ``here`` ends in the gradients of delta u and, through the decay, of delta / ln 2."""
    delta, drive, gradient, to_drive, to_delta = here
    g = fma(gradient, splat(load_scalar(c)), g)
    store(db, fma(g, drive, load(db)))
    to_drive = fma(g, splat(load_scalar(b)), to_drive)
    g = g * load(past)
    through = g * load(past + GROUP_PLANE)
    here = delta, drive, gradient, to_drive, fma(through, load(rate), to_delta)
    return g, fma(through, delta, da), here


@inline
def _retreat(g, da, rate, step, b, c, db, past, n, steps):  # type: ignore[no-untyped-def]
    """Walks a group of states of sixteen channels back through the chunk that ``_replay`` has just run."""
    g0, g1, g2, g3 = load(g), load(g + ROW), load(g + 2 * ROW), load(g + 3 * ROW)
    g4, g5, g6, g7 = load(g + 4 * ROW), load(g + 5 * ROW), load(g + 6 * ROW), load(g + 7 * ROW)
    a0, a1, a2, a3 = load(da), load(da + ROW), load(da + 2 * ROW), load(da + 3 * ROW)
    a4, a5, a6, a7 = load(da + 4 * ROW), load(da + 5 * ROW), load(da + 6 * ROW), load(da + 7 * ROW)
    back = steps - 1
    step, b, c = step + back * VECTOR, b + back * 4 * n, c + back * 4 * n
    db, past = db + back * GROUP * VECTOR, past + back * GROUP * VECTOR
    for _ in range(steps):
        delta, drive, gradient = load(step), load(step + Plane.DRIVE * PLANE), load(step + Plane.GRADIENT * PLANE)
        x = delta, drive, gradient, load(step + Plane.TO_DRIVE * PLANE), load(step + Plane.TO_DELTA * PLANE)
        g0, a0, x = _retreat_one(g0, a0, rate, b, c, x, db, past)
        g1, a1, x = _retreat_one(g1, a1, rate + ROW, b + 4, c + 4, x, db + VECTOR, past + VECTOR)
        g2, a2, x = _retreat_one(g2, a2, rate + 2 * ROW, b + 8, c + 8, x, db + 2 * VECTOR, past + 2 * VECTOR)
        g3, a3, x = _retreat_one(g3, a3, rate + 3 * ROW, b + 12, c + 12, x, db + 3 * VECTOR, past + 3 * VECTOR)
        g4, a4, x = _retreat_one(g4, a4, rate + 4 * ROW, b + 16, c + 16, x, db + 4 * VECTOR, past + 4 * VECTOR)
        g5, a5, x = _retreat_one(g5, a5, rate + 5 * ROW, b + 20, c + 20, x, db + 5 * VECTOR, past + 5 * VECTOR)
        g6, a6, x = _retreat_one(g6, a6, rate + 6 * ROW, b + 24, c + 24, x, db + 6 * VECTOR, past + 6 * VECTOR)
        g7, a7, x = _retreat_one(g7, a7, rate + 7 * ROW, b + 28, c + 28, x, db + 7 * VECTOR, past + 7 * VECTOR)
        store(step + Plane.TO_DRIVE * PLANE, x[3])
        store(step + Plane.TO_DELTA * PLANE, x[4])
        step, b, c, db, past = step - VECTOR, b - 4 * n, c - 4 * n, db - GROUP * VECTOR, past - GROUP * VECTOR
    store_group(g, g0, g1, g2, g3, g4, g5, g6, g7)
    store_group(da, a0, a1, a2, a3, a4, a5, a6, a7)


@inline
def store_group(to, x0, x1, x2, x3, x4, x5, x6, x7):  # type: ignore[no-untyped-def]
    """A group's vectors to the rows from ``to`` on."""
    store(to, x0)
    store(to + ROW, x1)
    store(to + 2 * ROW, x2)
    store(to + 3 * ROW, x3)
    store(to + 4 * ROW, x4)
    store(to + 5 * ROW, x5)
    store(to + 6 * ROW, x6)
    store(to + 7 * ROW, x7)


@inline
def finish(table, b, r, k, first, channels, start, steps, scratch):  # type: ignore[no-untyped-def]
    """Writes a chunk of du and ddt and adds to the sums for D and the bias, which lie just behind the planes."""
    du_stride, ddt_stride = time_stride(table, Field.DU, r, k), time_stride(table, Field.DDT, r, k)
    du = origin(table, Field.DU, b, r, k) + first * 4 + start * du_stride
    ddt = origin(table, Field.DDT, b, r, k) + first * 4 + start * ddt_stride
    row = ((r * get(table, Field.BLOCKS) + k) * get(table, Field.CHANNELS) + first) * 4
    for v in range(0, channels, LANES):
        lanes = channels - v
        skip = load_part(get(table, Field.D) + row + v * 4, lanes)
        sums = scratch + Plane.END * PLANE + v * 4
        skip_sum, bias_sum = load(sums), load(sums + ROW)
        for t in range(steps):
            here = scratch + v // LANES * COLUMN + t * VECTOR
            x, gradient = load(here + Plane.INPUT * PLANE), load(here + Plane.GRADIENT * PLANE)
            to_drive = load(here + Plane.TO_DRIVE * PLANE)
            to_delta = fma(to_drive, x, load(here + Plane.TO_DELTA * PLANE) * splat(LN2))
            to_raw = to_delta * load(here + Plane.DERIVATIVE * PLANE)
            store_part(du + t * du_stride + v * 4, fma(to_drive, load(here), skip * gradient), lanes)
            store_part(ddt + t * ddt_stride + v * 4, to_raw, lanes)
            skip_sum, bias_sum = fma(x, gradient, skip_sum), bias_sum + to_raw
        store(sums, skip_sum)
        store(sums + ROW, bias_sum)


@inline
def _finish_gate(table, b, r, k, first, channels, start, steps, scratch):  # type: ignore[no-untyped-def]
    """dz = dy mean(y) silu'(z); direction 0 of two leaves its y in dz for direction 1."""
    dz_stride, y_stride, z_stride = (
        time_stride(table, Field.DZ, r, k),
        time_stride(table, Field.Y, r, k),
        time_stride(table, Field.Z, r, k),
    )
    dz = origin(table, Field.DZ, b, r, k) + first * 4 + start * dz_stride
    dy = origin(table, Field.Y, b, r, k) + first * 4 + start * y_stride
    z = origin(table, Field.Z, b, r, k) + first * 4 + start * z_stride
    last = r == get(table, Field.DIRECTIONS) - 1
    for t in range(steps):
        for v in range(0, channels, LANES):
            lanes = channels - v
            value = load(scratch + Plane.OUT * PLANE + v // LANES * COLUMN + t * VECTOR)
            here = dz + t * dz_stride + v * 4
            if r == 1:
                value = (value + load_part(here, lanes)) * splat(HALF)
            if last:
                gate = load_part(z + t * z_stride + v * 4, lanes)
                s = sigmoid(gate)
                derivative = s * fma(gate, splat(ONE) - s, splat(ONE))
                value = value * derivative * load_part(dy + t * y_stride + v * 4, lanes)
            store_part(here, value, lanes)


@inline
def _finish_rows(table, field, b, r, k, part, start, steps, shares, n):  # type: ignore[no-untyped-def]
    """Sums a chunk of dB or dC over the lanes and writes it as this channel block's share."""
    stride = time_stride(table, field, r, k)
    to = origin(table, field, b, r, k) + part * get(table, Field.PART) + start * stride
    for t in range(steps):
        for i in range(0, get(table, Field.STATES), LANES):
            low = shares + i * COLUMN + t * GROUP * VECTOR
            value = totals(low, low + GROUP_PLANE if i + GROUP < n else low)
            store_part(to + t * stride + i * 4, value, get(table, Field.STATES) - i)


@inline
def _finish_block(table, b, r, k, first, channels, scratch, da, kinds):  # type: ignore[no-untyped-def]
    """Writes one clip's dA as [state][channel], dD and the bias's gradient; ``kinds``: the last axis of A."""
    width = get(table, Field.CHANNELS)
    index = (b * get(table, Field.DIRECTIONS) + r) * get(table, Field.BLOCKS) + k
    for v in range(0, channels, LANES):
        lanes = channels - v
        sums = scratch + Plane.END * PLANE + v * 4
        store_part(get(table, Field.DD) + (index * width + first + v) * 4, load(sums), lanes)
        store_part(get(table, Field.DBIAS) + (index * width + first + v) * 4, load(sums + ROW), lanes)
        for i in range(kinds):
            to = get(table, Field.DA) + ((index * kinds + i) * width + first + v) * 4
            store_part(to, load(da + i * ROW + v * 4), lanes)


@inline
def _clear_shares(shares, count):  # type: ignore[no-untyped-def]
    for i in range(count):
        store(shares + i * VECTOR, splat(ZERO))


@inline
def _walk_group(kept, g, da, rates, i, v, column, b, c, db, dc, past, n, steps):  # type: ignore[no-untyped-def]
    """Group ``i`` of the sixteen channels ``v`` of a chunk, replayed and walked back; ``column``: their planes."""
    at = i * ROW + v * VECTOR
    _replay(kept, rates + at, column, b, c, dc, past, n, steps)
    _retreat(g, da + at, rates + at, column, b, c, db, past, n, steps)


def make_scan_block(fill, prepare, walk_group, finish, tied):  # type: ignore[no-untyped-def]
    """All directions of one task, from how rates are laid out, a chunk is prepared, walked through and finished."""

    @inline
    def walk_chunk(table, r, b, k, first, channels, kept, start, steps, n, scratch):  # type: ignore[no-untyped-def]
        rates = rates_at(scratch)
        g, da = rates + 2 * n * ROW, rates + 3 * n * ROW
        b_rows, db = rows_at(scratch, n), shares_at(scratch, n)
        c_rows, dc = b_rows + CHUNK * n * 4, db + CHUNK * n * VECTOR
        past = past_at(scratch, n)
        fill_rows(table, Field.B, b, r, k, start, steps, n, b_rows)
        fill_rows(table, Field.C, b, r, k, start, steps, n, c_rows)
        prepare(table, b, r, k, first, channels, start, steps, scratch)
        _clear_shares(db, 2 * CHUNK * n)
        for i in range(0, n, GROUP):
            for v in range((channels + LANES - 1) // LANES):
                at, row, share, column = i * ROW + v * VECTOR, i * 4, i * COLUMN, scratch + v * COLUMN
                b_at, c_at = b_rows + row, c_rows + row
                walk_group(
                    kept + at, g + at, da, rates, i, v, column, b_at, c_at, db + share, dc + share, past, n, steps
                )
        finish(table, b, r, k, first, channels, start, steps, scratch)
        if get(table, Field.DZ) != 0:
            _finish_gate(table, b, r, k, first, channels, start, steps, scratch)
        _finish_rows(table, Field.DB, b, r, k, first // BLOCK, start, steps, db, n)
        _finish_rows(table, Field.DC, b, r, k, first // BLOCK, start, steps, dc, n)

    @inline
    def scan_block(table, scratch, task):  # type: ignore[no-untyped-def]
        b, k, first, channels = task_place(table, task)
        n = groups_up(get(table, Field.STATES))
        length, directions = get(table, Field.LENGTH), get(table, Field.DIRECTIONS)
        chunks = (length + CHUNK - 1) // CHUNK
        rates = rates_at(scratch)
        for r in range(directions):
            fill(table, r, k, first, channels, n, rates)
            clear(rates + 2 * n * ROW, 2 * n)
            clear(scratch + Plane.END * PLANE, 2)
            for back in range(chunks):
                chunk = chunks - 1 - back
                start = chunk * CHUNK
                kept = get(table, Field.CHECKPOINTS) + ((task * directions + r) * chunks + chunk) * n * ROW
                walk_chunk(table, r, b, k, first, channels, kept, start, min(CHUNK, length - start), n, scratch)
            kinds = 1 if tied else get(table, Field.STATES)
            _finish_block(table, b, r, k, first, channels, scratch, rates + 3 * n * ROW, kinds)

    return scan_block


_scan_block = make_scan_block(fill_rates, prepare, _walk_group, finish, False)


def scan_backward(version: int) -> Callable[[int], None]:
    """A worker's entry: takes tasks until none is left. Capturing ``version`` puts it into Numba's cache key."""

    def scan_backward(table):  # type: ignore[no-untyped-def]
        if version < 0:
            return
        slot = fetch_add(table + 8 * Field.SLOT, 1)
        scratch = get(table, Field.SCRATCH) + slot * get(table, Field.SCRATCH_BYTES)
        task = fetch_add(table + 8 * Field.NEXT, 1)
        while task < get(table, Field.TASKS):
            _scan_block(table, scratch, task)
            task = fetch_add(table + 8 * Field.NEXT, 1)

    return scan_backward
