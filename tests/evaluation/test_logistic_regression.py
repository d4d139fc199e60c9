"""Logistic regression against scikit-learn, nearest neighbours against brute force, scores against both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.evaluation.knn import neighbour_scores
from ssamba.evaluation.logistic_regression import (
    C_VALUES,
    MAX_STEPS,
    Standardiser,
    fit_cross_validated,
    fit_linear,
    of_known_classes,
)
from ssamba.evaluation.probe.scoring import metric_of

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = 1e-9


def clusters(n: int, d: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping clusters in features of very different sizes, with a constant one among them."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    y[:classes] = torch.arange(classes)
    x = torch.randn(classes, d, generator=g)[y] + 2 * torch.randn(n, d, generator=g)
    x = x @ (torch.randn(d, d, generator=g) / d**0.5 + torch.eye(d)) * torch.logspace(-3, 3, d) + 5
    x[:, d // 2] = 7.5
    return x, y


@pytest.mark.parametrize(("n", "d", "classes"), [(200, 30, 5), (40, 60, 4), (120, 10, 2), (60, 60, 3)])
def test_softmax_is_that_of_sklearn(n: int, d: int, classes: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = clusters(n, d, classes)
    new, _ = clusters(50, d, classes, seed=1)
    c_values = (1e-3, 0.1, 10.0)
    models = fit_linear(x, F.one_hot(y, classes), c_values, tolerance=EXACT)
    for c, model in zip(c_values, models, strict=True):
        standard = model.standardise(x).numpy()
        # Of two classes sklearn fits the difference alone: a softmax over both halves has half the penalty.
        theirs = linear_model.LogisticRegression(C=c * (2 if classes == 2 else 1), max_iter=50_000, tol=1e-10)
        theirs.fit(standard, y.numpy())
        expected = theirs.predict_proba(model.standardise(new).numpy())
        np.testing.assert_allclose(model.scores(new).softmax(dim=1).numpy(), expected, atol=1e-4)


def test_one_against_the_rest_is_that_of_sklearn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, _ = clusters(150, 20, 3)
    targets = (torch.rand(150, 4, generator=torch.Generator().manual_seed(2)) < 0.3).long()
    targets[:, 3] = (x[:, 0] > x[:, 0].mean()).long()
    (model,) = fit_linear(x, targets, [0.3], multi_label=True, tolerance=EXACT)
    standard = model.standardise(x).numpy()
    for k in range(4):
        theirs = linear_model.LogisticRegression(C=0.3, max_iter=50_000, tol=1e-10).fit(standard, targets[:, k].numpy())
        np.testing.assert_allclose(model.scores(x)[:, k].numpy(), theirs.decision_function(standard), atol=1e-4)


def test_the_usual_tolerance_is_close_and_repeats_exactly() -> None:
    x, y = clusters(300, 40, 6)
    targets = F.one_hot(y, 6)
    exact, usual, again = (fit_linear(x, targets, tolerance=t) for t in (EXACT, 1e-4, 1e-4))
    for a, b, c in zip(exact, usual, again, strict=True):
        assert (a.scores(x).softmax(1) - b.scores(x).softmax(1)).abs().max() < 0.01
        assert torch.equal(b.weight, c.weight)
        assert torch.equal(b.bias, c.bias)


def test_a_class_that_training_never_shows() -> None:
    x, y = clusters(50, 8, 2)
    for multi in (False, True):
        (model,) = fit_linear(x, F.one_hot(y, 4), [1.0], multi_label=multi)
        scores = model.scores(x)
        assert scores.isfinite().all()
        assert (scores.argmax(dim=1) < 2).all()


def test_large_problems_end() -> None:
    """Separable and hardly held back: the weights have far to go."""
    x, y = clusters(20, 200, 10)
    (model,) = fit_linear(x, F.one_hot(y, 10), [1e4])
    assert MAX_STEPS < 10_000
    assert metric_of(False)[1](model.scores(x), F.one_hot(y, 10)) == 1


def test_neighbours_are_those_of_brute_force() -> None:
    x, y = clusters(80, 12, 4)
    new, _ = clusters(30, 12, 4, seed=3)
    targets = F.one_hot(y, 4)
    ks = (1, 4, 500)
    found = neighbour_scores(x, targets, new, ks)
    standardise = Standardiser.of(x)
    a, b = standardise(x).numpy(), standardise(new).numpy()
    for k, scores in zip(ks, found, strict=True):
        for i, row in enumerate(b):
            cosine = a @ row / np.linalg.norm(a, axis=1) / np.linalg.norm(row)
            nearest = np.argsort(-cosine)[:k]
            votes = sum(max(0.0, cosine[j]) * targets[j].numpy() for j in nearest)
            np.testing.assert_allclose(scores[i].numpy(), votes / votes.sum(), atol=1e-9)


def test_standardising() -> None:
    x, _ = clusters(100, 9, 3)
    standard = Standardiser.of(x)(x)
    kept = torch.arange(9) != 4
    assert (standard[:, 4] == 0).all()
    torch.testing.assert_close(standard[:, kept].mean(dim=0), torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(standard[:, kept].square().mean(dim=0), torch.ones(8, dtype=torch.float64))


def test_metrics_of_a_set() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.2, 0.6]])
    targets = torch.tensor([[1, 0], [0, 1], [0, 1]])
    name, function = metric_of(False)
    assert (name, function(scores, targets)) == ("accuracy", pytest.approx(2 / 3))
    name, function = metric_of(True)
    assert (name, function(scores, targets)) == ("mAP", pytest.approx(1.0))


def test_the_strength_is_chosen_on_parts_held_out() -> None:
    x, y = clusters(90, 60, 3)
    parts = torch.arange(90) % 4 - 1  # a quarter is never held out
    hits = []
    for c in C_VALUES:
        fits = [(parts == n, fit_linear(x[parts != n], F.one_hot(y[parts != n]).double(), [c])[0]) for n in range(3)]
        hits.append(sum(int((model.scores(x[held]).argmax(dim=1) == y[held]).sum()) for held, model in fits))
    assert len(set(hits)) > 1
    (expected,) = fit_linear(x, F.one_hot(y).double(), [C_VALUES[hits.index(max(hits))]])
    found = fit_cross_validated(x, y, parts, 3)
    torch.testing.assert_close(found.scores(x), expected.scores(x), atol=1e-9, rtol=0)
    alone = fit_cross_validated(x, y, torch.zeros(90, dtype=torch.long), 3)  # one part: nothing would be left to fit on
    torch.testing.assert_close(alone.scores(x), fit_linear(x, F.one_hot(y).double(), C_VALUES[:1])[0].scores(x))


def test_of_several_labels_the_strength_is_chosen_by_the_loss() -> None:
    """Held-out examples of a class that training lacks do not count; these have wrong labels, and it would matter."""
    x, y = clusters(90, 60, 3)
    parts = torch.arange(90) % 4 - 1
    odd = (parts == 0).nonzero()[:3, 0]
    targets = F.one_hot(y, 4).double()
    targets[:, 1] = (x[:, 0] > x[:, 0].mean()).double()
    targets[odd, 1] = 1 - targets[odd, 1]
    targets[odd, 3] = 1
    losses, of_all = torch.zeros(2, len(C_VALUES), dtype=torch.float64)
    for n in range(3):
        held = parts == n
        counted = of_known_classes(targets[~held], targets[held])
        assert (~counted).sum() == (3 if n == 0 else 0)
        for i, model in enumerate(fit_linear(x[~held], targets[~held], multi_label=True)):
            each = F.binary_cross_entropy_with_logits(model.scores(x[held]), targets[held], reduction="none").sum(dim=1)
            losses[i] += each[counted].sum()
            of_all[i] += each.sum()
    best = int(losses.argmin())
    assert best != int(of_all.argmin())
    (expected,) = fit_linear(x, targets, [C_VALUES[best]], multi_label=True)
    found = fit_cross_validated(x, targets, parts, 4)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias)
    alone = fit_cross_validated(x, targets, torch.zeros(90, dtype=torch.long), 4)
    assert torch.equal(alone.weight, fit_linear(x, targets, [1.0], multi_label=True)[0].weight)


def test_smoothed_labels() -> None:
    """The solution for shares of classes: the loss has no slope there, and no training clip is called certain."""
    x, y = clusters(90, 60, 3)
    parts = torch.arange(90) % 3
    model = fit_cross_validated(x, y, parts, 3, 0.2)
    slopes = []
    for c in C_VALUES:
        weight, bias = model.weight.clone().requires_grad_(), model.bias.clone().requires_grad_()
        logits = model.standardise(x) @ weight + bias
        loss = F.cross_entropy(logits, y, label_smoothing=0.2) + weight.square().sum() / (2 * c * len(x))
        slopes.append(max(float(g.abs().max()) for g in torch.autograd.grad(loss, [weight, bias])))
    assert min(slopes) < 1e-3 < sorted(slopes)[1]
    surest, unsmoothed = (float(m.scores(x).softmax(dim=1).max()) for m in (model, fit_cross_validated(x, y, parts, 3)))
    assert surest < 0.95
    assert surest < unsmoothed
