"""The learning rate: linear warm-up in stairs, then a fall when validation stops improving."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class PlateauSchedule:
    """Warm-up from 0 to ``peak`` (REFERENCE.md, "Pretraining"), then ``peak`` times ``decay`` for each plateau.

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
            stair = (step // self.warmup_every + 1) * self.warmup_every
            return self.peak * min(1.0, stair / self.warmup_steps)
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
        """Go on from ``to_dict``'s values."""
        self.factor, self.best, self.waited = state["factor"], state["best"], state["waited"]
