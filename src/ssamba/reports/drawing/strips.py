"""Pictures against time that fill the page's width: spectrograms, scores in time, with axes that are not stretched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssamba.inference.outputs.figures import hertz_ticks
from ssamba.inference.outputs.html import escape
from ssamba.reports.drawing.raster import png_uri, score_levels, spectrogram_levels
from ssamba.reports.drawing.scale import Scale, number_text

SPECTROGRAM_HEIGHT, ROW_HEIGHT, AXIS_HEIGHT = 128, 22, 30
LONGEST_SIDE = 1600
"""Columns of a picture; a longer recording is averaged to as many."""


@dataclass(frozen=True)
class LabelSpan:
    """A labelled stretch: seconds from begin to end, and the row of its class."""

    begin: float
    end: float
    row: int


def spectrogram_strip(levels: npt.NDArray[np.uint8], bins: int, nyquist: float, label: str) -> str:
    """A spectrogram from colour indices (bins, frames), with round frequencies at the left."""
    places, texts = hertz_ticks(bins, nyquist)
    height = SPECTROGRAM_HEIGHT
    chosen = [(p, t) for p, t in zip(places, texts, strict=True) if t in ("100", "500", "1000", "2000", "4000", "8000")]
    heights = [(max(10.0, round(height * (1 - place / bins) + 4, 1)), text) for place, text in chosen]
    ticks = "".join(f'<text class="tick y" x="100%" dx="-6" y="{y}">{_hertz(text)}</text>' for y, text in heights)
    return (
        f'<svg width="100%" height="{height}" aria-hidden="true">{ticks}</svg>'
        f'<svg class="strip" width="100%" height="{height}" role="img" aria-label="{escape(label)}">'
        f'<image width="100%" height="100%" preserveAspectRatio="none" href="{png_uri(levels, "spectrogram")}"/></svg>'
    )


def score_strip(
    names: Sequence[str],
    scores: npt.NDArray[np.float32],
    every: float,
    spans: Sequence[LabelSpan],
    seconds: float,
    label: str,
) -> str:
    """Scores (rows in time, classes) of ``every`` s each, a line for each name, with labelled stretches outlined.

    The last row may run beyond the recording of ``seconds``; it is cut there.
    """
    height = ROW_HEIGHT * len(names)
    texts = "".join(f"<li>{escape(name)}</li>" for name in names)
    boxes = "".join(
        f'<rect class="span" x="{_share(s.begin, seconds)}" y="{ROW_HEIGHT * s.row + 2}" '
        f'width="{_share(s.end - s.begin, seconds)}" height="{ROW_HEIGHT - 4}"/>'
        for s in spans
    )
    uri, width = png_uri(score_levels(scores), "scores"), _share(every * len(scores), seconds)
    return (
        f'<ul class="rows" aria-hidden="true">{texts}</ul>'
        f'<svg class="strip" width="100%" height="{height}" role="img" aria-label="{escape(label)}">'
        f'<image class="pixels" width="{width}" height="100%" preserveAspectRatio="none" href="{uri}"/>{boxes}</svg>'
    )


def time_axis(seconds: float, start: float = 0.0) -> str:
    """Round seconds below a strip."""
    scale = Scale(start, start + seconds, 0, 100)
    ticks = scale.ticks(7)
    texts = "".join(
        f'<line class="axis" x1="{scale(t)}%" x2="{scale(t)}%" y1="0" y2="4"/>'
        f'<text class="tick {_side(scale(t))}" x="{scale(t)}%" y="16">{number_text(t, 4)}'
        f"{' s' if t == ticks[-1] else ''}</text>"
        for t in ticks
    )
    return f'<span></span><svg class="strip-axis" width="100%" height="22" aria-hidden="true">{texts}</svg>'


def averaged(log_mel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log-mel of at most ``LONGEST_SIDE`` columns: means of equally many neighbouring frames, fewer at the end."""
    size = -(-len(log_mel) // LONGEST_SIDE)
    if size <= 1:
        return log_mel
    begins = np.arange(0, len(log_mel), size)
    counts = np.diff(np.append(begins, len(log_mel)))
    return np.asarray(np.add.reduceat(log_mel, begins, axis=0) / counts[:, None], dtype=np.float32)


def levels_of(log_mel: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Colour indices of a spectrogram by its first to 99.8th percentile."""
    low, high = np.percentile(log_mel, [1, 99.8])
    return spectrogram_levels(averaged(log_mel), float(low), float(high))


def _share(seconds: float, whole: float) -> str:
    return f"{100 * seconds / whole:.3f}%"


def _hertz(text: str) -> str:
    return f"{int(text) // 1000} kHz" if int(text) >= 1000 else f"{text} Hz"


def _side(place: float) -> str:
    return "first" if place < 3 else "last" if place > 97 else "x"
