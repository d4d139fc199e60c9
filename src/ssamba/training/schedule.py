"""The learning rate: linear warm-up in stairs, then a fall when validation stops improving, by the step or epoch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class Schedule(Protocol):
    """What the loop needs to know of a learning rate; its state is what validation's scores changed in it."""

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""

    def validated(self, score: float) -> None:
        """Take note of a validation's score; higher is better."""

    def to_dict(self) -> dict[str, Any]:
        """The part that changes during a run."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``to_dict``'s values."""


def _warm(step: int, warmup_steps: int, every: int) -> float:
    """Share of the peak: rises in stairs over the warm-up, 1 after it."""
    return min(1.0, (step // every + 1) * every / warmup_steps) if step < warmup_steps else 1.0


@dataclass
class PlateauSchedule:
    """Warm-up from 0 to ``peak`` (docs/reference.md, "Pretraining"), then ``peak`` times ``decay`` for each plateau.

    A plateau is ``patience`` validations in a row without a better score. The object is its own state: ``to_dict`` and
    ``load`` make a resumed run go on with the same rate.
    """

    peak: float
    warmup_steps: int
    warmup_every: int
    patience: int
    decay: float
    factor: float = 1.0
    best: float | None = None
    waited: int = 0

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * _warm(step, self.warmup_steps, self.warmup_every)
        return self.peak * self.factor

    def validated(self, score: float) -> None:
        """Take note of a validation's score; higher is better."""
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.factor *= self.decay
            self.waited = 0

    def to_dict(self) -> dict[str, Any]:
        """The part that changes during a run."""
        return {k: v for k, v in asdict(self).items() if k in ("factor", "best", "waited")}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``to_dict``'s values. Raises ``KeyError``, ``TypeError``, ``ValueError`` for other ones."""
        self.factor, self.waited = float(state["factor"]), int(state["waited"])
        self.best = None if state["best"] is None else float(state["best"])


class _Fixed:
    """A schedule that depends on the step alone."""

    def validated(self, score: float) -> None:
        """Scores change nothing."""

    def to_dict(self) -> dict[str, Any]:
        """Nothing changes during a run."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""


@dataclass(frozen=True)
class CosineSchedule(_Fixed):
    """Warm-up, then half a period of a cosine from ``peak`` down to 0 at ``total_steps`` (arXiv 1608.03983)."""

    peak: float
    warmup_steps: int
    warmup_every: int
    total_steps: int

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * _warm(step, self.warmup_steps, self.warmup_every)
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.peak * (1 + math.cos(math.pi * min(1.0, done))) / 2


@dataclass(frozen=True)
class EpochSchedule(_Fixed):
    """Warm-up, then ``peak`` times ``decay`` once ``start`` epochs are through, and again after every ``every`` more.

    This is fine-tuning's (docs/reference.md, "Fine-tuning"): with start 6, every 1, the seventh epoch is the first at a
    lower rate. It depends on the step alone.
    """

    peak: float
    warmup_steps: int
    warmup_every: int
    start: int
    every: int
    decay: float
    steps_per_epoch: int

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        done = step // self.steps_per_epoch
        falls = 0 if done < self.start else (done - self.start) // self.every + 1
        return self.peak * _warm(step, self.warmup_steps, self.warmup_every) * self.decay**falls
