"""Metrics against sklearn and against their definitions, counted out."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from ssamba.evaluation import metrics


@pytest.fixture(params=["distinct", "ties"])
def table(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.random((60, 5))
    scores = np.round(scores, 1) if request.param == "ties" else scores
    return scores, (rng.random((60, 5)) < 0.3).astype(float)


def test_average_precision_and_auc_are_sklearns(table: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = table
    np.testing.assert_allclose(
        metrics.average_precision(scores, truth), sk.average_precision_score(truth, scores, average=None), atol=1e-12
    )
    np.testing.assert_allclose(metrics.auc(scores, truth), sk.roc_auc_score(truth, scores, average=None), atol=1e-12)


def test_auc_counts_pairs(table: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = table[0][:, 0], table[1][:, 0] > 0
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[truth] for n in scores[~truth]]
    assert metrics.auc(scores[:, None], truth[:, None])[0] == pytest.approx(np.mean(pairs), abs=1e-12)


def test_average_precision_by_hand() -> None:
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    truth = np.array([[1], [0], [1], [0]])
    assert metrics.average_precision(scores, truth)[0] == pytest.approx((1 + 2 / 3) / 2)


def test_classes_without_positives_or_negatives_are_left_out() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    truth = np.array([[1, 0, 1], [0, 0, 1]])
    precision, areas = metrics.average_precision(scores, truth), metrics.auc(scores, truth)
    assert precision[0] == 0.5
    assert math.isnan(precision[1])
    assert precision[2] == 1.0
    assert areas[0] == 0.0
    assert math.isnan(areas[1])
    assert math.isnan(areas[2])
    assert metrics.mean(precision) == 0.75
    assert math.isnan(metrics.mean([math.nan]))


def test_confusion_and_class_accuracy(table: tuple[np.ndarray, np.ndarray]) -> None:
    scores = table[0]
    labels = np.arange(60) % 4
    truth = np.eye(5)[labels]
    counts = metrics.confusion(scores, truth)
    np.testing.assert_array_equal(counts, sk.confusion_matrix(labels, scores.argmax(axis=1), labels=range(5)))
    assert metrics.accuracy(scores, truth) == pytest.approx(np.trace(counts) / 60)
    shares = metrics.class_accuracy(counts)
    assert shares[1] == pytest.approx(counts[1, 1] / 15)
    assert math.isnan(shares[4])  # never shown


def test_d_prime() -> None:
    assert metrics.d_prime(0.5) == 0.0
    assert metrics.d_prime(0.95) == pytest.approx(2.3262, abs=1e-4)  # sqrt(2) * 1.644854
    assert metrics.d_prime(1.0) == math.inf
    assert metrics.d_prime(0.0) == -math.inf
    assert math.isnan(metrics.d_prime(math.nan))


def test_squashing_survives_large_logits() -> None:
    logits = np.array([[1000.0, 0.0], [-1000.0, 0.0]])
    np.testing.assert_allclose(metrics.softmax(logits), [[1, 0], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(metrics.sigmoid(logits), [[1, 0.5], [0, 0.5]], atol=1e-12)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [  # to four places, from R's prop.test(correct = FALSE) or worked out by hand (0 of n: high = z^2 / (n + z^2))
        (38, 40, 0.8350, 0.9862),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (4, 4, 0.5101, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(right: int, total: int, low: float, high: float) -> None:
    assert metrics.wilson(right, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_bounds_solve_the_score_equation() -> None:
    for right, total in ((38, 40), (1, 7), (115, 120)):
        for bound in metrics.wilson(right, total):
            z = (right / total - bound) / math.sqrt(bound * (1 - bound) / total)
            assert abs(z) == pytest.approx(1.959964, abs=1e-5)
