"""The vector functions under the CPU kernels, lane by lane, against numpy in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numba import njit

from ssamba.ops.jit import numba_simd


def over(function: Callable[[object], object], x: np.ndarray) -> np.ndarray:
    """The function of every element, by vectors of sixteen."""
    load, store = numba_simd.load, numba_simd.store

    @njit
    def run(source: int, to: int, vectors: int) -> None:
        for i in range(vectors):
            store(to + 64 * i, function(load(source + 64 * i)))

    assert len(x) % 16 == 0
    out = np.full_like(x, np.nan)
    run(x.ctypes.data, out.ctypes.data, len(x) // 16)
    return out


def line(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 1 << 18, dtype=np.float64).astype(np.float32)


def relative(ours: np.ndarray, truth: np.ndarray) -> float:
    return float(np.max(np.abs(ours / truth - 1)))


def test_exponentials() -> None:
    t = line(-126, 126)
    assert relative(over(numba_simd.exp2_decay, t), np.exp2(t.astype(np.float64))) < 2e-7
    x = line(-87, 87)
    assert relative(over(numba_simd.exp, x), np.exp(x.astype(np.float64))) < 3e-7


def test_slow_decays_are_exact_to_the_last_bit() -> None:
    """2**-t of a tiny t: rounding alone, or long memories would drift."""
    t = -np.geomspace(1e-9, 1e-2, 1 << 16).astype(np.float32)
    assert relative(over(numba_simd.exp2_decay, t), np.exp2(t.astype(np.float64))) < 6.1e-8
    assert (over(numba_simd.exp2_decay, np.zeros(16, np.float32)) == 1).all()


def test_softplus_and_its_derivative() -> None:
    x = line(-87, 87)
    truth = np.logaddexp(0, x.astype(np.float64))
    assert relative(over(numba_simd.softplus, x), truth) < 5e-7
    both = numba_simd.softplus_and_derivative
    assert relative(over(numba_simd.inline(lambda v: both(v)[1]), x), 1 / (1 + np.exp(-x.astype(np.float64)))) < 5e-7
    assert relative(over(numba_simd.sigmoid, x), 1 / (1 + np.exp(-x.astype(np.float64)))) < 5e-7


@pytest.mark.parametrize("name", ["exp2_decay", "exp", "sigmoid", "silu", "softplus"])
def test_far_out_and_not_a_number(name: str) -> None:
    x = np.array([np.nan, -np.inf, -1e30, -1e4, 0, 1e-40, -0.0, -200] * 2, np.float32)
    out = over(getattr(numba_simd, name), x)
    assert np.isnan(out[0])
    assert np.isfinite(out[2:8]).all()


def test_sums_of_sixteen_vectors() -> None:
    store, totals = numba_simd.store, numba_simd.totals

    @njit
    def run(low: int, high: int, to: int) -> None:
        store(to, totals(low, high))

    x = np.random.default_rng(0).integers(-99, 99, (16, 16)).astype(np.float32)
    out = np.empty(16, np.float32)
    run(x.ctypes.data, x[8:].ctypes.data, out.ctypes.data)
    assert np.array_equal(out, x.sum(1))
