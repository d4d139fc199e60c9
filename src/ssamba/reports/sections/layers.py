"""A probe's scores: what simple classifiers make of each layer's features, next to log-mel statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ssamba.evaluation.probe.features import layer_name
from ssamba.models.pretrained.model_dir import load_tensors
from ssamba.reports.drawing.lines import LineChart, Series, line_chart
from ssamba.reports.drawing.scale import percent
from ssamba.reports.material import Material
from ssamba.reports.page import Section, data_table, details, remark
from ssamba.reports.runs import FEATURE_FILES, PROBE, Run
from ssamba.utils.tensor_file import read_header

METHODS = ("linear", "nearest neighbours")


def layers_section(material: Material) -> Section | str:
    """The section, or why there is none."""
    results = material.run.results
    if material.run.kind != PROBE or results is None:
        return "" if material.run.kind != PROBE else "Scores: the probe has not come to its end."
    rows = results["rows"]
    methods = [name for name in METHODS if name in rows[0]]
    metric = str(results["metric"])
    table = [[str(row["features"]), f"{row['values']:,}", *(_score(row[name]) for name in methods)] for row in rows]
    folds = list(rows[0][methods[0]]["folds"])
    over = f"mean and deviation over {len(folds)} folds" if len(folds) > 1 else "on the test split"
    said = f"{metric}, {over}; settings are chosen without the test clips."
    body = remark(said) + _chart(rows, methods, metric)
    body += data_table(["frozen features", "values", *methods], table, f"{metric} of simple classifiers")
    return Section("layers", "What the features know", body + details("Each fold", _folds(rows, methods, folds)))


def _chart(rows: list[dict[str, Any]], methods: list[str], metric: str) -> str:
    layers = [row for row in rows if row["layer"] is not None]
    if len({row["layer"] for row in layers}) < 2:
        return ""
    charts = []
    for name in methods:
        series = [
            Series(
                _short(pooling),
                [(float(r["layer"]), 100 * float(r[name]["mean"])) for r in layers if r["pooling"] == pooling],
                number,
                marked=True,
            )
            for number, pooling in enumerate(dict.fromkeys(str(r["pooling"]) for r in layers))
        ]
        levels = [("log-mel", 100 * float(r[name]["mean"])) for r in rows if r["layer"] is None]
        charts.append(line_chart(LineChart(f"{name}: {metric} (%)", "layer", series, levels, whole_x=True)))
    return f'<div class="charts">{"".join(charts)}</div>'


def _short(pooling: str) -> str:
    return {"mean": "mean", "mean and deviation": "mean, dev."}.get(pooling, "rows")


def _score(values: dict[str, Any]) -> str:
    spread = f" ± {100 * values['deviation']:.1f}" if len(values["folds"]) > 1 else ""
    return f"{percent(float(values['mean']))}{spread}"


def _folds(rows: list[dict[str, Any]], methods: list[str], folds: list[str]) -> str:
    table = []
    for row in rows:
        for name in methods:
            setting = "C" if name == "linear" else "k"
            cells = [f"{percent(float(row[name]['folds'][f]))} ({setting} {row[name][setting][f]:g})" for f in folds]
            table.append([f"{row['features']}, {name}", *cells])
    return data_table(["features, method", *(f"fold {f}" for f in folds)], table, "Each fold, with the setting chosen")


def cached_layer(run: Run) -> tuple[int, npt.NDArray[np.float32]] | None:
    """The last layer that a probe's folder holds features of, and these (N, values); None where that is not clear."""
    files = sorted(run.folder.glob(FEATURE_FILES[0]))
    if len(files) != 1:
        return None
    names = [name for name in read_header(files[0]).entries if name == layer_name(_number(name))]
    if not names:
        return None
    last = max(names, key=_number)
    return _number(last), load_tensors(files[0])[last].numpy()


def _number(name: str) -> int:
    digits = name.rpartition("layer")[2].strip(" _-.")
    return int(digits) if digits.isdecimal() else 0
