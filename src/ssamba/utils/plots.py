"""Figures as PNG: training curves, scores by layer, confusion, maps of embeddings, speed. Needs ``ssamba[plot]``."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssamba.utils.atomic_write import atomic_write
from ssamba.utils.errors import ConfigError, DataError, SsambaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800")
"""Okabe and Ito's colours, which colour-blind readers can tell apart (yellow darkened for thin marks on white)."""
MARKERS = "os^Dv<>P*X"
GRID: Any = {"color": "#e4e4e4", "linewidth": 0.8}
STYLE: Any = {
    "figure.facecolor": "white",  # pages in dark mode keep a light picture
    "savefig.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
DPI = 150


def require_matplotlib(out: Path) -> None:
    """Refuse an output that could not be drawn or named. Raises ``SsambaError``, ``ConfigError``."""
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; give a file name that ends in .png")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: unknown ending '{out.suffix}', give a name that ends in .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise SsambaError(f'{out}: drawing needs matplotlib: pip install "ssamba[plot]"')


def new_figure(width: float, height: float) -> Figure:
    """A figure to be returned, in inches: not pyplot's, so nothing has to be closed; notebooks display it as PNG.

    Raises ``SsambaError`` without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SsambaError('drawing needs matplotlib: pip install "ssamba[plot]"')
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return _figure_class()(figsize=(width, height), dpi=DPI, layout="constrained")


@functools.lru_cache(maxsize=1)
def _figure_class() -> type[Figure]:
    """A figure that notebooks display without a call of ``%matplotlib``."""
    from matplotlib.figure import Figure as PlainFigure

    class NotebookFigure(PlainFigure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=80)
            return file.getvalue()

    return NotebookFigure


@contextlib.contextmanager
def figure_file(out: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written to ``out`` when the block ends well. No window and no global state are touched."""
    require_matplotlib(out)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    with matplotlib.rc_context(STYLE):
        figure = NewFigure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_write(out) as temporary:
            figure.savefig(temporary, format="png")


def loss_curves(log_rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Loss, accuracy and learning rate against the step, from rows of a run's log.csv.

    Columns step, loss, accuracy (0 to 1, drawn in per cent) and lr, with ``val_`` before validation's; text or numbers,
    empty where there is none. Axes begin at 0, but for a loss that stays far above it. Raises ``DataError`` when there
    is nothing to draw.
    """
    if not log_rows:
        raise DataError(f"{out}: the log has no rows yet; train some steps first")
    wanted = (
        ("loss", "loss", ""),
        ("accuracy", "accuracy: share of masked patches that are identified", "%"),
        ("lr", "learning rate", ""),
    )
    present = [(key, title, unit) for key, title, unit in wanted if len(_series(log_rows, key)[0])]
    with figure_file(out, 8, 1.2 + 2.3 * len(present)) as figure:
        axes = figure.subplots(len(present), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (key, title, unit) in zip(axes, present, strict=True):
            _draw_series(panel, log_rows, key)
            panel.set(title=title, ylabel=unit)
            panel.grid(True, **GRID)
            panel.margins(x=0.01)
            low, high = panel.get_ylim()
            if key == "loss" and low > high / 3:
                broken_axis(panel, vertical=True)
            else:
                panel.set_ylim(bottom=0)
        axes[-1].set_xlabel("step")


def _draw_series(panel: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    steps, values = _series(rows, key)
    if key == "lr":
        panel.plot(steps, values, color=COLOURS[2])
        panel.yaxis.set_major_formatter("{x:.3g}")
        return
    scale = 100.0 if key == "accuracy" else 1.0
    # A long run logs thousands of noisy rows: their course in front, the rows themselves pale behind it.
    width = max(1, len(values) // 60)
    if width > 1:
        panel.plot(steps, scale * values, color=COLOURS[0], alpha=0.25, linewidth=0.8)
    panel.plot(steps, scale * _smooth(values, width), color=COLOURS[0])
    # Losses fall and accuracies rise, so the names have room at the top or at the bottom of the right side.
    look: Any = {"transform": panel.transAxes, "ha": "right", "va": "top"}
    top = 0.95 if key == "loss" else 0.32
    panel.text(0.99, top, "training", color=COLOURS[0], **look)
    val_steps, val_values = _series(rows, f"val_{key}")
    if len(val_steps):
        panel.plot(val_steps, scale * val_values, color=COLOURS[3], marker="o", markersize=4.5)
        panel.text(0.99, top - 0.14, "validation", color=COLOURS[3], **look)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    pairs = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) not in (None, "")]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _smooth(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Running mean over ``width`` values, over fewer at the ends."""
    kernel = np.ones(width)
    weight = np.convolve(np.ones(len(values)), kernel, mode="same")
    return np.asarray(np.convolve(values, kernel, mode="same") / weight, dtype=np.float64)


def layer_curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    levels: Mapping[str, float],
    title: str,
    score: str,
    out: Path,
) -> None:
    """Scores (from 0 to 1, drawn in per cent) against the layer: a line for each of ``series``, which holds (layer,
    score) pairs, and a dashed level for what has no layers."""
    with figure_file(out, 8.5, 5.4) as figure:
        panel = figure.subplots()
        for number, (name, points) in enumerate(series.items()):
            layers, values = zip(*points, strict=True)
            percent = [100 * v for v in values]
            panel.plot(layers, percent, color=COLOURS[number], marker=MARKERS[number], markersize=5, label=name)
        for number, (name, value) in enumerate(levels.items()):
            panel.axhline(100 * value, color="#666666", linestyle=("--", ":")[number % 2], linewidth=1.3, label=name)
        panel.set_xticks(sorted({layer for points in series.values() for layer, _ in points}))
        panel.set_title(title)
        panel.set_xlabel("layer")
        panel.set_ylabel(f"{score} (%)")
        panel.grid(True, axis="y", color="#e4e4e4", linewidth=0.8)
        figure.legend(loc="outside lower center", ncols=2)


def confusion_picture(counts: npt.ArrayLike, classes: Sequence[str], out: Path, title: str = "") -> None:
    """Which classes are taken for which: counts (true class, predicted class), each row coloured by its shares.

    The axes have names for up to 60 classes, numbers in the cells of up to 20.
    """
    table = np.asarray(counts, dtype=np.int64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    count = len(table)
    side = min(14.0, 3.2 + 0.36 * count)
    with figure_file(out, side + 1.4, side) as figure:
        panel = figure.subplots()
        image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        figure.suptitle(title, fontsize=11)
        panel.set_xlabel("predicted")
        panel.set_ylabel("true class")
        if count <= 60:
            size = 10 if count <= 20 else 7
            names = [short_name(name, 28) for name in classes]
            panel.set_xticks(range(count), names, rotation=90, fontsize=size)
            panel.set_yticks(range(count), names, fontsize=size)
        for true, predicted in zip(*np.nonzero(table), strict=True) if count <= 20 else ():
            colour = "white" if shares[true, predicted] > 0.55 else "black"
            text = str(table[true, predicted])
            panel.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(image, ax=panel, label="share of the true class", fraction=0.04, pad=0.02)


def embedding_map(points: npt.ArrayLike, labels: Sequence[str], out: Path, title: str = "") -> None:
    """Embeddings reduced to two dimensions, (N, 2), one colour and mark for each label.

    Raises ``DataError`` when points and labels do not fit together.
    """
    table = np.asarray(points, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != 2 or len(table) != len(labels) or not len(table):
        raise DataError(f"{out}: points of shape {table.shape} with {len(labels)} labels, give (N, 2) with N labels")
    # "class 10" after "class 9"
    names = sorted(set(labels), key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)])
    with figure_file(out, 8.5, 6.5) as figure:
        panel = figure.subplots()
        for number, name in enumerate(names):
            chosen = np.array([label == name for label in labels])
            panel.scatter(
                table[chosen, 0],
                table[chosen, 1],
                s=34,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
                edgecolor="white",
                linewidth=0.5,
                alpha=0.9,
                label=short_name(name),
            )
        panel.set_title(title or f"{len(table)} recordings, {len(names)} classes")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_color("#c8c8c8")
        panel.spines[:].set_visible(True)
        figure.legend(loc="outside right upper", ncols=1 + (len(names) - 1) // 24, markerscale=1.2)


@dataclass(frozen=True)
class BenchLine:
    """One model's measurements: (tokens, value) pairs, and the length at which it failed with what is said there."""

    name: str
    points: Sequence[tuple[int, float]]
    failure: tuple[int, str] | None = None


def bench_picture(lines: Mapping[str, Sequence[BenchLine]], out: Path, title: str, label: str) -> None:
    """One panel for each size: a value against the number of tokens, both logarithmic, a cross where a model failed.

    The panels share their axes, and the lines' names stand next to them.
    """
    with figure_file(out, max(7.5, 1 + 4.6 * len(lines)), 4.6) as figure:
        panels = figure.subplots(1, max(len(lines), 1), squeeze=False, sharex=True, sharey=True)[0]
        for panel, (size, models) in zip(panels, lines.items(), strict=True):
            ends = sorted((line.points[-1][1], number) for number, line in enumerate(models) if line.points)
            for number, line in enumerate(models):
                _bench_line(panel, line, COLOURS[number], MARKERS[number])
            for rank, (_, number) in enumerate(ends):
                _name_line(panel, models[number], COLOURS[number], rank, len(ends))
            panel.set(xscale="log", yscale="log", title=size, xlabel="tokens (log scale)")
            panel.xaxis.set_major_formatter("{x:,.0f}")
            panel.yaxis.set_major_formatter("{x:,g}")
            panel.grid(which="major", **GRID)
            panel.margins(y=0.12)
        tokens = [x for models in lines.values() for line in models for x, _ in line.points]
        if tokens:
            panels[0].set_xlim(min(tokens) / 1.4, max(tokens) * 9)  # names stand behind the ends of lines
        panels[0].set_ylabel(f"{label} (log scale)")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)


def _bench_line(panel: Axes, line: BenchLine, colour: str, marker: str) -> None:
    """A model's line, and a cross with the reason where it failed."""
    top = line.points[-1][1] if line.points else 1.0
    if line.points:
        panel.plot(*zip(*line.points, strict=True), color=colour, marker=marker, markersize=4.5)
    if line.failure is not None:
        panel.plot(line.failure[0], top, color=colour, marker="x", markersize=9, markeredgewidth=2)
        panel.annotate(
            line.failure[1], (line.failure[0], top), textcoords="offset points", xytext=(0, 9), ha="right",
            color=colour, fontsize=9,
        )  # fmt: skip


def _name_line(panel: Axes, line: BenchLine, colour: str, rank: int, count: int) -> None:
    """A line's name: of the highest of several left of its middle, of the others behind their ends."""
    look: Any = {"textcoords": "offset points", "color": colour, "fontsize": 9}
    name = line.name.replace(", ", ",\n")
    if count > 1 and rank == count - 1:
        panel.annotate(name, line.points[len(line.points) // 2], xytext=(-7, 2), ha="right", **look)
        return
    below = rank < count - 2
    panel.annotate(name, line.points[-1], xytext=(8, -1 if below else 1), va="top" if below else "bottom", **look)


def broken_axis(panel: Axes, vertical: bool = False) -> None:
    """Mark the horizontal axis, or the vertical one, as one that does not begin at 0: two strokes through its start."""
    strokes: Any = {"transform": panel.transAxes, "color": "black", "clip_on": False, "linewidth": 1.2}
    for at in (0.035, 0.06):
        if vertical:
            panel.plot((-0.008, 0.008), (at + 0.02, at + 0.06), **strokes)
        else:
            panel.plot((at - 0.012, at + 0.012), (-0.02, 0.02), **strokes)


def short_name(name: str, longest: int = 48) -> str:
    """A name that fits into a title; the dollar sign would start a formula."""
    name = name if len(name) <= longest else name[: longest - 12] + "…" + name[-11:]
    return name.encode("utf-8", "replace").decode().replace("$", r"\$")
