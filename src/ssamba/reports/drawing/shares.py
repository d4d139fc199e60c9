"""Shares with their intervals: a reliability diagram, and small bars within tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssamba.inference.outputs.html import escape
from ssamba.reports.drawing.scale import percent

WIDTH_UNITS, HEIGHT_UNITS = 360, 340
_LEFT, _RIGHT, _TOP, _BOTTOM, _BARS = 46, 22, 10, 86, 44
BAR_WIDTH, BAR_HEIGHT = 120, 14


@dataclass(frozen=True)
class ReliabilityBin:
    """Clips of similar confidence: how many, their mean confidence, the share right and its 95 % interval."""

    count: int
    confidence: float
    right: float
    low: float
    high: float


def reliability_diagram(bins: Sequence[ReliabilityBin], label: str, caption: str) -> str:
    """Share right against confidence with intervals, the diagonal, and below how many clips each bin has."""
    right, bottom = WIDTH_UNITS - _RIGHT, HEIGHT_UNITS - _BOTTOM

    def x(share: float) -> float:
        return round(_LEFT + share * (right - _LEFT), 1)

    def y(share: float) -> float:
        return round(bottom - share * (bottom - _TOP), 1)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text class="tick y" x="{_LEFT - 5}" y="{y(tick) + 3.5}">{100 * tick:g} %</text>')
        parts.append(f'<text class="tick x" x="{x(tick)}" y="{HEIGHT_UNITS - 20}">{100 * tick:g} %</text>')
    parts.append(f'<path class="level" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>')
    most = max((b.count for b in bins), default=1)
    base = HEIGHT_UNITS - 34
    for b in bins:
        if not b.count:
            continue
        place = x(b.confidence)
        tall = round(_BARS * b.count / most, 1)
        said = f"{b.count} clips, confidence {percent(b.confidence)}, right {percent(b.right)}"
        parts.append(
            f"<g><title>{said}</title>"
            f'<line class="interval c0" x1="{place}" x2="{place}" y1="{y(b.low)}" y2="{y(b.high)}"/>'
            f'<circle class="c0 fill" cx="{place}" cy="{y(b.right)}" r="4"/>'
            f'<rect class="bar" x="{place - 5}" width="10" y="{round(base - tall, 1)}" height="{tall}"/></g>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text class="tick y" x="{_LEFT - 5}" y="{base - _BARS / 2 + 4}">clips</text>')
    parts.append(f'<text class="tick x" x="{(_LEFT + right) / 2}" y="{HEIGHT_UNITS - 4}">confidence</text>')
    return (
        f'<figure class="chart tall"><figcaption>{escape(caption)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH_UNITS} {HEIGHT_UNITS}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def interval_bar(share: float, low: float, high: float) -> str:
    """A share from 0 to 1 as a mark, its interval as a bar, for a table's cell."""
    middle = BAR_HEIGHT / 2

    def x(value: float) -> float:
        return round(5 + value * (BAR_WIDTH - 10), 1)

    return (
        f'<svg class="bar-cell" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" aria-hidden="true">'
        f'<line class="grid" x1="{x(0)}" x2="{x(1)}" y1="{middle}" y2="{middle}"/>'
        f'<line class="interval c0" x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="c0 fill" cx="{x(share)}" cy="{middle}" r="4"/></svg>'
    )
