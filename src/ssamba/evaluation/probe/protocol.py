"""Cross-validation splits for the probe: the data set's division, with settings chosen without the test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssamba.data.examples import INNER_PARTS, Example, LabelledData, inner_fold_index
from ssamba.evaluation.knn import NEIGHBOURS, neighbour_scores
from ssamba.evaluation.logistic_regression import C_VALUES, fit_linear
from ssamba.evaluation.probe.scoring import metric_of
from ssamba.utils.errors import DataError


@dataclass(frozen=True)
class Division:
    """One fold as numbers of examples: fit on ``fit``, test on ``test``.

    ``choose`` holds pairs (train, validation) within ``fit`` on which settings are chosen.
    """

    name: str
    fit: Tensor
    test: Tensor
    choose: tuple[tuple[Tensor, Tensor], ...]


def all_examples(data: LabelledData) -> list[Example]:
    """Every example of the set once, in the order of the folds. Raises ``DataError`` for scenes."""
    found: dict[str, Example] = {}
    for fold in data.folds:
        for example in (*fold.train, *fold.validation, *fold.test):
            found.setdefault(example.key, example)
    if any(example.per_second is not None for example in found.values()):
        raise DataError(f"{data.layout}: has one label for each second; a probe takes one answer for each recording")
    return list(found.values())


def target_matrix(examples: Sequence[Example], classes: int) -> Tensor:
    """(N, classes) float64: 1 where the class holds."""
    targets = torch.zeros(len(examples), classes, dtype=torch.float64, device="cpu")
    for row, example in zip(targets, examples, strict=True):
        row[list(example.labels)] = 1
    return targets


def divisions(data: LabelledData, examples: Sequence[Example]) -> list[Division]:
    """The official folds. Settings are chosen on a fold's validation part, and training then takes that in.

    Where there is none: in cross-validation each of the other folds is held out in turn (so that what the publishers
    kept together stays together); else each of five parts of the training files, or one of many.
    """
    number = {example.key: i for i, example in enumerate(examples)}

    def numbers(part: Sequence[Example]) -> Tensor:
        return torch.tensor([number[example.key] for example in part], dtype=torch.long, device="cpu")

    out = []
    for fold in data.folds:
        train, validation, test = (numbers(part) for part in (fold.train, fold.validation, fold.test))
        if not len(train) or not len(test):
            raise DataError(f"{data.layout}: fold {fold.name} has {len(train)} to train and {len(test)} to test on")
        if len(validation):
            choose = [(train, validation)]
        elif len(data.folds) > 1:
            held = [numbers(other.test) for other in data.folds if other is not fold]
            choose = [_hold_out(train, torch.isin(train, part)) for part in held]
        else:
            inner = torch.tensor(inner_fold_index(fold.train), device="cpu")
            choose = [_hold_out(train, inner == part) for part in range(INNER_PARTS)]
        choose = [pair for pair in choose if all(map(len, pair))]
        out.append(Division(fold.name, torch.cat([train, validation]), test, tuple(choose)))
    return out


def _hold_out(train: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    return train[~held], train[held]


@dataclass(frozen=True)
class Method:
    """A classifier on frozen features.

    ``scores(train, targets, test, settings)`` fits once for each setting: a list of (M, classes).
    """

    name: str
    setting: str
    settings: tuple[float, ...]
    scores: Callable[[Tensor, Tensor, Tensor, Sequence[float]], list[Tensor]]


def methods(multi_label: bool, c_values: Sequence[float] = C_VALUES) -> tuple[Method, ...]:
    """Logistic regression, with ``c_values`` as values of C to choose from, and nearest neighbours."""

    def linear(train: Tensor, targets: Tensor, test: Tensor, settings: Sequence[float]) -> list[Tensor]:
        return [model.scores(test) for model in fit_linear(train, targets, settings, multi_label)]

    def nearest(train: Tensor, targets: Tensor, test: Tensor, settings: Sequence[float]) -> list[Tensor]:
        return neighbour_scores(train, targets, test, [int(k) for k in settings])

    return (Method("linear", "C", tuple(c_values), linear), Method("nearest neighbours", "k", NEIGHBOURS, nearest))


@dataclass(frozen=True)
class Score:
    """A method's result on each division, from 0 to 1, and the settings that were chosen."""

    folds: tuple[float, ...]
    settings: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return sum(self.folds) / len(self.folds)

    @property
    def deviation(self) -> float:
        """Deviation over the folds (of these folds, not an estimate for others)."""
        return (sum((x - self.mean) ** 2 for x in self.folds) / len(self.folds)) ** 0.5


def evaluate(x: Tensor, targets: Tensor, parts: Sequence[Division], method: Method, multi_label: bool) -> Score:
    """Score features (N, d) on every division: choose the setting inside ``fit``, fit there, test once.

    Of settings that do equally well the first is taken.
    """
    _, metric = metric_of(multi_label)
    results = []
    chosen = _choose(x, targets, parts, method, metric)
    for part, setting in zip(parts, chosen, strict=True):
        (scores,) = method.scores(x[part.fit], targets[part.fit], x[part.test], [setting])
        results.append(metric(scores, targets[part.test]))
    return Score(tuple(results), tuple(chosen))


def _choose(
    x: Tensor, targets: Tensor, parts: Sequence[Division], method: Method, metric: Callable[[Tensor, Tensor], float]
) -> list[float]:
    """The best setting of each division."""
    if len(method.settings) == 1:
        return [method.settings[0]] * len(parts)
    # In cross-validation the fold held out and the one tested on may be exchanged: one fit serves both.
    jobs: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for number, part in enumerate(parts):
        for train, held in part.choose:
            jobs.setdefault(tuple(sorted(train.tolist())), []).append((number, held))
    totals = [[0.0] * len(method.settings) for _ in parts]
    for numbers, uses in jobs.items():
        index = torch.tensor(numbers, device="cpu")
        held_out = torch.cat([held for _, held in uses])
        for i, scores in enumerate(method.scores(x[index], targets[index], x[held_out], method.settings)):
            for (number, held), part in zip(uses, scores.split([len(h) for _, h in uses]), strict=True):
                totals[number][i] += metric(part, targets[held])
    return [method.settings[t.index(max(t))] for t in totals]
