"""Fit a linear head on every fold's training clips, with the setting of the lowest held-out loss, and test it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssamba.evaluation.logistic_regression import LinearModel, of_known_classes
from ssamba.evaluation.probe.protocol import Division
from ssamba.models.losses import classification_loss
from ssamba.training.finetune.evaluate import ClassifierOutputs, by_example
from ssamba.training.fit.heads import LinearHead

Step = Callable[[int, int], None]
"""Called as step(done, total) after each fit."""


@dataclass(frozen=True)
class Bank:
    """Features of a set: one row for each window of an example.

    Attributes:
        values: (rows, d) float32, what the classifier's linear layer reads.
        owners: (rows,) int64, ascending numbers of the examples; unreadable ones have no row.
        targets: (examples, classes) float64, 1 where the class holds.
        loss: ``ce`` or ``bce``.
        negatives: (n, d) rows of no class, which a sigmoid's regressions are fitted on as well.
    """

    values: Tensor
    owners: Tensor
    targets: Tensor
    loss: str
    negatives: Tensor | None = None

    def rows(self, numbers: Tensor) -> Tensor:
        """Which rows belong to these examples: (rows,) bool."""
        return torch.isin(self.owners, numbers)

    def fit(self, head: LinearHead, numbers: Tensor, settings: Sequence[float]) -> list[LinearModel]:
        """A model for each setting, fitted on these examples."""
        rows = self.rows(numbers)
        values, targets = self.values[rows], self.targets[self.owners[rows]]
        if self.negatives is not None and self.loss == "bce":
            values = torch.cat([values, self.negatives])
            targets = torch.cat([targets, targets.new_zeros(len(self.negatives), targets.shape[1])])
        return head.fit(values, targets, settings)

    def of_known_classes(self, train: Tensor, held: Tensor) -> Tensor:
        """Those of ``held`` whose classes ``train`` has an example of: others say nothing about a fit on ``train``."""
        known = self.targets[torch.unique(self.owners[self.rows(train)])]
        return held[of_known_classes(known, self.targets[held])]

    def outputs(self, model: LinearModel, numbers: Tensor) -> ClassifierOutputs:
        """A model's logits for these examples, in their order, numbered by their place in ``numbers``."""
        place = {number: i for i, number in enumerate(numbers.tolist())}
        rows = self.rows(numbers)
        owners = torch.tensor([place[n] for n in self.owners[rows].tolist()], dtype=torch.int64, device="cpu")
        logits = model.scores(self.values[rows]).float()
        owners, order = owners.sort(stable=True)
        return by_example(logits[order], self.targets[numbers[owners]].float(), owners, self.loss)


@dataclass(frozen=True)
class Validated:
    """What cross-validation gives: for each fold its setting and test outputs; the setting for a model of all clips."""

    settings: tuple[float, ...]
    outputs: tuple[ClassifierOutputs, ...]
    best: float


def cross_validate(bank: Bank, head: LinearHead, parts: Sequence[Division], step: Step) -> Validated:
    """Test the head on each division; its setting is chosen within what the division fits on.

    ``best`` has the lowest loss over all test clips where there are several divisions, else it is the one's own. Of
    equal losses the smaller setting wins.
    """
    jobs = _jobs(parts) if len(head.settings) > 1 else {}
    total = len(jobs) + len(parts)
    losses = [_Losses(len(head.settings)) for _ in parts]
    for done, (numbers, uses) in enumerate(jobs.items()):
        train = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        models = bank.fit(head, train, head.settings)
        for division, held in uses:
            losses[division].add(bank, models, train, held)
        step(done + 1, total)
    chosen = [head.settings[found.best(head)] for found in losses]
    overall, outputs = _Losses(len(head.settings)), []
    for i, (part, setting) in enumerate(zip(parts, chosen, strict=True)):
        settings = head.settings if len(parts) > 1 else (setting,)
        models = bank.fit(head, part.fit, settings)
        outputs.append(bank.outputs(models[settings.index(setting)], part.test))
        if len(parts) > 1:
            overall.add(bank, models, part.fit, part.test)
        step(len(jobs) + i + 1, total)
    best = head.settings[overall.best(head)] if len(parts) > 1 else chosen[0]
    return Validated(tuple(chosen), tuple(outputs), best)


def _jobs(parts: Sequence[Division]) -> dict[tuple[int, ...], list[tuple[int, Tensor]]]:
    """Training examples -> which division holds out which others.

    In cross-validation the fold held out and the one tested on may be exchanged: one fit serves both.
    """
    jobs: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for number, part in enumerate(parts):
        for train, held in part.choose:
            jobs.setdefault(tuple(sorted(train.tolist())), []).append((number, held))
    return jobs


class _Losses:
    """Sums of held-out losses for each setting."""

    def __init__(self, settings: int) -> None:
        self._sums, self._count = torch.zeros(settings, dtype=torch.float64, device="cpu"), 0

    def add(self, bank: Bank, models: Sequence[LinearModel], train: Tensor, held: Tensor) -> None:
        """Add held-out examples. Those of a class that ``train`` has no example of say nothing about a setting."""
        held = bank.of_known_classes(train, held)
        if not bank.rows(held).any():
            return
        for i, model in enumerate(models):
            found = bank.outputs(model, held)
            loss = classification_loss(found.logits, found.targets, bank.loss)
            self._sums[i] += float(loss) * len(found.examples)
        self._count += len(held)

    def best(self, head: LinearHead) -> int:
        """The number of the setting with the lowest loss; the default's where nothing was held out."""
        return int(self._sums.argmin()) if self._count else head.settings.index(head.default)
