"""Maps of points in two dimensions, a colour and a mark for each group, every point a button that plays its clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssamba.inference.outputs.html import escape
from ssamba.reports.drawing.lines import PALETTE
from ssamba.reports.drawing.scale import scale_of

SIDE, MAP_MARGIN = 420, 14
_MARKS = (
    "M{x} {y}m-4.4 0a4.4 4.4 0 1 0 8.8 0a4.4 4.4 0 1 0 -8.8 0",
    "M{x} {y}m-4 -4h8v8h-8z",
    "M{x} {y}m0 -5l5 9h-10z",
    "M{x} {y}m0 -5.6l5.2 5.6l-5.2 5.6l-5.2 -5.6z",
    "M{x} {y}m-1.7 -5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
)
"""Circle, square, triangle, diamond, cross."""


@dataclass(frozen=True)
class MapPoint:
    """A clip on the map: its place, group, number among the page's clips, what is said of it, and whether it stands
    out (a clip that was classified wrongly)."""

    x: float
    y: float
    group: int
    clip: int
    said: str
    wrong: bool = False


def point_map(points: Sequence[MapPoint], groups: Sequence[str], label: str) -> str:
    """The map as a figure with a legend whose names bring their group to the front."""
    x = scale_of([p.x for p in points], MAP_MARGIN, SIDE - MAP_MARGIN)
    y = scale_of([p.y for p in points], SIDE - MAP_MARGIN, MAP_MARGIN)
    marks = "".join(
        f'<path class="point c{p.group % PALETTE}{" wrong" if p.wrong else ""}" data-clip="{p.clip}" '
        f'data-group="{p.group}" data-x="{x(p.x):g}" data-y="{y(p.y):g}" role="button" '
        f'tabindex="{0 if i == 0 else -1}" aria-label="{escape(p.said)}" d="{_mark(p.group, x(p.x), y(p.y))}"/>'
        for i, p in enumerate(points)
    )
    present = sorted({p.group for p in points})
    present = present if len(present) > 1 else []
    legend = "".join(
        f'<li><button type="button" class="group" data-group="{g}" aria-pressed="false">{_key(g)}'
        f"{escape(groups[g])}</button></li>"
        for g in present
    )
    return (
        f'<figure class="map"><svg viewBox="0 0 {SIDE} {SIDE}" role="group" aria-label="{escape(label)}">'
        f'<rect class="frame" x="0.5" y="0.5" width="{SIDE - 1}" height="{SIDE - 1}"/>{marks}</svg>'
        f'<div class="side"><p class="info" aria-live="polite">Point at a clip, or use the arrow keys.</p>'
        + (f'<ul class="legend" aria-label="Groups">{legend}</ul>' if legend else "")
        + "</div></figure>"
    )


def _mark(group: int, x: float, y: float) -> str:
    return _MARKS[(group + group // PALETTE) % len(_MARKS)].format(x=f"{x:g}", y=f"{y:g}")


def _key(group: int) -> str:
    path = f'<path class="c{group % PALETTE}" d="{_mark(group, 7, 7)}"/>'
    return f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{path}</svg>'
