"""Figures of outputs in memory: spectrogram above, scores or frames below. Needs ``ssamba[plot]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssamba.audio.log_mel import LOW_FREQUENCY, mel
from ssamba.inference.outputs.excerpt import Excerpt
from ssamba.utils.plots import new_figure, short_name
from ssamba.utils.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERTZ_TICKS = (100, 500, 1000, 2000, 4000, 8000, 16000, 32000)
DRAWN_CLASSES = 8
"""Classes that a figure of scores draws."""
COMPARED_FRAMES = 1500
"""Frames that a figure of embeddings compares with each other; of longer recordings the first ones."""

_Floats = npt.NDArray[np.float32]


def hertz_ticks(bins: int, nyquist: float) -> tuple[list[float], list[str]]:
    """Positions of round frequencies on the axis of mel bins, from 20 Hz to half the sample rate."""
    low, high = float(mel(LOW_FREQUENCY)), float(mel(nyquist))
    ticks = [hertz for hertz in HERTZ_TICKS if hertz <= nyquist]
    return [bins * (float(mel(hertz)) - low) / (high - low) for hertz in ticks], [str(hertz) for hertz in ticks]


def scores_figure(
    classes: Sequence[str], scores: _Floats, spans: npt.NDArray[np.float64], seconds: float, excerpt: Excerpt | None
) -> Figure:
    """Scores (rows, classes) of one recording: bars for one row, a map in time for several.

    Up to ``DRAWN_CLASSES`` are drawn, those that score highest anywhere. Raises ``SsambaError`` without matplotlib.
    """
    chosen = np.argsort(-scores.max(axis=0), kind="stable")[:DRAWN_CLASSES]
    figure = new_figure(8, 1.6 + 0.32 * len(chosen) + (2.6 if excerpt is not None else 0))
    heights = ([] if excerpt is None else [2.6]) + [0.6 + 0.32 * len(chosen)]
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    names = [short_name(printable(classes[c]), 28) for c in chosen[::-1]]
    if excerpt is not None:
        _draw_spectrogram(panels[0], excerpt)
        panels[0].set_xlim(0, seconds)
    panel = panels[-1]
    if len(scores) == 1:
        panel.barh(np.arange(len(chosen)), scores[0, chosen[::-1]], color="#0072B2")
        panel.set_yticks(np.arange(len(chosen)), names)
        panel.set_xlim(0, 1)
        panel.set_xlabel("score")
        panel.set_title("class scores")
        return figure
    chosen = chosen[np.argsort(scores[:, chosen].argmax(axis=0), kind="stable")]
    names = [short_name(printable(classes[c]), 28) for c in chosen[::-1]]
    edges = [*spans[:, 0].tolist(), seconds]
    mesh = panel.pcolormesh(edges, np.arange(len(chosen) + 1), scores[:, chosen[::-1]].T, cmap="viridis")
    mesh.set_clim(0, 1)
    panel.set_yticks(np.arange(len(chosen)) + 0.5, names)
    panel.tick_params(axis="y", length=0)
    panel.set_xlim(0, seconds)
    panel.set_xlabel("time (s)")
    panel.set_title("class scores")
    figure.colorbar(mesh, ax=panel, label="score", fraction=0.04, pad=0.02)
    return figure


def frames_figure(frames: _Floats, times: npt.NDArray[np.float64], excerpt: Excerpt | None) -> Figure:
    """Which stretches of a recording resemble each other: cosine similarity of its frames (T, d), after their mean.

    Raises ``SsambaError`` without matplotlib.
    """
    frames, times = frames[:COMPARED_FRAMES], times[:COMPARED_FRAMES]
    half = float(times[1] - times[0]) / 2 if len(times) > 1 else float(times[0])
    begin, end = float(times[0]) - half, float(times[-1]) + half
    figure = new_figure(6.4, 6.2 if excerpt is None else 8.4)
    heights = ([] if excerpt is None else [2.0]) + [5.6]
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if excerpt is not None:
        _draw_spectrogram(panels[0], excerpt)
        panels[0].set_xlim(begin, end)
    centred = frames - frames.mean(axis=0)
    centred = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    image = panels[-1].imshow(
        centred @ centred.T, origin="lower", aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest",
        extent=(begin, end, begin, end),
    )  # fmt: skip
    panels[-1].set_title(f"similarity of frames, {len(frames)} of {frames.shape[1]} values")
    panels[-1].set_xlabel("time (s)")
    panels[-1].set_ylabel("time (s)")
    figure.colorbar(image, ax=panels[-1], label="cosine similarity after the mean", fraction=0.04, pad=0.02)
    return figure


def _draw_spectrogram(panel: Axes, excerpt: Excerpt) -> None:
    log_mel = excerpt.log_mel()
    low, high = np.percentile(log_mel, [1, 99.8])
    bins = log_mel.shape[1]
    look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": low, "vmax": max(high, low + 1e-3)}
    extent = (0, excerpt.covered, 0, bins)
    image = panel.imshow(log_mel.T, extent=extent, interpolation="nearest", **look)
    part = "" if excerpt.covered >= excerpt.seconds else f", the first {excerpt.covered:g} s"
    panel.set_title(short_name(printable(excerpt.name), 40 if part else 60) + part)
    panel.set_xlabel("time (s)")
    panel.set_ylabel("Hz (mel scale)")
    panel.set_yticks(*hertz_ticks(bins, excerpt.front_end.nyquist))
    panel.figure.colorbar(image, ax=panel, label="log-mel energy", fraction=0.04, pad=0.02)
