"""Batches of labelled waveforms for a plan's steps, decoded ahead by threads or processes.

As in :mod:`ssamba.data.loaders.pretraining`, a batch depends on the plan alone: not on the number of workers, the
depth of prefetching or the step that the loader began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssamba.audio.decode import Waveform
from ssamba.data.examples import SILENCE, Example
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.loaders.decode_worker import Request, WindowRequest
from ssamba.data.loaders.read_example import class_vector, mix, read_window
from ssamba.data.loaders.workers import MAX_ATTEMPTS, ProcessJobs, check_loader, decode_ahead, pad_rows
from ssamba.data.manifest import Clip
from ssamba.data.samplers.labelled import EpochPlan, EvaluationPlan, Row
from ssamba.data.samplers.pretraining import rows_of
from ssamba.data.scan import SkipList, scan_clips
from ssamba.utils.errors import AudioError, DataError

__all__ = ["LabelledBatch", "LabelledLoader"]


class LabelledBatch(NamedTuple):
    """One step's audio and labels.

    Attributes:
        step: the plan's step.
        waveforms: (B, S) float32 at the plan's rate; S is the longest row's length, shorter rows end in zeros.
        lengths: (B,) int64, the samples of each row that are audio.
        targets: (B, classes) float32, of a mixture the mixed vector; for scenes (B, seconds) int64, the class of each
            second or ``SILENCE``.
        keys: of the rows' examples (the first of the two where two are mixed).
        examples: (B,) int64, the rows' examples as numbered in the plan; the windows of an example share its number.
    """

    step: int
    waveforms: Tensor
    lengths: Tensor
    targets: Tensor
    keys: tuple[str, ...]
    examples: Tensor


class _Loaded(NamedTuple):
    waveform: Waveform | None  # None: left out of evaluation
    target: npt.NDArray[np.float32] | tuple[int, ...]
    example: int
    paths: list[str]
    failures: list[tuple[str, str]]


class LabelledLoader:
    """Iterates over a plan's batches from `start_step` on, in order, decoding ahead.

    A file that cannot be read is noted in `skip`. In training another example, the same in every run, replaces it; in
    evaluation its rows are left out, and a batch of which nothing is left is not yielded.

    Args:
        plan: the rows of each step, and the rate to decode them at.
        classes: number of classes.
        workers: decoding threads, or processes where there are many (docs/data.md); 0 decodes in the caller's thread.
            No effect on the batches.
        start_step: first step; a resumed run passes the step that it would have taken next.
        stop_step: step to end before; None is the plan's end, which in training never comes.
        prefetch: batches decoded ahead, at most.
        skip: where unreadable files are counted; None keeps a list in memory.
        cache_bytes: budget of an :class:`AudioCache` over the plan's files, whose headers
            are read for it; 0 for none.
        part: (k, n) gives the k-th of n blocks of each batch's rows, for a run in n processes. A block may be empty.

    Raises (while iterating):
        DataError: too many unreadable files (see :class:`ssamba.data.scan.SkipList`), or no readable replacement.
    """

    def __init__(
        self,
        plan: EpochPlan | EvaluationPlan,
        classes: int,
        workers: int = 2,
        start_step: int = 0,
        stop_step: int | None = None,
        prefetch: int = 4,
        skip: SkipList | None = None,
        cache_bytes: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        check_loader(workers, start_step, prefetch)
        if classes < 1:
            raise ValueError(f"classes={classes} must be >= 1")
        self.plan, self.classes, self.workers, self.prefetch = plan, classes, workers, prefetch
        self.start_step, self.part = start_step, part
        self.stop_step = plan.steps if stop_step is None else stop_step
        self.skip = SkipList() if skip is None else skip
        self._files = list(dict.fromkeys(part.path for example in plan.examples for part in example.parts))
        self.cache: AudioCache | None = None
        if cache_bytes:
            clips = scan_clips([Clip(path) for path in self._files], self.skip)
            self.cache = AudioCache(clips, cache_bytes, plan.sample_rate)

    def __iter__(self) -> Iterator[LabelledBatch]:
        steps = count(self.start_step) if self.stop_step is None else range(self.start_step, self.stop_step)
        processes = self._processes()
        for step, loaded in decode_ahead(steps, self._jobs, self._load, self.workers, self.prefetch, processes):
            batch = self._collect(step, loaded)
            if len(batch.keys) or isinstance(self.plan, EpochPlan):
                yield batch
        if isinstance(self.plan, EvaluationPlan):
            self.skip.check(final=True)

    def _jobs(self, step: int) -> list[tuple[int, int, Row]]:
        rows = self.plan.rows(step)
        return [(step, number, rows[number]) for number in rows_of(len(rows), self.part)]

    def _load(self, job: tuple[int, int, Row]) -> _Loaded:
        step, number, row = job
        failures: list[tuple[str, str]] = []
        waveform, example = self._read(step, number, row, False, failures)
        if waveform is None:
            return _Loaded(None, (), example, [], failures)
        partner = None
        if row.partner is not None:
            other, index = self._read(step, number, row, True, failures)
            if other is not None:
                waveform, partner = mix(waveform, other, row.share), index
        return self._loaded(waveform, example, partner, row.share, failures)

    def _loaded(
        self, waveform: Waveform, example: int, partner: int | None, share: float, failures: list[tuple[str, str]]
    ) -> _Loaded:
        """A waveform with its target, which is mixed where two examples are."""
        first = self.plan.examples[example]
        paths = [part.path for part in first.parts]
        if first.per_second is not None:
            seconds = len(first.per_second) if self.plan.max_seconds is None else round(self.plan.max_seconds)
            return _Loaded(waveform, first.per_second[:seconds], example, paths, failures)
        target = class_vector(first.labels, self.classes)
        if partner is not None:
            second = self.plan.examples[partner]
            weight = np.float32(share)
            target = weight * target + (1 - weight) * class_vector(second.labels, self.classes)
            paths += [part.path for part in second.parts]
        return _Loaded(waveform, target, example, paths, failures)

    def _processes(self) -> ProcessJobs[tuple[int, int, Row], _Loaded] | None:
        """How processes decode; without a limit on the clips' length there is no room to plan for them."""
        if self.plan.max_seconds is None:
            return None
        rate = self.plan.sample_rate
        samples = round(self.plan.max_seconds * rate)
        return ProcessJobs(self._encode_request, self._finish, self.plan.batch_size, samples, rate, self.cache)

    def _encode_request(self, job: tuple[int, int, Row]) -> Request:
        """The request for the row's examples. Replacements, being rare, are left to `_load`."""
        row, seconds = job[2], self.plan.max_seconds
        windows = [WindowRequest(self.plan.examples[row.example], row.position, row.start, seconds)]
        if row.partner is not None:
            windows.append(WindowRequest(self.plan.examples[row.partner], row.partner_position, row.start, seconds))
        slots = {}
        if self.cache is not None:
            parts = (part for window in windows for part in window.example.parts)
            slots = {p.path: slot for p in parts if (slot := self.cache.slot(p.path)) is not None}
        return Request(tuple(windows), row.share, slots)

    def _finish(self, job: tuple[int, int, Row], waveform: Waveform) -> _Loaded:
        row = job[2]
        return self._loaded(waveform, row.example, row.partner, row.share, [])

    def _read(
        self, step: int, number: int, row: Row, partner: bool, failures: list[tuple[str, str]]
    ) -> tuple[Waveform | None, int]:
        """The row's example (or its partner), or the first readable replacement; in evaluation None."""
        example = row.partner if partner and row.partner is not None else row.example
        position = row.partner_position if partner else row.position
        for attempt in range(MAX_ATTEMPTS + 1):
            if attempt:
                if not isinstance(self.plan, EpochPlan):
                    return None, example
                example = self.plan.replacement(step, number, partner, attempt)
            try:
                return self._window(self.plan.examples[example], position, row.start), example
            except AudioError as error:
                path = error.path or self.plan.examples[example].key
                failures.append((path, error.reason))
        path, reason = failures[0]
        raise DataError(f"{path}: {reason}; {MAX_ATTEMPTS} other examples cannot be read either")

    def _window(self, example: Example, position: float, start: float | None) -> Waveform:
        read = None if self.cache is None else self.cache.read
        return read_window(example, position, start, self.plan.max_seconds, read, self.plan.sample_rate)

    def _collect(self, step: int, loaded: Sequence[_Loaded]) -> LabelledBatch:
        """Pad the rows to one tensor. Failures are recorded here, in the batches' order, not in the threads'."""
        for item in loaded:
            self.skip.succeeded(item.paths)
            for path, reason in item.failures:
                self.skip.record(path, reason)
        self.skip.check(final=self.skip.tried >= len(self._files))
        kept = [item for item in loaded if item.waveform is not None]
        rows = [item.waveform for item in kept if item.waveform is not None]
        waveforms, lengths = pad_rows(rows, max((len(row) for row in rows), default=0))
        return LabelledBatch(
            step,
            waveforms,
            lengths,
            self._targets([item.target for item in kept]),
            tuple(self.plan.examples[item.example].key for item in kept),
            torch.tensor([item.example for item in kept], dtype=torch.int64, device="cpu"),
        )

    def _targets(self, targets: Sequence[npt.NDArray[np.float32] | tuple[int, ...]]) -> Tensor:
        if self.plan.examples[0].per_second is None:
            return torch.from_numpy(np.array(targets, np.float32).reshape(len(targets), self.classes))
        seconds = np.full((len(targets), max(map(len, targets), default=0)), SILENCE, np.int64)
        for row, labels in zip(seconds, targets, strict=True):
            row[: len(labels)] = labels
        return torch.from_numpy(seconds)
