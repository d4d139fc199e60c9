"""Rows to events: each rule by hand, and what holds for any scores."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ssamba.inference.events.merge import EventOptions, Stretch, find_events, join_gaps
from ssamba.inference.predict import Prediction
from ssamba.utils.errors import ConfigError


def spans(rows: int, every: float = 1.0) -> np.ndarray:
    begin = np.arange(rows) * every
    return np.stack([begin, begin + every], axis=1)


def of_one_class(scores: list[float], **options: float) -> list[tuple[float, float]]:
    values = np.array(scores)[:, None]
    return [(e.start, e.end) for e in find_events(values, spans(len(scores)), EventOptions(**options), True)]


def test_neighbouring_rows_are_one_event() -> None:
    assert of_one_class([0.1, 0.6, 0.9, 0.5, 0.4, 0.7]) == [(1, 4), (5, 6)]
    assert of_one_class([0.1, 0.2]) == []
    assert find_events(np.zeros((0, 2)), np.zeros((0, 2))) == []


def test_hysteresis_begins_high_and_goes_on_low_and_does_not_reach_back() -> None:
    scores = [0.4, 0.4, 0.8, 0.4, 0.3, 0.2, 0.4, 0.8, 0.3]
    assert of_one_class(scores, threshold=0.7, low=0.3) == [(2, 5), (7, 9)]
    assert of_one_class(scores, threshold=0.7) == [(2, 3), (7, 8)]
    assert of_one_class(scores, threshold=0.9, low=0.1) == []


def test_gaps_are_joined_before_short_events_are_dropped() -> None:
    scores = [0.9, 0.1, 0.9, 0.1, 0.1, 0.9]
    assert of_one_class(scores, merge_gap=1) == [(0, 3), (5, 6)]
    assert of_one_class(scores, merge_gap=1, min_seconds=2) == [(0, 3)]
    assert of_one_class(scores, min_seconds=2) == []
    assert of_one_class(scores, merge_gap=2) == [(0, 6)]


def test_times_that_floats_cannot_hold_are_equal() -> None:
    values = np.array([[0.9], [0.1], [0.1], [0.1], [0.9]])
    (event,) = find_events(values, spans(5, 0.1), EventOptions(merge_gap=0.3), True)
    assert (event.start, event.end) == (0.0, pytest.approx(0.5))
    assert len(find_events(np.full((3, 1), 0.9), spans(3, 0.1), EventOptions(min_seconds=0.3), True)) == 1


def test_a_single_label_row_belongs_to_its_likeliest_class() -> None:
    scores = np.array([[0.9, 0.1], [0.55, 0.45], [0.4, 0.6], [0.5, 0.5], [0.3, 0.7]])
    options = EventOptions(threshold=0.5, low=0.4)
    assert [(e.start, e.end, e.label) for e in find_events(scores, spans(5), options)] == [
        (0, 2, 0),
        (2, 3, 1),
        (3, 4, 0),
        (4, 5, 1),
    ]
    several = find_events(scores, spans(5), options, multi_label=True)
    assert [(e.start, e.end, e.label) for e in several] == [(0, 4, 0), (2, 5, 1)]
    assert [e.score for e in several] == [0.9, 0.7]


def test_a_gap_with_another_event_stays_unless_that_one_is_dropped() -> None:
    scores = np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]] + [[0.9, 0.1]] * 3)
    joined = find_events(scores, spans(7), EventOptions(merge_gap=1))
    assert [(e.start, e.end, e.label) for e in joined] == [(0, 3, 0), (3, 4, 1), (4, 7, 0)]
    dropped = find_events(scores, spans(7), EventOptions(merge_gap=1, min_seconds=2))
    assert [(e.start, e.end, e.label) for e in dropped] == [(0, 7, 0)]


def test_rows_with_a_gap_between_their_spans_are_no_neighbours() -> None:
    places = np.array([[0.0, 1.0], [1.0, 2.0], [3.0, 4.0]])
    found = find_events(np.full((3, 1), 0.9), places, multi_label=True)
    assert [(e.start, e.end) for e in found] == [(0, 2), (3, 4)]


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, EventOptions, bool]:
    rng = np.random.default_rng(seed)
    rows, classes = int(rng.integers(1, 40)), int(rng.integers(1, 5))
    multi = bool(rng.integers(2))
    # Half the scores stand on a coarse grid, so that many are equal and many are thresholds.
    logits = rng.normal(0, 2, (rows, classes))
    scores = 1 / (1 + np.exp(-logits)) if multi else np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = scores if rng.integers(2) else np.round(scores, 1)
    threshold = float(rng.choice([0.3, 0.5, 0.8]))
    low = None if rng.integers(2) else float(rng.choice([0.1, 0.3]))
    gaps = [float(rng.choice([0, 0.25, 0.5, 1.3])) for _ in range(2)]
    return scores, spans(rows, float(rng.choice([0.1, 0.25, 1.0]))), EventOptions(threshold, low, *gaps), multi


def by_walking(scores: np.ndarray, places: np.ndarray, options: EventOptions, multi: bool) -> np.ndarray:
    """(rows, classes): which classes are on, by hysteresis alone, walking through the rows one by one."""
    on = np.zeros(scores.shape, bool)
    for label in range(scores.shape[1]):
        active = False
        for row, values in enumerate(scores):
            candidate = multi or list(values).index(max(values)) == label
            active = candidate and values[label] >= (options.end_score if active else options.threshold)
            on[row, label] = active
    return on


@pytest.mark.parametrize("block", range(4))
def test_what_holds_for_any_scores(block: int) -> None:
    seen = 0
    for seed in range(100 * block, 100 * block + 100):
        scores, places, options, multi = random_case(seed)
        found = find_events(scores, places, options, multi)
        seen += len(found)
        on = by_walking(scores, places, options, multi)
        middles = places.mean(axis=1)
        for event in found:
            inside = (middles > event.start) & (middles < event.end) & on[:, event.label]
            assert event.end - event.start >= options.min_seconds - 1e-9
            assert event.score == scores[inside, event.label].max() >= options.threshold
            assert event.start in places[on[:, event.label], 0]
            assert event.end in places[on[:, event.label], 1]
        assert found == sorted(found, key=lambda e: (e.start, e.label))
        for first, second in pairwise(found):
            assert multi or second.start >= first.end - 1e-9
        for label in range(scores.shape[1]):
            mine = [e for e in found if e.label == label]
            for first, second in pairwise(mine):
                between = [
                    e for e in found if e.start >= first.end - 1e-9 and e.end <= second.start + 1e-9 and e != first
                ]
                blocked = not multi and any(e.label != label for e in between)
                assert second.start - first.end > options.merge_gap + 1e-9 or blocked
        assert join_gaps(found, options.merge_gap, multi) == found
    assert seen > 100


@pytest.mark.parametrize("seed", range(50))
def test_without_gaps_and_lengths_events_are_the_rows_that_are_on(seed: int) -> None:
    scores, places, options, multi = random_case(seed)
    options = EventOptions(options.threshold, options.low)
    drawn = np.zeros(scores.shape, bool)
    for event in find_events(scores, places, options, multi):
        drawn[(places[:, 0] >= event.start) & (places[:, 1] <= event.end), event.label] = True
    np.testing.assert_array_equal(drawn, by_walking(scores, places, options, multi))


def test_values_that_make_no_events_are_refused() -> None:
    for values, message in (
        ({"threshold": 0.0}, "threshold is 0: give a score above 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"low": 0.6}, "low is 0.6: give a score above 0 and at most the threshold, 0.5"),
        ({"min_seconds": -1.0}, "min_seconds is -1"),
        ({"merge_gap": math.inf}, "merge_gap is inf"),
    ):
        with pytest.raises(ConfigError, match=message):
            EventOptions(**values)
    for scores, places in (
        (np.zeros(3), spans(3)),
        (np.zeros((3, 1)), spans(2)),
        (np.array([[np.nan]]), spans(1)),
        (np.zeros((2, 1)), spans(2)[::-1]),
    ):
        with pytest.raises(ValueError, match=r"scores|spans"):
            find_events(scores, places)


def test_a_prediction_names_its_events() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    prediction = Prediction(("dog", "hen"), scores, torch.from_numpy(spans(3)), 3.0)
    found = [(e.start, e.end, e.label, round(e.score or 0, 3)) for e in prediction.events()]
    assert found == [(0.0, 2.0, "dog", 0.9), (2.0, 3.0, "hen", 0.8)]
    assert [e.label for e in prediction.events(threshold=0.85, low=0.5)] == ["dog"]
    both = Prediction(("dog", "hen"), scores, torch.from_numpy(spans(3)), 3.0, multi_label=True)
    assert [(e.start, e.end, e.label) for e in both.events(threshold=0.4)] == [(0, 2, "dog"), (1, 3, "hen")]
    assert Stretch(0.0, 1.0, 0, 0.5).label == 0
