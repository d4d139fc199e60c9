"""Whether probabilities are true: expected calibration error, and the one temperature that makes them so.

Logits divided by a temperature T keep the order of the classes. T is the one with the lowest negative log-likelihood
of clips that the classifier was not trained on (arXiv 1706.04599), for softmax and sigmoid alike: a Platt scale for
each class would have two values a class, more than a few held-out clips of it can carry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ssamba.evaluation import metrics
from ssamba.evaluation.metrics import Array

BINS = 15
MIN_CLIPS = 30
"""With fewer held-out clips the temperature stays 1: it would say more of them than of the classifier."""
COLDEST, HOTTEST = 0.01, 100.0
CAUTION = 4.0
"""Holds the temperature of a few clips near 1: as if log T were known to 0.5 before."""


class HeldOut(NamedTuple):
    """Logits of one classifier for clips that it was not trained on, and their targets: (N, classes) both."""

    logits: Array
    targets: Array


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it does to the clips that it is measured on.

    Attributes:
        temperature: that the logits are divided by.
        fitted_on: what its clips are: ``cross-validation``, ``validation``, or empty.
        clips: how many it was fitted on.
        ece_before, ece_after: expected calibration error of the measured clips.
        nll_before, nll_after: their negative log-likelihood, the mean over clips, for sigmoids also over classes.
        note: why the temperature is 1, where it was not fitted.
    """

    temperature: float
    fitted_on: str
    clips: int
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for results.json; what was not measured is null."""
        plain = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}
        return {k: v for k, v in plain.items() if k != "note" or v}


def bin_rows(
    scores: npt.ArrayLike, targets: npt.ArrayLike, loss: str, bins: int = BINS
) -> list[tuple[int, float, float]]:
    """Count, mean confidence and share right of each of ``bins`` bins of equal width, the first from 0 up.

    With ``ce`` a row's confidence is its highest score, right where that class holds. With ``bce`` every class of every
    row counts: its score is the confidence, right where the class holds. A score on a border belongs to the lower bin.
    """
    probabilities, truth = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if loss == "bce":
        confidence, right = probabilities.ravel(), truth.ravel()
    else:
        best = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(best)), best]
        right = truth[np.arange(len(best)), best]
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        here = place == number
        count = int(here.sum())
        found.append((count, float(confidence[here].mean()), float(right[here].mean())) if count else (0, 0.0, 0.0))
    return found


def expected_calibration_error(scores: npt.ArrayLike, targets: npt.ArrayLike, loss: str, bins: int = BINS) -> float:
    """Sum over the bins of (count / all) x abs(share right - mean confidence); NaN without rows."""
    rows = bin_rows(scores, targets, loss, bins)
    total = sum(count for count, _, _ in rows)
    return sum(count * abs(right - sure) for count, sure, right in rows) / total if total else math.nan


def negative_log_likelihood(logits: npt.ArrayLike, targets: npt.ArrayLike, loss: str) -> float:
    """Mean over rows (N, classes), with ``bce`` also over classes, in nats; NaN without rows."""
    x, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if not x.size:
        return math.nan
    if loss == "bce":
        return float(np.mean(np.maximum(x, 0) - x * truth + np.log1p(np.exp(-np.abs(x)))))
    highest = x.max(axis=1, keepdims=True)
    log_sum = highest[:, 0] + np.log(np.exp(x - highest).sum(axis=1))
    return float(np.mean(log_sum - (x * truth).sum(axis=1)))


def fit_temperature(logits: npt.ArrayLike, targets: npt.ArrayLike, loss: str, caution: float = 0.0) -> float:
    """The temperature T from 0.01 to 100 with the lowest negative log-likelihood of all rows; 1 without rows.

    ``caution`` adds to that sum ``caution`` x (b - 1 - log b) of b = 1 / T, which is 0 at 1 and holds T there where the
    rows say little. The whole is convex in b, so its derivative has one sign change, which bisection finds.
    """
    x, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if not x.size:
        return 1.0
    squash = metrics.sigmoid if loss == "bce" else metrics.softmax
    per_row = x.shape[1] if loss == "bce" else 1

    def rising(b: float) -> bool:
        return float(((squash(x * b) - truth) * x).sum()) / per_row + caution * (1 - 1 / b) > 0

    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(math.exp(middle)) else (middle, high)
    return math.exp(-(low + high) / 2)


def calibrate(
    parts: Sequence[HeldOut], loss: str, fitted_on: str, measured: Sequence[HeldOut] | None = None
) -> Calibration:
    """The temperature of all ``parts`` together, and what it does.

    It is fitted with ``CAUTION``: clips that are all right do not make the next one certain. It is measured on
    ``measured``, clips that it was not fitted on. Without them each part is measured with the temperature of all others
    (or, where there is one part alone, with its own).
    """
    clips = sum(len(part.logits) for part in parts)
    if clips < MIN_CLIPS:
        note = f"{clips} held-out clips, {MIN_CLIPS} are needed: the probabilities are not calibrated"
        before = _measure(
            parts if measured is None else measured, [1.0] * len(parts if measured is None else measured), loss
        )
        return Calibration(1.0, "", clips, before[0], before[0], before[1], before[1], note)
    temperature = _together(parts, loss)
    if measured is None:
        measured = parts
        others = [[p for j, p in enumerate(parts) if j != i] or list(parts) for i in range(len(parts))]
        temperatures = [_together(other, loss) for other in others]
    else:
        temperatures = [temperature] * len(measured)
    before, after = _measure(measured, [1.0] * len(measured), loss), _measure(measured, temperatures, loss)
    return Calibration(temperature, fitted_on, clips, before[0], after[0], before[1], after[1])


def _together(parts: Sequence[HeldOut], loss: str) -> float:
    logits, targets = np.concatenate([p.logits for p in parts]), np.concatenate([p.targets for p in parts])
    return fit_temperature(logits, targets, loss, CAUTION)


def _measure(parts: Sequence[HeldOut], temperatures: Sequence[float], loss: str) -> tuple[float, float]:
    """Calibration error and negative log-likelihood of all parts, each with its temperature."""
    if not parts:
        return math.nan, math.nan
    logits = np.concatenate([p.logits / t for p, t in zip(parts, temperatures, strict=True)])
    targets = np.concatenate([p.targets for p in parts])
    squash = metrics.sigmoid if loss == "bce" else metrics.softmax
    return (
        expected_calibration_error(squash(logits), targets, loss),
        negative_log_likelihood(logits, targets, loss),
    )
