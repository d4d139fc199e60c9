"""How good scores are: accuracy, average precision, AUC, d', confusions. Plain numpy in float64.

``scores`` are (N, classes), higher for likelier; ``targets`` (N, classes) are 1 where the class holds and 0 elsewhere.
A class without test examples (or, for AUC, that every test example has) has no value: NaN, left out of means.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def softmax(logits: npt.ArrayLike) -> Array:
    """Probabilities (N, classes) that add up to 1."""
    x = np.asarray(logits, dtype=np.float64)
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(x / x.sum(axis=-1, keepdims=True), dtype=np.float64)


def sigmoid(logits: npt.ArrayLike) -> Array:
    """Probabilities (N, classes), each by itself."""
    x = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def accuracy(scores: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Share of rows whose best score is their class. Rows have one class each."""
    return float(np.mean(np.argmax(scores, axis=1) == np.argmax(targets, axis=1)))


def average_precision(scores: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """Average precision of each class, (classes,): the sum of precision times the growth of recall, ties together."""
    return _by_class(_average_precision, scores, targets)


def auc(scores: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """Area under the ROC curve of each class, (classes,): how often a positive is above a negative, ties half."""
    return _by_class(_auc, scores, targets)


def mean(values: npt.ArrayLike) -> float:
    """Mean over the classes that have a value; NaN when none has."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan


def d_prime(area: float) -> float:
    """sqrt(2) times the normal quantile of an AUC; infinite at 0 and 1."""
    if math.isnan(area):
        return math.nan
    if not 0 < area < 1:
        return math.copysign(math.inf, area - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(area)


def confusion(scores: npt.ArrayLike, targets: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Counts (classes, classes): row the true class, column the one with the best score."""
    classes = np.shape(scores)[1]
    cells = np.argmax(targets, axis=1) * classes + np.argmax(scores, axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_accuracy(counts: npt.ArrayLike) -> Array:
    """Share of each class's rows that were recognised, (classes,), from ``confusion``."""
    table = np.asarray(counts, dtype=np.float64)
    rows = table.sum(axis=1)
    return np.where(rows > 0, np.diag(table) / np.maximum(rows, 1), np.nan)


def wilson(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a share of which ``right`` in ``total`` is an estimate; (0, 1) of none."""
    if not total:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    share = right / total
    middle = share + z2 / (2 * total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total * total)))
    return max(0.0, (middle - half) / (1 + z2 / total)), min(1.0, (middle + half) / (1 + z2 / total))


def _by_class(
    function: Callable[[Array, npt.NDArray[np.bool_]], float], scores: npt.ArrayLike, targets: npt.ArrayLike
) -> Array:
    table, truth = np.asarray(scores, dtype=np.float64), np.asarray(targets) > 0.5
    return np.array([function(table[:, c], truth[:, c]) for c in range(table.shape[1])], dtype=np.float64)


def _average_precision(scores: Array, truth: npt.NDArray[np.bool_]) -> float:
    if not truth.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # last row of each group of ties
    found = np.cumsum(truth[order])[ends]
    growth = np.diff(found, prepend=0) / found[-1]
    return float(np.sum(growth * found / (ends + 1)))


def _auc(scores: Array, truth: npt.NDArray[np.bool_]) -> float:
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(sizes) - (sizes - 1) / 2  # the mean rank of each group of ties, from 1
    above = ranks[group][truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
