"""Prototypes: Mahalanobis distances to class means, in the form of a linear classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssamba.evaluation.prototypes import SHRINKAGE, fit_prototypes

pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(n: int, d: int, classes: int) -> tuple[Tensor, Tensor]:
    """Correlated features of different sizes around class means, and class numbers."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    x = 2 * torch.randn(classes, d, generator=g)[labels] + torch.randn(n, d, generator=g)
    return x @ torch.randn(d, d, generator=g) * torch.logspace(-2, 2, d) + 3, labels


@pytest.mark.parametrize(("n", "d"), [(60, 8), (12, 40), (4, 9)])
def test_logits_differ_as_mahalanobis_distances_do(n: int, d: int) -> None:
    """Against the definition: the covariance written out and inverted."""
    classes = 4
    x, labels = clusters(n, d, classes)
    (model,) = fit_prototypes(x, F.one_hot(labels, classes), [7.0])
    z = (x.double() - x.double().mean(dim=0)) / x.double().std(dim=0, correction=0)
    means = torch.stack([z[labels == c].mean(dim=0) for c in range(classes)])
    within = z - means[labels]
    covariance = within.T @ within / max(1, n - classes)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * torch.eye(d).double()
    apart = z[:, None] - means
    distances = torch.einsum("bcd,de,bce->bc", apart, torch.linalg.inv(covariance), apart)
    expected = -0.5 * 7.0 * distances / d
    found = model.scores(x)
    torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1], atol=1e-8, rtol=1e-8)


def test_one_example_a_class_is_the_nearest_example() -> None:
    x, labels = clusters(5, 20, 5)
    (model,) = fit_prototypes(x, F.one_hot(labels, 5), [100.0])
    assert torch.equal(model.scores(x).argmax(dim=1), labels)
    between = model.scores((0.9 * x[0] + 0.1 * x[1])[None]).softmax(dim=1)[0]
    assert between.argmax() == 0


def test_sharper_is_surer_of_the_same() -> None:
    x, labels = clusters(40, 10, 4)
    blunt, sharp = fit_prototypes(x, F.one_hot(labels, 4), [1.0, 50.0])
    assert torch.equal(blunt.scores(x).argmax(dim=1), sharp.scores(x).argmax(dim=1))
    assert sharp.scores(x).softmax(dim=1).amax(dim=1).mean() > blunt.scores(x).softmax(dim=1).amax(dim=1).mean()


def test_a_class_without_examples_is_never_the_answer() -> None:
    x, labels = clusters(40, 10, 4)
    targets = F.one_hot(labels, 4)
    kept = labels != 2
    (model,) = fit_prototypes(x[kept], targets[kept], [1.0])
    assert 2 not in model.scores(x).argmax(dim=1)
