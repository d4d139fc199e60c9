"""Axes: round tick values, numbers as text, and values to positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ssamba.utils.terminal import duration


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on positions from ``begin`` to ``end``, with ticks at round values."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale, as near to ``count`` of them as 1, 2 and 5 times a power of ten allow."""
        least = (self.high - self.low) / max(count - 1, 1)
        found = [self._multiples(nice_step(least * factor)) for factor in (1.0, 0.45)]
        return min(found, key=lambda ticks: abs(len(ticks) - count))

    def _multiples(self, step: float) -> list[float]:
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def nice_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least as large."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def scale_of(values: Sequence[float], begin: float, end: float, from_zero: bool = False) -> Scale:
    """A scale that holds all values with a margin; of equal values one around them."""
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    if high - low < 1e-12 * max(abs(high), 1e-12):
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    margin = 0.04 * (high - low)
    return Scale(low if from_zero and low == 0 else low - margin, high + margin, begin, end)


def number_text(value: float, digits: int = 3) -> str:
    """A number for an axis or a table: no exponent for the usual sizes, and no zeros at the end."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if 1e-4 <= abs(value) < 1e6:
        text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else f"{float(text):,.0f}") or "0"
    text, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{text.rstrip('0').rstrip('.')}e{int(power)}"


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent, "-" where there is none."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "-"


def readable_duration(seconds: float) -> str:
    """Seconds as a time that is read easily."""
    return f"{number_text(seconds)} s" if seconds < 120 else duration(seconds)


def spread_labels(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions of labels near these, at least ``gap`` apart, within the bounds where there is room."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [0.0] * len(positions)
    before = low - gap
    for i in order:
        before = placed[i] = max(positions[i], before + gap)
    after = high + gap
    for i in reversed(order):
        after = placed[i] = min(placed[i], after - gap)
    return [round(p, 1) for p in placed]
