"""Whether scores can be taken for probabilities: a reliability diagram and the expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssamba.evaluation.calibration import BINS, bin_rows, expected_calibration_error
from ssamba.evaluation.metrics import wilson
from ssamba.reports.drawing.scale import number_text, percent
from ssamba.reports.drawing.shares import ReliabilityBin, reliability_diagram
from ssamba.reports.material import ClipPrediction, Material
from ssamba.reports.page import Section, data_table, details, facts, remark

DRAWN_BINS = 10


def calibration_section(material: Material) -> Section | str:
    """The section, or why there is none."""
    results = material.run.results
    stored = None if results is None else results.get("calibration")
    predictions = material.predictions
    if not predictions and stored is None:
        return "Calibration: the run has no scores of single clips."
    parts = [] if stored is None else [facts(_stored(stored))]
    if predictions:
        confidence, right = _columns(predictions)
        ece = expected_calibration_error(confidence, right, "bce", BINS)
        before = "before the temperature, " if stored is not None and "note" not in stored else ""
        said = (
            f"Scores of the {len(predictions)} test clips, {before}in {DRAWN_BINS} bins of equal width. Expected "
            f"calibration error {percent(ece)} ({BINS} bins). On the dashed diagonal a score is as high as the share "
            "right; lines are 95 % intervals, the bars below numbers of clips."
        )
        parts += [remark(said), _diagram(confidence, right)]
    return Section("calibration", "Calibration", "".join(parts))


def _columns(predictions: list[ClipPrediction]) -> tuple[np.ndarray, np.ndarray]:
    confidence = np.array([[p.score] for p in predictions], dtype=np.float64)
    return confidence, np.array([[float(not p.wrong)] for p in predictions], dtype=np.float64)


def _diagram(confidence: np.ndarray, right: np.ndarray) -> str:
    bins = []
    for count, sure, share in bin_rows(confidence, right, "bce", DRAWN_BINS):
        low, high = wilson(round(share * count), count)
        bins.append(ReliabilityBin(count, sure, share, low, high))
    label = "Reliability diagram: " + "; ".join(
        f"confidence {percent(b.confidence, 0)}, right {percent(b.right, 0)} of {b.count}" for b in bins if b.count
    )
    rows = [
        [percent(b.confidence), percent(b.right), f"{100 * b.low:.0f} to {100 * b.high:.0f} %", str(b.count)]
        for b in bins
        if b.count
    ]
    table = data_table(["mean confidence", "right", "95 %", "clips"], rows, "Reliability")
    chart = reliability_diagram(bins, label, "Share right against confidence")
    return f'<div class="charts">{chart}</div>{details("The numbers", table)}'


def _stored(values: dict[str, Any]) -> list[tuple[str, str]]:
    if "note" in values:
        return [("calibration", str(values["note"]))]
    return [
        ("temperature", f"{number_text(values['temperature'])}, which the kept model's logits are divided by"),
        ("fitted on", f"{values['clips']:,} clips of {values['fitted_on']}"),
        ("expected calibration error", f"{_share(values['ece_before'])} before, {_share(values['ece_after'])} after"),
        (
            "negative log-likelihood",
            f"{_number(values['nll_before'])} before, {_number(values['nll_after'])} after, nats",
        ),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _number(value: float | None) -> str:
    return "-" if value is None else number_text(value)
