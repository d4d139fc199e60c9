"""Standardising features and scoring answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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


def accuracy(scores: Tensor, targets: Tensor) -> float:
    """Share of examples whose best score (N, classes) is their class in ``targets``, (N, classes) of 0 and 1."""
    return (scores.argmax(dim=1) == targets.argmax(dim=1)).double().mean().item()


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean over classes of the precision at each new recall, equal scores together. NaN when no class is there.

    Classes that no example has are left out (sklearn's ``average_precision_score`` defines the others the same way).
    """
    found = [_average_precision(s, t) for s, t in zip(scores.T, targets.T, strict=True) if t.any()]
    return sum(found) / len(found) if found else float("nan")


def _average_precision(scores: Tensor, targets: Tensor) -> float:
    ordered, order = scores.sort(descending=True, stable=True)
    hits = targets[order].double().cumsum(dim=0)
    last_of_equals = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    hits, ranks = hits[last_of_equals], torch.arange(1, len(scores) + 1)[last_of_equals]
    recall_steps = torch.cat([hits[:1], hits.diff()]) / hits[-1]
    return (recall_steps * hits / ranks).sum().item()
