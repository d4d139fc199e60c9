"""How a classifier did: folds, classes with their intervals, which is taken for which, and the clips to listen to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ssamba.evaluation.metrics import wilson
from ssamba.inference.outputs.html import escape
from ssamba.reports.drawing.scale import number_text, percent
from ssamba.reports.drawing.shares import interval_bar
from ssamba.reports.material import LISTED_MISTAKES, ClipPrediction, Material
from ssamba.reports.page import Section, data_table, remark
from ssamba.reports.runs import FIT

LARGEST_MATRIX = 60
"""Classes of a confusion matrix; of more it lists the most frequent confusions."""
LISTED_PAIRS = 40
SHADES = 10


def folds_section(material: Material) -> Section | str:
    """A row for each fold, with the mean and the deviation."""
    results = material.run.results
    if results is None:
        return "Results: the run has not come to its end."
    folds = results["folds"]
    if not folds:
        return "Results: no clip was held out, so nothing was measured."
    names = list(results["mean"])
    rows = [
        [
            str(fold["name"]),
            *(f"{fold['clips'][part]:,}" for part in ("train", "validation", "test")),
            "-" if material.run.kind == FIT else "averaged" if fold["epoch"] is None else str(fold["epoch"]),
            *(_metric(name, fold["metrics"][name]) for name in names),
        ]
        for fold in folds
    ]
    for label, values in (("mean", results["mean"]), ("sample deviation", results["sample_deviation"])):
        if values is not None and len(folds) > 1:
            rows.append([label, "", "", "", "", *(_metric(name, values[name]) for name in names)])
    head = ["fold", "train", "validation", "test", "epoch", *names]
    if material.run.kind == FIT:
        head, rows = [h for h in head if h != "epoch"], [row[:4] + row[5:] for row in rows]
    said = f"Test clips of each fold. Reported: {results['chosen']}. The kept model is that of {results['model']}."
    return Section("results", "Results by fold", remark(said) + data_table(head, rows, "Scores of each fold"), "Folds")


def classes_section(material: Material) -> Section | str:
    """Counts, recall and precision of each class with Wilson's intervals."""
    scores, predictions = material.class_scores, material.predictions
    if not scores:
        return "Scores of each class: the run has none yet."
    if not predictions:
        return _scores_alone(scores)
    rows = []
    for name in sorted(scores, key=lambda n: _recall(predictions, n)[2]):
        right, total, share = _recall(predictions, name)
        named = sum(p.predicted == name for p in predictions)
        low, high = wilson(right, total)
        plow, phigh = wilson(right, named)
        rows.append(
            [
                escape(name),
                f"{right} of {total}",
                interval_bar(share if total else 0.0, low, high),
                percent(share) if total else "-",
                f"{100 * low:.0f} to {100 * high:.0f} %",
                f"{right} of {named}",
                f"{100 * plow:.0f} to {100 * phigh:.0f} %" if named else "-",
                percent(scores[name].get("average_precision", math.nan)),
                number_text(scores[name].get("AUC", math.nan)),
            ]
        )
    head = ["class", "recognised", "0 to 100 %", "recall", "95 %", "right of those named", "95 %", "AP", "AUC"]
    said = (
        "The weakest class first. Intervals are Wilson's for 95 %: with so many clips the true share may lie anywhere "
        "in them. AP is the average precision of the ranking by this class's score."
    )
    table = data_table(head, rows, "Scores of each class", raw=(0, 2))
    return Section("classes", "Classes", remark(said) + table)


def _scores_alone(scores: dict[str, dict[str, float]]) -> Section:
    names = list(next(iter(scores.values())))
    rows = [
        [name, *(_class_cell(column, values.get(column, math.nan)) for column in names)]
        for name, values in sorted(scores.items(), key=lambda item: _order(item[1].get("average_precision", math.nan)))
    ]
    said = "The weakest class first, by average precision. Clips may have several labels, or a label each second."
    head = ["class", *(n.replace("_", " ") for n in names)]
    return Section("classes", "Classes", remark(said) + data_table(head, rows, "Scores of each class"))


def _class_cell(column: str, value: float) -> str:
    if column == "rows":
        return f"{value:,.0f}"
    return number_text(value) if column == "AUC" else percent(value)


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _recall(predictions: Sequence[ClipPrediction], name: str) -> tuple[int, int, float]:
    total = sum(p.label == name for p in predictions)
    right = sum(p.label == name and not p.wrong for p in predictions)
    return right, total, right / total if total else math.inf


def confusion_section(material: Material) -> Section | str:
    """The matrix as a table whose cells open the clips in them."""
    predictions = material.predictions
    if not predictions:
        return "Confusion matrix: the run has no predictions of single clips (several labels, or a label each second)."
    seen = {p.label for p in predictions} | {p.predicted for p in predictions}
    names = [*material.class_scores, *sorted(seen - material.class_scores.keys())]
    if len(names) > LARGEST_MATRIX:
        return _frequent(predictions, len(names))
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for p in predictions:
        counts[place[p.label], place[p.predicted]] += 1
    top = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(counts, i, j, names) for j in range(len(names)))}</tr>'
        for i, name in enumerate(names)
    ]
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="matrix"><caption>'
        "Rows are the true class, columns the predicted one</caption>"
        f'<thead><tr><th scope="col" class="corner">true ↓ predicted →</th>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    said = "Each test clip once, in the fold that did not train on it. Choose a cell to list its clips."
    panel = '<div id="cell-clips" class="clips" aria-live="polite"></div>'
    return Section("confusion", "What is taken for what", remark(said) + table + panel, "Confusion")


def _cell(counts: np.ndarray, i: int, j: int, names: Sequence[str]) -> str:
    count, total = int(counts[i, j]), int(counts[i].sum())
    shade = 0 if not count else max(1, round(SHADES * count / max(total, 1)))
    mark = f"{'hit' if i == j else 'miss'} s{shade}"
    if not count:
        return '<td class="none">·</td>'
    label = escape(f"{count} of {names[i]} taken for {names[j]}" if i != j else f"{count} of {names[i]} recognised")
    return (
        f'<td class="{mark}"><button type="button" class="cell" data-true="{escape(names[i])}" '
        f'data-predicted="{escape(names[j])}" aria-label="{label}">{count}</button></td>'
    )


def _frequent(predictions: Sequence[ClipPrediction], classes: int) -> Section:
    pairs: dict[tuple[str, str], int] = {}
    for p in predictions:
        if p.wrong:
            pairs[p.label, p.predicted] = pairs.get((p.label, p.predicted), 0) + 1
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:LISTED_PAIRS]
    rows = [[true, predicted, str(count)] for (true, predicted), count in ranked]
    said = f"The {len(rows)} most frequent of {len(pairs)} confusions among {classes} classes."
    table = data_table(["true class", "predicted", "clips"], rows, "Most frequent confusions")
    return Section("confusion", "What is taken for what", remark(said) + table, "Confusion")


def mistakes_section(material: Material) -> Section | str:
    """The surest wrong predictions, with players."""
    if not material.predictions:
        return ""
    wrong = material.mistakes
    if not wrong:
        return "Wrong predictions: there are none."
    rows = []
    for p in wrong[:LISTED_MISTAKES]:
        number = material.number_of(p.clip)
        button = "" if number is None else material.store.play_button(number)
        rows.append([escape(p.clip), button, p.label, p.predicted, percent(p.score), p.fold])
    head = ["clip", "listen", "class", "predicted", "score", "fold"]
    if not material.store.playable:
        head, rows = [h for h in head if h != "listen"], [row[:1] + row[2:] for row in rows]
    raw = (0, 1) if "listen" in head else (0,)
    said = (
        f"{len(wrong)} of {len(material.predictions)} test clips, those with the highest score of a wrong class first: "
        "listen to them for labels that are wrong, and sounds that the classes do not cover."
    )
    table = data_table(head, rows, f"The {len(rows)} surest wrong predictions", raw=raw)
    return Section("mistakes", "Clips to listen to", remark(said) + table, "Clips")


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return number_text(value, 4) if name in ("loss", "d_prime") else percent(value, 2)
