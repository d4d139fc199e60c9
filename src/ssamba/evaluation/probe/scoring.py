"""Metrics of the probe."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ssamba.evaluation import metrics


def metric_of(multi_label: bool) -> tuple[str, Callable[[Tensor, Tensor], float]]:
    """A set's metric: name, and function of scores and 0-or-1 targets, both (N, classes), to a value from 0 to 1.

    Accuracy, or for a multi-label set the mean over the classes of average precision.
    """
    return ("mAP", _mean_average_precision) if multi_label else ("accuracy", _accuracy)


def _accuracy(scores: Tensor, targets: Tensor) -> float:
    return metrics.accuracy(scores.numpy(), targets.numpy())


def _mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    return metrics.mean(metrics.average_precision(scores.numpy(), targets.numpy()))
