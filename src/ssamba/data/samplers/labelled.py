"""Labelled examples of each step: training epochs and evaluation windows, as pure functions of seed and step.

As in :mod:`ssamba.data.samplers.pretraining` nothing has state: ``plan.rows(step)`` gives the same rows in a
fresh process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import ceil

import numpy as np
import numpy.typing as npt

from ssamba.audio.front_end import PUBLISHED
from ssamba.data.examples import Example
from ssamba.data.loaders.read_example import example_seconds
from ssamba.data.samplers.pretraining import numpy_generator
from ssamba.data.scan import CountProgress, SkipList
from ssamba.utils.errors import AudioError, DataError
from ssamba.utils.threads import ThreadPool

__all__ = ["MIXUP_BETA", "EpochPlan", "EvaluationPlan", "Row", "balanced_weights"]

MIXUP_BETA = 10.0
"""Both parameters of the Beta distribution that mixup's share is drawn from (docs/reference.md, "Fine-tuning")."""

# Purposes of a draw; those below 10 are the pretraining plan's.
_SHUFFLE, _BALANCE, _MIXUP, _POSITION, _REPLACE = range(10, 15)


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        example: index of the example.
        partner: index of the example mixed in, or None.
        share: of the example in the mixture (lambda); the partner has the rest.
        position, partner_position: where a window begins in a longer clip: 0 at its start, 1 as late as fits.
        start: the window's first second if fixed (evaluation); None derives it from ``position``.
    """

    example: int
    partner: int | None = None
    share: float = 1.0
    position: float = 0.0
    partner_position: float = 0.0
    start: float | None = None


def balanced_weights(examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    """Weight of each example in balanced sampling, (N,): the sum over its labels of 1000 / (count of the label + 0.01).

    The weights that AST and SSAST prepare for AudioSet (their ``gen_weight_file.py``). An example without labels has
    weight 0.
    """
    counts: dict[int, int] = {}
    for example in examples:
        for label in example.labels:
            counts[label] = counts.get(label, 0) + 1
    return np.array([sum(1000.0 / (counts[label] + 0.01) for label in example.labels) for example in examples])


class EpochPlan:
    """The order of labelled examples in training.

    Each epoch is a new shuffle of all examples (with `balanced` a draw with replacement by
    :func:`balanced_weights`), cut into batches; the last batch of an epoch holds what is left, so that epochs begin
    on whole steps.

    Args:
        examples: the training examples.
        batch_size: rows of a batch.
        seed: any whole number >= 0.
        epoch_examples: rows of an epoch; None is the number of examples. Without `balanced`, all examples are
            taken before one is repeated, over several epochs if need be.
        balanced: draw by the rarity of labels instead of shuffling.
        mixup: probability that a row gets a partner, drawn uniformly, and a share from Beta(10, 10).
        max_seconds: longer examples are cut to a window of this length; None keeps them whole.
        random_crop: the window lies anywhere in the example, new each time; otherwise it is the start.
        sample_rate: at which the examples are decoded, Hz.

    Raises:
        DataError: no examples.
        ValueError: an argument out of range, or scenes with `balanced`, `mixup` or `random_crop`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        seed: int = 0,
        epoch_examples: int | None = None,
        balanced: bool = False,
        mixup: float = 0.0,
        max_seconds: float | None = None,
        random_crop: bool = False,
        sample_rate: int = PUBLISHED.sample_rate,
    ) -> None:
        if not examples:
            raise DataError("no examples to train on")
        if batch_size < 1 or seed < 0 or not 0 <= mixup <= 1 or (epoch_examples is not None and epoch_examples < 1):
            raise ValueError(
                f"batch_size={batch_size} and epoch_examples={epoch_examples} must be positive, seed={seed} >= 0 and "
                f"mixup={mixup} within 0 and 1"
            )
        _check_window(examples, max_seconds)
        if examples[0].per_second is not None and (balanced or mixup or random_crop):
            raise ValueError("scenes are neither balanced, mixed nor cropped at random")
        self.examples = tuple(examples)
        self.batch_size, self.seed, self.balanced, self.mixup = batch_size, seed, balanced, mixup
        self.max_seconds, self.random_crop, self.sample_rate = max_seconds, random_crop, sample_rate
        self.epoch_examples = len(examples) if epoch_examples is None else epoch_examples
        self._heap = np.cumsum(balanced_weights(examples)) if balanced else np.zeros(0)
        if balanced and not self._heap[-1] > 0:
            raise DataError("balanced sampling needs labels, and no training example has any")
        self._order = lru_cache(maxsize=2)(self._make_order)  # prefetching looks one epoch ahead

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return ceil(self.epoch_examples / self.batch_size)

    @property
    def steps(self) -> None:
        """Training never ends by itself."""
        return None

    @property
    def fingerprint(self) -> str:
        """Short hash of everything that the batches depend on: plans with the same one give the same batches."""
        settings = (self.batch_size, self.seed, self.epoch_examples, self.balanced, self.mixup, self.max_seconds)
        digest = hashlib.blake2b(repr((*settings, self.random_crop)).encode(), digest_size=8)
        if self.sample_rate != PUBLISHED.sample_rate:
            digest.update(repr(("sample_rate", self.sample_rate)).encode())
        for example in self.examples:
            parts = [(part.start, part.seconds, part.at) for part in example.parts]
            line = repr((example.key, example.labels, example.per_second, parts))
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def size(self, step: int) -> int:
        """The number of rows of training step `step`."""
        first = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.epoch_examples - first)

    def rows(self, step: int) -> list[Row]:
        """The rows of training step `step` (from 0)."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        first = index * self.batch_size
        indices = range(first, min(first + self.batch_size, self.epoch_examples))
        return [self._row(int(order[i]), epoch, i) for i in indices]

    def replacement(self, step: int, row: int, partner: bool, attempt: int) -> int:
        """The example that replaces an unreadable one: drawn uniformly from (seed, step, row, which, attempt)."""
        return int(numpy_generator(self.seed, _REPLACE, step, row, partner, attempt).integers(len(self.examples)))

    def _row(self, example: int, epoch: int, index: int) -> Row:
        partner, share, positions = None, 1.0, np.zeros(2)
        if self.mixup:
            draw = numpy_generator(self.seed, _MIXUP, epoch, index)
            if draw.random() < self.mixup:
                partner, share = int(draw.integers(len(self.examples))), float(draw.beta(MIXUP_BETA, MIXUP_BETA))
        if self.random_crop:
            positions = numpy_generator(self.seed, _POSITION, epoch, index).random(2)
        return Row(example, partner, share, float(positions[0]), float(positions[1]))

    def _make_order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Example at each position of an epoch, (epoch_examples,)."""
        if self.balanced:
            draws = numpy_generator(self.seed, _BALANCE, epoch).random(self.epoch_examples) * self._heap[-1]
            return np.minimum(np.searchsorted(self._heap, draws, side="right"), len(self.examples) - 1)
        size, first, count = len(self.examples), epoch * self.epoch_examples, self.epoch_examples
        parts = []
        while count:
            cycle, begin = divmod(first, size)
            taken = min(count, size - begin)
            parts.append(numpy_generator(self.seed, _SHUFFLE, cycle).permutation(size)[begin : begin + taken])
            first, count = first + taken, count - taken
        return np.concatenate(parts)


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` (2 or more) of the numbers from 0 to ``count`` - 1, evenly from the first to the last."""
    return list(range(count)) if count <= most else [i * (count - 1) // (most - 1) for i in range(most)]


class EvaluationPlan:
    """Every example once and in order, or with `windows` every window of every example.

    Args:
        examples: what to evaluate.
        batch_size: rows of a batch; the last one may be shorter.
        max_seconds: longer examples are cut to this length: the start, or with `windows` to
            ceil(length / max_seconds) windows spread evenly from the start to the end, whose scores are to be averaged
            by the batch's ``examples``.
        windows: see above. Reads all headers at once.
        skip: records files whose headers cannot be read; their examples are left out.
        threads: header readers at a time.
        progress: called as progress(done, total) while headers are read.
        sample_rate: at which the examples are decoded, Hz.

    Raises:
        DataError: no examples, none readable, or more unreadable than `skip` allows.
        ValueError: an argument out of range, or windows of scenes.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        max_seconds: float | None = None,
        windows: bool = False,
        skip: SkipList | None = None,
        threads: int = 4,
        progress: CountProgress | None = None,
        sample_rate: int = PUBLISHED.sample_rate,
    ) -> None:
        if not examples:
            raise DataError("no examples to evaluate")
        if batch_size < 1 or (windows and max_seconds is None):
            raise ValueError(f"batch_size={batch_size} must be positive, and windows need max_seconds={max_seconds}")
        _check_window(examples, max_seconds)
        if windows and examples[0].per_second is not None:
            raise ValueError("scenes are evaluated whole, not in windows")
        self.examples = tuple(examples)
        self.batch_size, self.max_seconds, self.sample_rate = batch_size, max_seconds, sample_rate
        self._rows = [Row(index) for index in range(len(examples))]
        if windows and max_seconds is not None:
            skip = SkipList() if skip is None else skip
            self._rows = _window_rows(self.examples, max_seconds, sample_rate, skip, threads, progress)

    def thin(self, most: int) -> None:
        """Leave at most ``most`` (2 or more) windows of each example, spread evenly from its first to its last."""
        kept: list[Row] = []
        for _, group in groupby(self._rows, key=lambda row: row.example):
            rows = list(group)
            kept += [rows[i] for i in spread(len(rows), most)]
        self._rows = kept

    @property
    def windows(self) -> int:
        """Rows of all batches together."""
        return len(self._rows)

    @property
    def steps(self) -> int:
        """Batches in all."""
        return ceil(len(self._rows) / self.batch_size)

    def rows(self, step: int) -> list[Row]:
        """The rows of batch `step` (from 0)."""
        return self._rows[step * self.batch_size : (step + 1) * self.batch_size]


def _check_window(examples: Sequence[Example], max_seconds: float | None) -> None:
    if max_seconds is None:
        return
    if not max_seconds > 0:
        raise ValueError(f"max_seconds={max_seconds} must be positive")
    if examples[0].per_second is not None and max_seconds != round(max_seconds):
        raise ValueError(f"scenes have a label each second: max_seconds={max_seconds} must be a whole number")


def _window_rows(
    examples: Sequence[Example],
    window: float,
    sample_rate: int,
    skip: SkipList,
    threads: int,
    progress: CountProgress | None,
) -> list[Row]:
    def length(example: Example) -> float | AudioError:
        try:
            return example_seconds(example)
        except AudioError as error:
            return error

    rows: list[Row] = []
    with ThreadPool(threads) as pool:
        for index, seconds in enumerate(pool.map(length, examples)):
            if isinstance(seconds, AudioError):
                skip.record(seconds.path or examples[index].key, seconds.reason)
            else:
                skip.succeeded(part.path for part in examples[index].parts)
                rows += [Row(index, start=start) for start in _window_starts(seconds, window, sample_rate)]
            if progress is not None and (index % 64 == 63 or index + 1 == len(examples)):
                progress(index + 1, len(examples))
    skip.check(final=True)
    if not rows:
        raise DataError(f"none of the {len(examples)} examples can be read; the first is {examples[0].key}")
    return rows


def _window_starts(seconds: float, window: float, sample_rate: int) -> list[float]:
    """First seconds of the windows, on the grid of samples; a rest under 5 % of a window adds none."""
    count = max(1, ceil(seconds / window - 0.05))
    last = max(0.0, seconds - window)
    starts = [0.0] if count == 1 else np.linspace(0.0, last, count).tolist()
    return [int(start * sample_rate) / sample_rate for start in starts]
