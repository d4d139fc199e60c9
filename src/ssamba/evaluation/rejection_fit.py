"""Fit what tells sounds without a class: distances to class means, and a regression against background.

Background is made-up noise (``ssamba.inference.rejection.noise``) and the recordings that the user gave as such. Both
borders follow from clips that were not fitted on, so that 95 % of new clips of the known kinds keep their class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.evaluation.logistic_regression import fit_linear
from ssamba.inference.rejection.score import (
    MIN_HELD_OUT,
    SHARE_KEPT,
    Background,
    Rejection,
    border_place,
    fit_rejection,
)

C = 0.1
"""Inverse strength of the regression's weights; 0.01 to 1 did equally well (docs/prediction.md)."""
LIKELY = 0.5
MAX_LOST = 0.2
"""Of a class's held-out clips; where made-up noise takes more, and two at least, the class is of such sounds."""
UNUSED = f"background: not used, since fewer than {MIN_HELD_OUT} clips were held out; give more clips or fewer folds"
PARTS = 5
"""Of the background's recordings, one of which is held out, where there is one trial."""


@dataclass(frozen=True)
class Trial:
    """Rows of d values to fit on, and rows of held-out clips.

    Attributes:
        values, targets: (N, d), (N, K), 1 where the class holds.
        held, owners: (M, d), (M,) int64, the clips that the rows belong to, numbered from 0.
        held_targets: (clips, K).
    """

    values: Tensor
    targets: Tensor
    held: Tensor
    owners: Tensor
    held_targets: Tensor

    def by_clip(self, found: Tensor) -> Tensor:
        """Means over each held-out clip's rows of ``found`` (M,): (clips with a row,)."""
        _, place, count = self.owners.unique(return_inverse=True, return_counts=True)
        return torch.zeros(len(count), dtype=found.dtype, device="cpu").index_add_(0, place, found) / count


@dataclass(frozen=True)
class OtherSounds:
    """Rows of sounds of no class: of silence and noise (n, d), of background (B, d) and its recordings (B,) int64."""

    silence: Tensor
    noise: Tensor
    background: Tensor
    recordings: Tensor

    def parts(self, trials: int) -> Tensor:
        """The part of each background row (B,): recordings stay whole; one alone is divided into stretches."""
        groups, group = self.recordings.unique(return_inverse=True)
        wanted = trials if trials > 1 else PARTS
        if len(groups) > 1:
            return group % min(wanted, len(groups))
        return torch.arange(len(group), device="cpu") * min(wanted, len(group)) // max(1, len(group))


@dataclass(frozen=True)
class BackgroundCounts:
    """What came of background recordings: of held-out clips, by models that were fitted on neither.

    Attributes:
        clips: clips of background that were held out.
        rejected: how many of them have no class; ``rejected_without``: without the recordings.
        known: held-out clips of the classes.
        kept: how many of them keep their class; ``kept_without``: without the recordings.
    """

    clips: int
    rejected: int
    rejected_without: int
    known: int
    kept: int
    kept_without: int

    def to_dict(self) -> dict[str, int]:
        """Plain values for results.json."""
        return asdict(self)

    def line(self) -> str:
        """For the user."""
        return (
            f"background: {self.rejected} of {self.clips} held-out clips of it have no class "
            f"({self.rejected_without} without the recordings), {self.kept} of {self.known} clips of the classes keep "
            f"theirs ({self.kept_without})"
        )


def fit_background(known: Tensor, others: Tensor) -> Background:
    """A regression between rows (N, d) and (M, d); its limit is 0.5."""
    rows = torch.cat([known, others])
    targets = torch.zeros(len(rows), 2, dtype=torch.float64, device="cpu")
    targets[: len(known), 0] = 1
    targets[len(known) :, 1] = 1
    (model,) = fit_linear(rows, targets, [C])
    weight = (model.weight[:, 1] - model.weight[:, 0]) * model.standardise.scale
    bias = model.bias[1] - model.bias[0] - model.standardise.mean @ weight
    return Background(weight.float(), bias.float(), torch.tensor(LIKELY, dtype=torch.float32, device="cpu"))


def make_rejection(
    values: Tensor, targets: Tensor, trials: Sequence[Trial], others: OtherSounds
) -> tuple[Rejection | None, BackgroundCounts | None]:
    """Fitted on all rows (N, d) with ``targets`` (N, K), its borders from ``trials``; None with few held-out clips.

    Made-up noise is left out of background where a class is of such sounds. The counts are None without background
    recordings, or where none of them could be held out.
    """
    class_means = [fit_rejection(trial.values, trial.targets) for trial in trials]
    distances = _joined([t.by_clip(means.distances(t.held)) for t, means in zip(trials, class_means, strict=True)])
    if len(distances) < MIN_HELD_OUT:
        return None, None
    fitted, silence = fit_rejection(values, targets), others.silence
    against_noise = [fit_background(trial.values, others.noise) for trial in trials] if len(others.noise) else []
    noise = others.noise if against_noise and _noise_is_unknown(trials, against_noise) else others.noise[:0]
    plain = fitted.with_border(distances, fitted.distances(silence))
    if len(noise):
        known = _Scores(distances, _likely(trials, against_noise))
        plain = _with_borders(fitted, known, silence, fit_background(values, noise))
    if not len(others.background):
        return plain, None
    parts = others.parts(len(trials))
    given = [torch.cat([noise, others.background[parts != number]]) for number in range(len(trials))]
    fits = [fit_background(t.values, rows) if len(rows) else None for t, rows in zip(trials, given, strict=True)]
    known = _Scores(distances, _likely(trials, fits))
    whole = fit_background(values, torch.cat([noise, others.background]))
    rejection = _with_borders(fitted, known, silence, whole)
    held = [others.background[parts == number] for number in range(len(trials))]
    if not sum(map(len, held)):
        return rejection, None
    far = _joined([means.distances(rows) for means, rows in zip(class_means, held, strict=True)])
    before = known._replace(likely=_likely(trials, against_noise)) if len(noise) else _Scores(distances, None)
    new, new_before = _Scores(far, _likely_rows(held, fits)), _Scores(far, None)
    if len(noise):
        new_before = _Scores(far, _likely_rows(held, against_noise))
    rejected = [int(scores.taken(found).sum()) for scores, found in ((new, rejection), (new_before, plain))]
    kept = [int((~scores.taken(found)).sum()) for scores, found in ((known, rejection), (before, plain))]
    return rejection, BackgroundCounts(len(far), rejected[0], rejected[1], len(distances), kept[0], kept[1])


class _Scores(NamedTuple):
    """Distances and probabilities of background (N,) of held-out clips or rows."""

    distances: Tensor
    likely: Tensor | None

    def taken(self, rejection: Rejection) -> Tensor:
        """Which have no class (N,)."""
        far = self.distances > rejection.border
        if rejection.background is None or self.likely is None:
            return far
        return far | (self.likely > rejection.background.limit)


def _likely(trials: Sequence[Trial], fits: Sequence[Background | None]) -> Tensor:
    """The probability of background of each held-out clip."""
    found = _likely_rows([trial.held for trial in trials], fits).split([len(trial.held) for trial in trials])
    return _joined([trial.by_clip(rows) for trial, rows in zip(trials, found, strict=True)])


def _likely_rows(parts: Sequence[Tensor], fits: Sequence[Background | None]) -> Tensor:
    pairs = zip(parts, fits, strict=True)
    return _joined(
        [
            torch.zeros(len(rows), dtype=torch.float32, device="cpu") if found is None else found.probabilities(rows)
            for rows, found in pairs
        ]
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.empty(0, dtype=torch.float32, device="cpu")


def _noise_is_unknown(trials: Sequence[Trial], fits: Sequence[Background]) -> bool:
    """Whether no class loses many of its held-out clips to made-up noise."""
    taken = _likely(trials, fits) > LIKELY
    truth = torch.cat([trial.held_targets[trial.owners.unique()] for trial in trials])
    lost, count = truth[taken].sum(dim=0), truth.sum(dim=0)
    return not bool(((lost >= 2) & (lost > MAX_LOST * count)).any())


def _with_borders(fitted: Rejection, known: _Scores, silence: Tensor, background: Background) -> Rejection:
    """Both borders at the lowest place that keeps as many held-out clips as the distances alone, or 95 %.

    ``known``: of held-out clips; ``silence``: rows of it. A clip is background from a probability of 0.5 on, or later.
    """
    distances, likely = known
    assert likely is not None
    ranked, quiet = likely.sort().values, fitted.distances(silence)
    target = -1.0
    for place in range(border_place(len(distances)), len(distances) + 1):
        found = fitted.with_border(distances, quiet, place)
        limit = ranked[place - 1].clamp_min(LIKELY)
        near = distances <= found.border
        target = min(SHARE_KEPT, float(near.double().mean())) if target < 0 else target
        if float((near & (likely <= limit)).double().mean()) >= target:
            break
    complete = Background(background.weight, background.bias, limit.float())
    return Rejection(found.centre, found.scale, found.means, found.border, complete)
