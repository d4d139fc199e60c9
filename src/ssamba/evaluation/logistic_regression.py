"""Logistic regression on standardised features: convex, without randomness, in double precision.

The loss is that of scikit-learn's ``LogisticRegression(C=c)``: the sum of the examples' losses times c, plus half the
squared weights; biases are free. Several classes share a softmax; in a multi-label set each has a sigmoid (one
against the rest).

L-BFGS takes few steps because the problem is preconditioned: in the basis of the features' principal axes, each scaled
by its initial curvature, the loss is nearly isotropic. The rotation leaves the squared weights as they are, so the
solution is the same. Fits for several c start from the solution of the previous one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidate values of C (inverse L2 strength)."""
MAX_STEPS = 400
GRADIENT_TOLERANCE = 1e-4
"""Gradient tolerance of the preconditioned problem: the largest component of the mean loss's gradient.

A tenth of it moved the accuracies of 40 spoken words by 0.1 points at most, and took 1.7 times as long.
"""
SINGLE_THREAD_MAX = 20_000_000
"""Products in one evaluation up to which one thread is used: more would gain nothing, and lose on a busy machine."""

MIN_DEVIATION = 1e-8
"""A feature that deviates less, relative to its size, carries nothing and is left at 0."""


@dataclass(frozen=True)
class Standardiser:
    """Subtracts each feature's mean and divides by its deviation, both of the training examples. (d,) float64."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Standardiser:
        """From training features (B, d)."""
        x = x.double()
        deviation, mean = torch.std_mean(x, dim=0, correction=0)
        constant = deviation <= MIN_DEVIATION * mean.abs().clamp_min(1e-12)
        return cls(mean, torch.where(constant, 0.0, 1 / deviation))

    def __call__(self, x: Tensor) -> Tensor:
        """Features (B, d) -> (B, d) float64."""
        return (x.double() - self.mean) * self.scale


@dataclass(frozen=True)
class LinearModel:
    """Scores of classes: standardised features (B, d) @ weight (d, classes) + bias (classes,)."""

    standardise: Standardiser
    weight: Tensor
    bias: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, d)."""
        return self.standardise(x) @ self.weight + self.bias


def fit_linear(
    x: Tensor,
    targets: Tensor,
    c_values: Sequence[float] = C_VALUES,
    multi_label: bool = False,
    tolerance: float = GRADIENT_TOLERANCE,
) -> list[LinearModel]:
    """Fit one model for each value of C, in the given order; ascending order is the quickest.

    ``x`` (B, d) features; ``targets`` (B, classes), 1 where the class holds and else 0, or shares.
    """
    with _single_thread_if_small(x.numel() * targets.shape[1]):
        standardise = Standardiser.of(x)
        rotation, rotated = _principal_axes(standardise(x))
        problem = _Problem(rotated, targets.double(), multi_label)
        weight = rotated.new_zeros(rotated.shape[1], targets.shape[1])
        bias = problem.first_bias()
        models = []
        for c in c_values:
            weight, bias = problem.solve(c, weight, bias, tolerance)
            models.append(LinearModel(standardise, rotation @ weight, bias))
        return models


@contextlib.contextmanager
def _single_thread_if_small(products: int) -> Iterator[None]:
    """Use one thread for a small problem."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if products < SINGLE_THREAD_MAX else before)
        yield
    finally:
        torch.set_num_threads(before)


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (d, r) of the features' principal axes, r = min(B, d), and the features in it (B, r)."""
    basis: Tensor | None = None
    if x.shape[0] < x.shape[1]:  # weights outside the span of the examples would only cost
        basis = torch.linalg.qr(x.T).Q
        x = x @ basis
    axes = torch.linalg.eigh(x.T @ x).eigenvectors
    return (axes if basis is None else basis @ axes), x @ axes


class _Problem:
    """The loss of one training set."""

    def __init__(self, x_Br: Tensor, targets_BO: Tensor, multi_label: bool) -> None:
        self._x, self._targets, self._multi = x_Br, targets_BO, multi_label
        self._energy_r = x_Br.square().mean(dim=0)
        # The derivative of a class's probability at the start, where all are equal.
        share = 0.5 if multi_label else 1 / max(2, targets_BO.shape[1])
        self._curvature = share * (1 - share)

    def first_bias(self) -> Tensor:
        """The logits of the classes' frequencies."""
        share = self._targets.mean(dim=0).clamp(1e-6, 1 - 1e-6)
        return share.logit() if self._multi else share.log()

    def solve(self, c: float, weight: Tensor, bias: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Weights (r, classes) and biases (classes,) at the minimum."""
        decay = 1 / (c * len(self._x))
        scale_r1 = (self._curvature * self._energy_r + decay).rsqrt()[:, None]
        x_scaled = self._x * scale_r1.T
        scaled = torch.cat([weight / scale_r1, bias[None]]).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [scaled],
            max_iter=MAX_STEPS,
            max_eval=2 * MAX_STEPS,
            tolerance_grad=tolerance,
            tolerance_change=0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def closure() -> float:
            v, b = scaled[:-1], scaled[-1]
            loss, residual_BO = self._loss(x_scaled @ v + b)
            l2_grad = decay * scale_r1.square() * v
            scaled.grad = torch.cat([x_scaled.T @ residual_BO + l2_grad, residual_BO.sum(dim=0)[None]])
            return float(loss + 0.5 * (l2_grad * v).sum())

        optimiser.step(closure)
        with torch.no_grad():
            return scaled[:-1] * scale_r1, scaled[-1].clone()

    def _loss(self, logits_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss, and its gradient with respect to the logits."""
        n = len(logits_BO)
        if self._multi:
            loss = F.binary_cross_entropy_with_logits(logits_BO, self._targets, reduction="sum") / n
            return loss, (logits_BO.sigmoid() - self._targets) / n
        log_shares = logits_BO.log_softmax(dim=1)
        return -(log_shares * self._targets).sum() / n, (log_shares.exp() - self._targets) / n


def of_known_classes(train: Tensor, held: Tensor) -> Tensor:
    """Which held-out examples have only classes that training has an example of: (M,) bool.

    The others say nothing about a fit. ``train`` (N, classes) and ``held`` (M, classes) are 1 where the class holds.
    """
    missing = train.sum(dim=0) == 0
    return held[:, missing].sum(dim=1) == 0


def fit_cross_validated(x: Tensor, labels: Tensor, parts: Tensor, classes: int, smoothing: float = 0.0) -> LinearModel:
    """Fit on all examples, with the value of C that suits held-out examples best.

    ``x`` (B, d) features. ``labels`` (B,) int64 are class numbers: a softmax, and the C that classifies most held-out
    examples correctly; ``smoothing`` is the share of each label that goes to all classes evenly (label smoothing).
    Or ``labels`` (B, classes), 1 where the class holds and else 0: a sigmoid for each class, and the C of the lowest
    loss on held-out examples (of those of ``of_known_classes``), without smoothing. ``parts`` (B,) int64: the examples
    of each number from 0 on are held out in turn, those below 0 never. Of equally good values of C the smallest is
    taken; for sigmoids 1, as in ``ssamba fit``, where nothing can be held out.
    """
    several = labels.dim() == 2
    targets = (
        labels.double() if several else F.one_hot(labels, classes).double() * (1 - smoothing) + smoothing / classes
    )
    good, counted = [0.0] * len(C_VALUES), 0
    for part in range(int(parts.max()) + 1):
        held = parts == part
        if not held.any() or held.all():
            continue
        models = fit_linear(x[~held], targets[~held], multi_label=several)
        if several:
            held[held.clone()] = of_known_classes(targets[~held], targets[held])
        counted += int(held.sum())
        for i, model in enumerate(models):
            scores = model.scores(x[held])
            if several:
                good[i] -= float(F.binary_cross_entropy_with_logits(scores, targets[held], reduction="sum"))
            else:
                good[i] += int((scores.argmax(dim=1) == labels[held]).sum())
    best = C_VALUES[good.index(max(good))] if counted or not several else 1.0
    return fit_linear(x, targets, [best], several)[0]
