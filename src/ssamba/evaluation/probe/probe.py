"""``ssamba probe``: a data set, a frozen model, a table of what simple classifiers make of its features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ssamba.data.datasets import LAYOUTS, read_layout
from ssamba.evaluation.logistic_regression import C_VALUES
from ssamba.evaluation.probe.cache import cached_features
from ssamba.evaluation.probe.features import LOG_MEL, choose_layers, layer_name, rows_name
from ssamba.evaluation.probe.protocol import Division, Score, all_examples, divisions, evaluate, methods, target_matrix
from ssamba.evaluation.probe.scoring import metric_of
from ssamba.inference.file_stream import Progress
from ssamba.inference.model import Encoder
from ssamba.utils.atomic_write import make_folder, write_text
from ssamba.utils.device import dtype_name
from ssamba.utils.errors import ConfigError, nearest
from ssamba.utils.json_text import dump_json
from ssamba.utils.lock import lock_folder
from ssamba.utils.plots import layer_curves, require_matplotlib
from ssamba.utils.yaml_text import read_yaml

PROBE_FILE, PICTURE_FILE = "results.json", "layers.png"
MEAN, MEAN_STD, ROW_MEAN_STD = "mean", "mean and deviation", "mean and deviation of each row"


ProgressBars = Callable[[str], AbstractContextManager[Progress]]
"""Factory of progress bars: ``progress_bar(label)`` yields a callback progress(done, total, note)."""


def no_bar(label: str) -> AbstractContextManager[Progress]:
    """A progress bar that shows nothing."""
    return nullcontext(lambda done, total, note: None)


@dataclass(frozen=True)
class ScoreRow:
    """One kind of features: the layer (None for log-mel), how it is pooled, values, and each method's score."""

    layer: int | None
    pooling: str
    values: int
    scores: dict[str, Score]

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{'log-mel' if self.layer is None else f'layer {self.layer}'}, {self.pooling}"


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found. ``from_cache``: no audio had to be read. ``dtype``: of the model."""

    layout: str
    model: str
    metric: str
    examples: int
    classes: int
    folds: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    from_cache: bool
    notes: tuple[str, ...] = ()
    dtype: str = "fp32"


def layout_of(name: str) -> str:
    """The layout that a name means: a layout's own, or that of a recipe file (.yaml, key ``layout``).

    Raises ``ConfigError`` for an unknown name, or a recipe without layout.
    """
    if name in LAYOUTS:
        return name
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = sorted(LAYOUTS)
        raise ConfigError(f"data set '{name}' is unknown{nearest(name, known)} (known: {', '.join(known)})")
    values = read_yaml(path)
    layout = values.get("layout") if isinstance(values, dict) else None
    if layout not in LAYOUTS:
        raise ConfigError(f"{name}: has no 'layout' that names a data set: give one of {', '.join(sorted(LAYOUTS))}")
    return str(layout)


def probe(
    name: str,
    root: Path,
    model: Encoder,
    layer: str = "last",
    out: Path | None = None,
    source: str = "",
    progress_bar: ProgressBars | None = None,
    c_values: Sequence[float] | None = None,
) -> ProbeResult:
    """Score a frozen model's features on a labelled data set, next to log-mel statistics.

    ``name`` is a layout or a recipe file, ``root`` the data set's folder, ``layer`` a number from 1, ``last`` or
    ``all``. Into ``out`` go the features, for the next time, results.json and, for several layers, layers.png.
    ``source`` is the model's name in the report; ``progress_bar(label)`` opens
    the progress bar of a stage.
    ``c_values`` are the values of C that the regression may choose from, None for the usual ones.

    Raises ``DataError``, ``AudioError``, ``ConfigError``, and ``SsambaError`` when ``out`` cannot be written.
    """
    with nullcontext() if out is None else lock_folder(out):
        return _probe(name, root, model, layer, out, source, progress_bar, c_values)


def _probe(
    name: str,
    root: Path,
    model: Encoder,
    layer: str,
    out: Path | None,
    source: str,
    progress_bar: ProgressBars | None,
    c_values: Sequence[float] | None,
) -> ProbeResult:
    c_values = sorted(C_VALUES if c_values is None else c_values)
    if not c_values or not all(0 < c < math.inf for c in c_values):
        raise ConfigError(f"C {', '.join(f'{c:g}' for c in c_values)}: give numbers above 0")
    layers = choose_layers(layer, model)
    data = read_layout(layout_of(name), root)
    examples = all_examples(data)
    parts = divisions(data, examples)
    targets = target_matrix(examples, len(data.classes))
    if out is not None:
        make_folder(out)
        if len(layers) > 1:
            require_matplotlib(out / PICTURE_FILE)
    progress_bar = progress_bar or no_bar
    with progress_bar("features") as progress:
        found, cached = cached_features(out, data.layout, examples, model, layers, progress)
    with progress_bar("scoring") as progress:
        rows = _score_all(found, layers, targets, parts, data.multi_label, c_values, progress)
    result = ProbeResult(
        data.layout,
        source,
        metric_of(data.multi_label)[0],
        len(examples),
        len(data.classes),
        tuple(part.name for part in parts),
        tuple(rows),
        cached,
        data.notes,
        dtype_name(model.positions.dtype),
    )
    if out is not None:
        write_text(out / PROBE_FILE, dump_json(as_dict(result), indent=2) + "\n")
        if len(layers) > 1:
            draw(result, out / PICTURE_FILE)
    return result


def _score_all(
    found: dict[str, Tensor],
    layers: tuple[int, ...],
    targets: Tensor,
    parts: list[Division],
    multi_label: bool,
    c_values: Sequence[float],
    progress: Progress,
) -> list[ScoreRow]:
    kinds: list[tuple[int | None, str, Tensor]] = [(None, MEAN_STD, found[LOG_MEL])]
    for number in layers:
        both = found[layer_name(number)]
        kinds += [(number, MEAN, both[:, : both.shape[1] // 2]), (number, MEAN_STD, both)]
        if (rows := found.get(rows_name(number))) is not None:
            kinds.append((number, ROW_MEAN_STD, rows))
    scored: list[ScoreRow] = []
    for i, (layer, pooling, x) in enumerate(kinds):
        scores = {m.name: evaluate(x, targets, parts, m, multi_label) for m in methods(multi_label, c_values)}
        scored.append(ScoreRow(layer, pooling, x.shape[1], scores))
        progress(i + 1, len(kinds), scored[-1].name)
    return scored


def as_dict(result: ProbeResult) -> dict[str, Any]:
    """Plain values for results.json: scores from 0 to 1, with each fold's and the setting chosen there."""
    settings = {m.name: m.setting for m in methods(False)}
    return {
        "layout": result.layout,
        "model": result.model,
        "dtype": result.dtype,
        "metric": result.metric,
        "examples": result.examples,
        "classes": result.classes,
        "notes": list(result.notes),
        "rows": [
            {
                "features": row.name,
                "layer": row.layer,
                "pooling": row.pooling,
                "values": row.values,
                **{
                    name: {
                        "mean": score.mean,
                        "deviation": score.deviation,
                        "folds": dict(zip(result.folds, score.folds, strict=True)),
                        settings[name]: dict(zip(result.folds, score.settings, strict=True)),
                    }
                    for name, score in row.scores.items()
                },
            }
            for row in result.rows
        ],
    }


def probe_table(result: ProbeResult) -> str:
    """The table, with a line above that says what was measured."""
    folds = f"mean and deviation over {len(result.folds)} folds" if len(result.folds) > 1 else "on the test split"
    names = list(result.rows[0].scores)
    lines = [
        f"{result.layout}: {result.examples:,} recordings, {result.classes} classes; {result.metric} {folds}.",
        *(f"Note: {note}." for note in result.notes),
        "",
        f"| frozen features | values | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for row in result.rows:
        cells = [_cell(row.scores[name]) for name in names]
        lines.append(f"| {row.name} | {row.values} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(score: Score) -> str:
    spread = f" ± {100 * score.deviation:.1f}" if len(score.folds) > 1 else ""
    return f"{100 * score.mean:.1f} %{spread}"


def draw(result: ProbeResult, out: Path) -> None:
    """Score against layer, with log-mel's as a level line, to ``out`` (.png)."""
    series = {}
    for name in result.rows[0].scores:
        for pooling in (MEAN, MEAN_STD):
            rows = [row for row in result.rows if row.layer is not None and row.pooling == pooling]
            series[f"{name}, {pooling}"] = [(float(row.layer or 0), row.scores[name].mean) for row in rows]
    levels = {f"log-mel, {name}": score.mean for name, score in result.rows[0].scores.items()}
    layer_curves(series, levels, f"{result.layout}: {result.metric} of frozen features", result.metric, out)
