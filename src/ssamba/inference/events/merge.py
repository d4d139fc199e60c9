"""Scores in rows of time -> events: a run of neighbouring rows of one class becomes one stretch of time.

Pure functions of arrays. What they do, in this order:

1. **Candidates.** In a multi-label set every class is a candidate in every row. In a single-label set a row has one
   candidate, the class of its highest score (of equal scores the first), so that at most one event is on at a time.
2. **Hysteresis.** An event of a class begins with the first row in which the class is a candidate with a score of
   ``threshold`` or more, goes on while it is a candidate with ``low`` or more, and ends where the first row after it
   begins. It does not reach back to rows between ``low`` and ``threshold`` that come before.
3. **Gaps.** Two events of one class at most ``merge_gap`` seconds apart become one, the gap included; in a single-label
   set unless an event of another class lies between them.
4. **Length.** Events shorter than ``min_seconds`` are dropped, and gaps are joined once more: what is dropped no longer
   lies between two events.

Spans may have gaps or overlap: a row that begins later than the row before it ends is not its neighbour. An event's
score is the highest of its class in the rows that it began with or went on through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ssamba.utils.errors import ConfigError, nearest

TIME_TOLERANCE = 1e-6
"""Seconds below which two times are the same: sums of floats such as 0.1 are not exact."""


class Stretch(NamedTuple):
    """An event of class number ``label`` from ``start`` to ``end`` in seconds, and its highest score."""

    start: float
    end: float
    label: int
    score: float


@dataclass(frozen=True)
class EventOptions:
    """How rows become events (see the module). Raises ``ConfigError`` for values that make no events.

    Attributes:
        threshold: score with which an event begins, above 0 and at most 1.
        low: score down to which it goes on, above 0 and at most ``threshold``; None: the threshold.
        min_seconds: shortest event.
        merge_gap: longest gap in seconds between two events of a class that are joined.
        without: names of classes whose events are left out at the end, such as that of the background. Until then they
            end and separate others as all classes do.
    """

    threshold: float = 0.5
    low: float | None = None
    min_seconds: float = 0.0
    merge_gap: float = 0.0
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold:g}: give a score above 0 and at most 1")
        if self.low is not None and not 0 < self.low <= self.threshold:
            raise ConfigError(
                f"low is {self.low:g}: give a score above 0 and at most the threshold, {self.threshold:g}"
            )
        for name, value in (("min_seconds", self.min_seconds), ("merge_gap", self.merge_gap)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value:g}: give seconds, 0 or more")

    def check_names(self, classes: Sequence[str]) -> None:
        """Raises ``ConfigError`` where a class that is left out is none of ``classes``."""
        for name in self.without:
            if name not in classes:
                near = nearest(name, classes) or f"; there are {len(classes)}, the first: {classes[0]}"
                raise ConfigError(f"without is '{name}': no class of the model{near}")

    @property
    def end_score(self) -> float:
        """Score below which an event ends."""
        return self.threshold if self.low is None else self.low


def find_events(
    scores: npt.NDArray[np.floating],
    spans: npt.NDArray[np.floating],
    options: EventOptions | None = None,
    multi_label: bool = False,
) -> list[Stretch]:
    """Events of (rows, classes) scores, where row i lasts from ``spans[i, 0]`` to ``spans[i, 1]`` seconds.

    Returns them by start, then class number. Raises ``ValueError`` for shapes that do not fit, spans that are not in
    the order of time, and scores that are NaN.
    """
    options = EventOptions() if options is None else options
    scores, spans = np.asarray(scores), np.asarray(spans, np.float64)
    _check_arrays(scores, spans)
    best = None if multi_label or not len(scores) else scores.argmax(axis=1)
    every = np.ones(len(scores), np.bool_)
    found = [
        stretch
        for label in range(scores.shape[1])
        for stretch in class_runs(scores[:, label], every if best is None else best == label, spans, label, options)
    ]
    found = join_gaps(found, options.merge_gap, multi_label)
    found = [e for e in found if e.end - e.start >= options.min_seconds - TIME_TOLERANCE]
    return join_gaps(found, options.merge_gap, multi_label)


def class_runs(
    scores: npt.NDArray[np.floating],
    candidate: npt.NDArray[np.bool_],
    spans: npt.NDArray[np.floating],
    label: int,
    options: EventOptions,
) -> list[Stretch]:
    """Events of one class by hysteresis, in the order of time: (rows,) scores and whether it may be on in each row."""
    found: list[Stretch] = []
    last = -2  # the row before, where an event goes on
    for row in np.flatnonzero(candidate & (scores >= options.end_score)).tolist():
        start, end, score = float(spans[row, 0]), float(spans[row, 1]), float(scores[row])
        if row == last + 1 and start <= found[-1].end + TIME_TOLERANCE:
            before = found[-1]
            found[-1] = Stretch(before.start, max(before.end, end), label, max(before.score, score))
            last = row
        elif score >= options.threshold:
            found.append(Stretch(start, end, label, score))
            last = row
    return found


def join_gaps(events: Sequence[Stretch], merge_gap: float, multi_label: bool) -> list[Stretch]:
    """Events by start, those of a class at most ``merge_gap`` s apart joined (see the module)."""
    joined: list[Stretch] = []
    latest: dict[int, int] = {}
    for event in sorted(events, key=lambda e: (e.start, e.label)):
        place = latest.get(event.label)
        between = place is not None and place < len(joined) - 1 and not multi_label
        if place is not None and not between and event.start - joined[place].end <= merge_gap + TIME_TOLERANCE:
            before = joined[place]
            joined[place] = Stretch(
                before.start, max(before.end, event.end), event.label, max(before.score, event.score)
            )
        else:
            latest[event.label] = len(joined)
            joined.append(event)
    return joined


def _check_arrays(scores: npt.NDArray[np.floating], spans: npt.NDArray[np.floating]) -> None:
    if scores.ndim != 2 or spans.shape != (len(scores), 2) or not scores.shape[1]:
        raise ValueError(f"scores {scores.shape} must be (rows, classes) and spans {spans.shape} (rows, 2)")
    if np.isnan(scores).any():
        raise ValueError("scores must not be NaN")
    if not np.isfinite(spans).all() or (np.diff(spans[:, 0]) < 0).any() or (spans[:, 1] < spans[:, 0]).any():
        raise ValueError("spans must be finite, each end at or after its start, and starts in the order of time")
