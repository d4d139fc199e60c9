"""Line charts as SVG: series with labels at their ends, faint raw values behind a smoothed line, level lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ssamba.inference.outputs.html import escape
from ssamba.reports.drawing.scale import Scale, number_text, scale_of, spread_labels

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, NARROW_RIGHT, TOP, BOTTOM = 46, 84, 14, 12, 34
DRAWN_POINTS = 240
"""Points of a line; of more, means of neighbours are drawn."""
SMOOTHED_FROM = 60
"""Values from which on a noisy series is drawn smoothed, with its values faint behind it."""
PALETTE = 8
"""Colours of the style sheet, c0 to c7."""


@dataclass(frozen=True)
class Series:
    """A line: its name, points (x, y) in order, colour number, and whether its points are marked.

    ``noisy``: many values of single steps, drawn smoothed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    marked: bool = False
    noisy: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class LineChart:
    """A chart: title with the unit of y, label of x, lines, and dashed levels (name, y)."""

    title: str
    x_label: str
    series: Sequence[Series]
    levels: Sequence[tuple[str, float]] = field(default=())
    whole_x: bool = False


def line_chart(chart: LineChart) -> str:
    """The chart as a figure with a caption, and its numbers as a table to open. "" without any point."""
    drawn = [s for s in chart.series if len(s.points)]
    if not drawn:
        return ""
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points] + [y for _, y in chart.levels]
    if any(s.noisy for s in drawn):  # a few extremes of single steps would flatten the rest
        low, high = np.percentile([y for s in drawn for _, y in s.points], [0.5, 99.5])
        outer = [y for s in drawn for _, y in (s.points[0], s.points[-1])]
        ys = [float(low), float(high), *outer, *(y for s in drawn if not s.noisy for _, y in s.points)]
    right = RIGHT if len(drawn) + len(chart.levels) > 1 else NARROW_RIGHT
    x = scale_of(xs, LEFT, WIDTH - right)
    y = scale_of(ys, HEIGHT - BOTTOM, TOP)
    parts = [_axes(x, y, chart, WIDTH - right)]
    ends: list[float] = []
    for s in drawn:
        points = [(px, min(max(py, y.low), y.high)) for px, py in s.points]
        if s.noisy and len(points) > SMOOTHED_FROM:
            parts.append(_path(points, x, y, f"line faint c{s.colour}"))
            points = _smoothed(points)
        parts.append(_path(points, x, y, f"line c{s.colour}" + (" dashed" if s.dashed else "")))
        if s.marked:
            parts += [
                f'<circle class="c{s.colour} fill" cx="{x(px)}" cy="{y(py)}" r="2.4"/>' for px, py in thinned(points)
            ]
        ends.append(y(points[-1][1]))
    for _, level in chart.levels:
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - right}" y1="{y(level)}" y2="{y(level)}"/>')
        ends.append(y(level))
    names = [s.name if right == RIGHT else "" for s in drawn] + [name for name, _ in chart.levels]
    colours = [f"c{s.colour}" for s in drawn] + ["quiet"] * len(chart.levels)
    placed = spread_labels(ends, 12, TOP + 4, HEIGHT - BOTTOM)
    parts += [
        f'<text class="{colour} end" x="{WIDTH - right + 5}" y="{at + 3.5}">{escape(_short(name))}</text>'
        for name, colour, at in zip(names, colours, placed, strict=True)
        if name
    ]
    return _figure(chart, "".join(parts), drawn)


def _axes(x: Scale, y: Scale, chart: LineChart, right: float) -> str:
    parts = []
    for tick in y.ticks(6):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text class="tick y" x="{LEFT - 5}" y="{y(tick) + 3.5}">{number_text(tick)}</text>')
    bottom = HEIGHT - BOTTOM
    ticks = [t for t in x.ticks(5) if not chart.whole_x or float(t).is_integer()]
    for tick in ticks:
        parts.append(f'<line class="axis" x1="{x(tick)}" x2="{x(tick)}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick x" x="{x(tick)}" y="{bottom + 15}">{number_text(tick, 4)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text class="tick x" x="{middle}" y="{HEIGHT - 4}">{escape(chart.x_label)}</text>')
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale, mark: str) -> str:
    places = [f"{x(px):g} {y(py):g}" for px, py in thinned(points)]
    return f'<path class="{mark}" d="M{"L".join(places if len(places) > 1 else places * 2)}"/>'


def thinned(points: Sequence[tuple[float, float]], most: int = DRAWN_POINTS) -> list[tuple[float, float]]:
    """At most about ``most`` points: the first and the last, and means of neighbours in between."""
    if len(points) <= most:
        return list(points)
    inner = np.array_split(np.asarray(points[1:-1], dtype=np.float64), most - 2)
    means = [tuple(part.mean(axis=0).tolist()) for part in inner]
    return [points[0], *[(px, py) for px, py in means], points[-1]]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A running mean over a twentieth of the points, over fewer at the ends."""
    table: npt.NDArray[np.float64] = np.asarray(points, dtype=np.float64)
    kernel = np.ones(max(3, len(points) // 20 | 1))
    weight = np.convolve(np.ones(len(points)), kernel, mode="same")
    values = np.convolve(table[:, 1], kernel, mode="same") / weight
    return list(zip(table[:, 0].tolist(), values.tolist(), strict=True))


def _figure(chart: LineChart, inner: str, drawn: Sequence[Series]) -> str:
    said = "; ".join(_spoken(s) for s in drawn)
    label = escape(f"{chart.title} against {chart.x_label}. {said}")
    return (
        f'<figure class="chart"><figcaption>{escape(chart.title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inner}</svg></figure>'
    )


def _spoken(s: Series) -> str:
    """A series in words, for readers who do not see it."""
    values = [y for _, y in s.points if math.isfinite(y)]
    return (
        f"{s.name}: from {number_text(values[0])} to {number_text(values[-1])}, lowest {number_text(min(values))}, "
        f"highest {number_text(max(values))}"
    )


def _short(name: str, longest: int = 14) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
