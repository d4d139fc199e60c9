"""Figures of predictions and reconstructions, as PNG. Needs ``ssamba[plot]``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssamba.audio.front_end import PUBLISHED
from ssamba.inference.outputs.figures import hertz_ticks
from ssamba.inference.reconstruct import Reconstruction, reconstruct
from ssamba.utils.plots import figure_file, require_matplotlib, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ssamba.data.labels.event import Event
    from ssamba.inference.model import Encoder
    from ssamba.inference.predict import Prediction


def reconstruction_picture(
    model: Encoder,
    path: str | os.PathLike[str],
    out: Path,
    mask: int | None = None,
    mask_kind: str = "cluster",
    seed: int = 0,
    start: float = 0.0,
) -> Reconstruction:
    """Mask patches of a recording, let the model predict them, and draw all three spectrograms; see ``reconstruct``."""
    require_matplotlib(out)
    found = reconstruct(model, path, mask, mask_kind, seed, start)
    three_spectrograms(found, out)
    return found


def three_spectrograms(found: Reconstruction, out: Path) -> None:
    """Original, masked and reconstructed log-mel, one under the other, on one colour scale."""
    import matplotlib

    low, high = np.percentile(found.original, [1, 99.8])
    colours = matplotlib.colormaps["magma"].with_extremes(bad="#c8c8c8")
    end = found.start + found.front_end.seconds_between(len(found.original))
    panels = (
        ("original", found.original),
        ("masked: the model reads all but the grey patches", np.ma.masked_array(found.original, found.masked)),
        ("reconstructed: masked patches as the model predicts them", found.predicted),
    )
    with figure_file(out, 9, 8) as figure:
        figure.suptitle(f"{short_name(found.name)}: {found.mask} of {found.patches} patches masked", fontsize=13)
        axes = figure.subplots(3, 1, sharex=True)
        for panel, (title, values) in zip(axes, panels, strict=True):
            image = panel.imshow(
                values.T,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                cmap=colours,
                vmin=low,
                vmax=max(high, low + 1e-3),
                extent=(found.start, end, 0, found.original.shape[1]),
            )
            panel.set_title(title)
            panel.set_ylabel("Hz (mel scale)")
            panel.set_yticks(*hertz_ticks(found.original.shape[1], found.front_end.nyquist))
        axes[-1].set_xlabel("time (s)")
        figure.colorbar(image, ax=axes, label="log-mel energy (natural log)", fraction=0.04, pad=0.02)


def timeline(
    prediction: Prediction,
    log_mel: npt.NDArray[np.float32],
    name: str | os.PathLike[str],
    out: Path,
    most: int = 8,
    nyquist: float = PUBLISHED.nyquist,
    events: Sequence[Event] | None = None,
) -> None:
    """A recording's spectrogram, and below it on the same axis the scores of its classes in time.

    ``prediction`` has rows in time; ``log_mel`` (columns, mel_bins) covers all of the recording, up to ``nyquist`` Hz.
    At most ``most`` classes are drawn, those that score highest anywhere, in the order in which they are at their best.
    ``events`` are outlined in the rows of their classes, which are drawn before others.
    """
    scores = prediction.scores.numpy()
    named = {event.label for event in events or ()}
    rank = scores.max(axis=0) + np.array([name in named for name in prediction.classes])
    chosen = np.argsort(-rank, kind="stable")[:most]
    chosen = chosen[np.argsort(scores[:, chosen].argmax(axis=0), kind="stable")]
    edges = [*prediction.spans[:, 0].tolist(), prediction.seconds]
    low, high = np.percentile(log_mel, [1, 99.8])
    bins = log_mel.shape[1]
    with figure_file(out, 10, 4.4 + 0.32 * len(chosen)) as figure:
        figure.suptitle(short_name(os.path.basename(name)), fontsize=13)
        heights = [2.6, 0.6 + 0.32 * len(chosen)]
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        extent = (0, prediction.seconds, 0, bins)
        look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": low, "vmax": max(high, low + 1e-3)}
        image = above.imshow(log_mel.T, extent=extent, interpolation="nearest", **look)
        above.set_title("spectrogram")
        above.set_ylabel("Hz (mel scale)")
        above.set_yticks(*hertz_ticks(bins, nyquist))
        figure.colorbar(image, ax=above, label="log-mel energy", fraction=0.04, pad=0.02)
        # The first class on top, as one reads.
        mesh = below.pcolormesh(edges, np.arange(len(chosen) + 1), scores[:, chosen[::-1]].T, cmap="viridis")
        mesh.set_clim(0, 1)
        below.set_title("class scores" if events is None else f"class scores, events outlined ({len(events)})")
        _outline(below, events or (), [prediction.classes[c] for c in chosen[::-1]])
        below.set_yticks(np.arange(len(chosen)) + 0.5, [short_name(prediction.classes[c], 28) for c in chosen[::-1]])
        below.tick_params(axis="y", length=0)
        below.set_xlabel("time (s)")
        below.set_xlim(0, prediction.seconds)
        figure.colorbar(mesh, ax=below, label="score", fraction=0.04, pad=0.02)


def _outline(panel: Axes, events: Sequence[Event], names: Sequence[str]) -> None:
    """A box around each event, in the row of its class: white on dark, so that it shows on every colour."""
    from matplotlib.patches import Rectangle

    rows = {name: row for row, name in enumerate(names)}
    for event in events:
        if event.label in rows:
            corner = (event.start, rows[event.label] + 0.06)
            for colour, width in (("black", 3.0), ("white", 1.4)):
                box = Rectangle(corner, event.seconds, 0.88, fill=False, edgecolor=colour, linewidth=width)
                panel.add_patch(box)
