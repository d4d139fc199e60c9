"""Standardising features, and how answers are scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssamba.training import metrics

LEAST_DEVIATION = 1e-8
"""A feature that deviates less, relative to its size, carries nothing and is left at 0."""


@dataclass(frozen=True)
class Standardiser:
    """Takes each feature's mean away and divides by its deviation, both of the training examples. (d,) float64."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Standardiser:
        """From training features (N, d)."""
        x = x.double()
        deviation, mean = torch.std_mean(x, dim=0, correction=0)
        constant = deviation <= LEAST_DEVIATION * mean.abs().clamp_min(1e-12)
        return cls(mean, torch.where(constant, 0.0, 1 / deviation))

    def __call__(self, x: Tensor) -> Tensor:
        """Features (N, d) -> (N, d) float64."""
        return (x.double() - self.mean) * self.scale


def metric_of(multi_label: bool) -> tuple[str, Callable[[Tensor, Tensor], float]]:
    """A set's metric: name, and function of scores and 0-or-1 targets, both (N, classes), to a value from 0 to 1.

    Accuracy, or for a multi-label set the mean over the classes of average precision.
    """
    return ("mAP", _mean_average_precision) if multi_label else ("accuracy", _accuracy)


def _accuracy(scores: Tensor, targets: Tensor) -> float:
    return metrics.accuracy(scores.numpy(), targets.numpy())


def _mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    return metrics.mean(metrics.average_precision(scores.numpy(), targets.numpy()))
