"""Calibration error and temperature against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssamba.evaluation.calibration import (
    CAUTION,
    MIN_CLIPS,
    HeldOut,
    bin_rows,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)

EYE = np.eye(2)


def test_error_by_hand_with_one_class_a_row() -> None:
    """Four bins. 0.6, 0.7 and 0.75 share one (two of three right), 0.9 is alone and right."""
    confidence = np.array([0.6, 0.7, 0.75, 0.9])
    scores = np.stack([confidence, 1 - confidence], axis=1)
    targets = EYE[[0, 1, 0, 0]]
    third, fourth = bin_rows(scores, targets, "ce", 4)[2:]
    assert third == (3, pytest.approx(2.05 / 3), pytest.approx(2 / 3))
    assert fourth == (1, pytest.approx(0.9), 1.0)
    expected = 3 / 4 * abs(2 / 3 - 2.05 / 3) + 1 / 4 * 0.1
    assert expected_calibration_error(scores, targets, "ce", 4) == pytest.approx(expected, abs=1e-12)


def test_error_by_hand_with_several_classes_a_row() -> None:
    """Every class of every row counts: 0.2 and 0.1 lie in the lower half, 0.8 and 0.6 in the upper one."""
    scores, targets = np.array([[0.2, 0.8], [0.1, 0.6]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    expected = 0.5 * abs(0.5 - 0.15) + 0.5 * abs(0.5 - 0.7)
    assert expected_calibration_error(scores, targets, "bce", 2) == pytest.approx(expected, abs=1e-12)


def test_scores_at_the_ends_have_a_bin() -> None:
    rows = bin_rows(np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]]), "bce")
    assert [count for count, _, _ in rows] == [1, *[0] * 13, 1]
    assert math.isnan(expected_calibration_error(np.zeros((0, 2)), np.zeros((0, 2)), "ce"))


def test_likelihood_by_hand() -> None:
    logits = np.log(np.array([[0.8, 0.2], [0.5, 0.5]]))
    assert negative_log_likelihood(logits, EYE, "ce") == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)
    by_class = -(math.log(0.75) + math.log(0.75)) / 2
    assert negative_log_likelihood([[math.log(3), -math.log(3)]], [[1.0, 0.0]], "bce") == pytest.approx(by_class)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_temperature_by_hand(loss: str) -> None:
    """Three of four right at one logit: the best probability is 3/4, whose logit is log 3."""
    logits = np.full((4, 1), 6.0)
    targets = np.array([[1.0], [1.0], [1.0], [0.0]])
    if loss == "ce":  # the sigmoid of one logit is the softmax of it and 0
        logits, targets = np.hstack([logits, 0 * logits]), np.hstack([targets, 1 - targets])
    assert fit_temperature(logits, targets, loss) == pytest.approx(6 / math.log(3), rel=1e-9)


def drawn(rows: int, classes: int, seed: int, scale: float) -> HeldOut:
    """Logits of which the probabilities are true when divided by ``scale``."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.standard_normal((rows, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = [generator.choice(classes, p=share) for share in shares]
    return HeldOut(logits * scale, np.eye(classes)[labels])


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_true_probabilities_are_found_again(scale: float) -> None:
    found = calibrate([drawn(1000, 5, seed, scale) for seed in range(5)], "ce", "cross-validation")
    assert found.temperature == pytest.approx(scale, rel=0.05)
    assert found.ece_after < 0.02
    if scale != 1:
        assert found.ece_before > 5 * found.ece_after
        assert found.nll_before > found.nll_after + 0.05


def test_each_part_is_measured_without_itself() -> None:
    """Two parts that need different temperatures: each is measured with the other one's."""
    hot, cold = drawn(400, 3, 0, 4.0), drawn(400, 3, 1, 0.5)
    found = calibrate([hot, cold], "ce", "cross-validation")
    of_hot, of_cold = (calibrate([part], "ce", "test").temperature for part in (hot, cold))
    expected = [negative_log_likelihood(hot.logits / of_cold, hot.targets, "ce")]
    expected += [negative_log_likelihood(cold.logits / of_hot, cold.targets, "ce")]
    assert found.nll_after == pytest.approx(sum(expected) / 2, rel=1e-9)
    assert of_cold < found.temperature < of_hot


def test_clips_that_are_all_right_do_not_make_the_next_one_certain() -> None:
    """50 right clips with the logits 1 and 0: the derivative 50 x (1 - p) in b = 1 / T is that of 4 (b - 1 - log b)."""
    part = HeldOut(np.tile([1.0, 0.0], (50, 1)), np.tile([1.0, 0.0], (50, 1)))
    b = 1 / calibrate([part], "ce", "test").temperature
    assert 50 * (1 - 1 / (1 + math.exp(-b))) == pytest.approx(CAUTION * (1 - 1 / b), rel=1e-9)
    assert 1 < b < 5
    assert fit_temperature(part.logits, part.targets, "ce") < 0.011, "taken at their word they would"


def test_few_clips_leave_the_probabilities_as_they_are() -> None:
    few, enough = (drawn(rows, 3, 0, 4.0) for rows in (MIN_CLIPS - 1, MIN_CLIPS))
    found = calibrate([few], "ce", "validation")
    assert found.temperature == 1
    assert found.ece_before == found.ece_after
    assert "29 held-out clips" in found.note
    assert calibrate([enough], "ce", "validation").temperature != 1
    nothing = calibrate([], "ce", "validation").to_dict()
    assert nothing["ece_before"] is None
    assert nothing["clips"] == 0
