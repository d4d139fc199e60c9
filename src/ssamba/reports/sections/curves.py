"""Learning curves: loss, accuracy and learning rate against the step or the epoch, of one log or of several folds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ssamba.reports.drawing.lines import PALETTE, LineChart, Series, line_chart
from ssamba.reports.drawing.scale import number_text, readable_duration
from ssamba.reports.material import Material
from ssamba.reports.page import Section, data_table, details, remark
from ssamba.reports.runs import FINETUNING, FIT, INDEX, PRETRAINING, PROBE
from ssamba.training.log import read_log

DRAWN_FOLDS = 8
"""Folds that have a line of their own."""
TABLE_ROWS = 40
_TITLES = {
    "nce": "InfoNCE (nats a hidden patch)",
    "mse": "mean squared error (normalised units)",
}
Rows = Sequence[Mapping[str, str]]


def curves_section(material: Material) -> Section | str:
    """The section, or why there is none."""
    run = material.run
    if run.kind in (FIT, PROBE, INDEX):
        reasons = {
            FIT: "a fit goes straight to the minimum of its loss",
            PROBE: "a probe fits its classifiers to the minimum of their loss",
            INDEX: "nothing is trained for an index",
        }
        return f"Learning curves: {reasons[run.kind]}."
    if run.kind == PRETRAINING:
        return _pretraining(read_log(run.folder))
    logs = {fold.name.replace("-", " "): read_log(fold) for fold in run.folds}
    assert run.kind == FINETUNING
    logs = {name: rows for name, rows in logs.items() if rows}
    return _folds(logs, str(run.recipe.get("metric", "accuracy")))


def _pretraining(rows: Rows) -> Section | str:
    if not rows:
        return "Learning curves: the run has logged no step yet."
    charts = [
        _chart("loss", "joint loss (InfoNCE in nats + 10 x mean squared error)", rows),
        _chart("accuracy", "accuracy (share of hidden patches named)", rows),
        line_chart(LineChart("learning rate", "step", [Series("rate", _points(rows, "lr"), 2)], whole_x=True)),
    ]
    others = [
        k for k in rows[-1] if k not in ("step", "epoch", "loss", "accuracy", "lr", "seconds", "clips_per_second")
    ]
    for name in others:
        if not name.startswith("val_"):
            charts.append(_chart(name, _TITLES.get(name, name.replace("_", " ")), rows))
    seconds, speed = _last(rows, "seconds"), _last(rows, "clips_per_second")
    said = "" if seconds is None else f"{readable_duration(seconds)} of training in all"
    said += "" if speed is None else f", {number_text(speed)} clips a second at the end"
    body = f'<div class="charts">{"".join(charts)}</div>' + (remark(said + ".") if said else "")
    return Section("curves", "Learning curves", body + _numbers(rows), "Curves")


def _chart(key: str, title: str, rows: Rows) -> str:
    series = [Series("training", _points(rows, key), 0, noisy=True)]
    if validation := _points(rows, f"val_{key}"):
        series.append(Series("validation", validation, 1, marked=True))
    return line_chart(LineChart(title, "step", series, whole_x=True))


def _folds(logs: Mapping[str, Rows], metric: str) -> Section | str:
    if not logs:
        return "Learning curves: no fold has logged a step yet."
    drawn = dict(list(logs.items())[:DRAWN_FOLDS])
    alone = len(drawn) == 1
    metric = "mAP" if any(_points(rows, "val_mAP") for rows in logs.values()) and metric == "mAP" else "accuracy"
    charts = []
    titles = {
        "loss": "training loss (nats a clip)",
        "val_loss": "loss of clips not trained on (nats)",
        f"val_{metric}": f"{metric} of clips not trained on",
        "lr": "learning rate",
    }
    for key, title in titles.items():
        series = [
            Series(
                "" if alone else name, _points(rows, key, "epoch"), n % PALETTE, key.startswith("val_"), key == "loss"
            )
            for n, (name, rows) in enumerate(drawn.items())
        ]
        if key == "lr":
            series = series[:1]
        charts.append(line_chart(LineChart(title, "epoch", series)))
    more = f"The first {DRAWN_FOLDS} of {len(logs)} folds. " if len(logs) > len(drawn) else ""
    totals = [_last(rows, "seconds") or 0.0 for rows in logs.values()]
    said = remark(f"{more}{readable_duration(sum(totals))} of training in all.")
    tables = "".join(_numbers(rows, "" if alone else f" of {name}") for name, rows in drawn.items())
    return Section("curves", "Learning curves", f'<div class="charts">{"".join(charts)}</div>{said}{tables}', "Curves")


def _points(rows: Rows, key: str, x: str = "step") -> list[tuple[float, float]]:
    found = [(row.get(x) or row["step"], row.get(key)) for row in rows]
    pairs = [(float(at), float(value)) for at, value in found if value]
    return [(at, value) for at, value in pairs if math.isfinite(at) and math.isfinite(value)]


def _last(rows: Rows, key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key)]
    return float(values[-1]) if values else None


def _numbers(rows: Rows, of: str = "") -> str:
    """The log's rows as a table, those with a validation before others."""
    columns = [name for name in rows[0] if any(row.get(name) for row in rows)]
    chosen = [row for row in rows if any(row.get(c) for c in columns if c.startswith("val_"))] or list(rows)
    if len(chosen) > TABLE_ROWS:
        chosen = [chosen[i * (len(chosen) - 1) // (TABLE_ROWS - 1)] for i in range(TABLE_ROWS)]
    body = [[_cell(row.get(name)) for name in columns] for row in chosen]
    said = f"Log{of}: {len(chosen)} of {len(rows)} rows"
    return details(said, data_table([c.replace("_", " ") for c in columns], body, said))


def _cell(value: str | None) -> str:
    return number_text(float(value), 4) if value else ""
