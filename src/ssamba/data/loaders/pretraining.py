"""Batches of waveforms for a plan's steps, decoded ahead by threads or processes.

What a batch holds depends on the plan alone: not on the number of workers, the depth of prefetching or the step that
the loader began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from torch import Tensor

from ssamba.audio.decode import Waveform, read_audio
from ssamba.audio.front_end import PUBLISHED
from ssamba.data.examples import Example, Part
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.loaders.decode_worker import Request, WindowRequest
from ssamba.data.loaders.workers import MAX_ATTEMPTS, ProcessJobs, check_loader, decode_ahead, pad_rows
from ssamba.data.samplers.pretraining import CropSpec, PretrainPlan, rows_of
from ssamba.data.scan import SkipList
from ssamba.utils.errors import AudioError, DataError
from ssamba.utils.threads import ThreadPool

__all__ = ["Batch", "CropLoader", "load_crops"]


_Job = tuple[int, CropSpec]


class Batch(NamedTuple):
    """One training step's audio.

    Attributes:
        step: the plan's step.
        waveforms: (B, samples) float32 at the plan's rate; samples is its longest crop, shorter ones end in zeros.
        lengths: (B,) int64, the samples of each row that are audio.
    """

    step: int
    waveforms: Tensor
    lengths: Tensor


class _Loaded(NamedTuple):
    waveform: Waveform
    path: str
    failures: list[tuple[str, str]]


class CropLoader:
    """Iterates over a plan's batches from `start_step` on, in order, decoding ahead.

    A file that cannot be read is replaced by another crop of the plan, the same in every run, and noted in `skip`.

    Args:
        plan: the crops of each step, and the rate to decode them at.
        workers: decoding threads, or processes where there are many (docs/data.md); 0 decodes in the caller's thread.
            No effect on the batches.
        start_step: first step; a resumed run passes the step that it would have taken next.
        stop_step: step to end before; None never ends.
        prefetch: batches decoded ahead, at most.
        skip: where unreadable files are counted; None keeps a list in memory.
        cache_bytes: budget of an :class:`AudioCache` over the plan's clips; 0 for none.
        part: (k, n) gives the k-th of n blocks of each batch's rows, for a run in n processes.

    Raises (while iterating):
        DataError: too many unreadable files (see :class:`SkipList`), or a crop without any readable replacement.
    """

    def __init__(
        self,
        plan: PretrainPlan,
        workers: int = 2,
        start_step: int = 0,
        stop_step: int | None = None,
        prefetch: int = 4,
        skip: SkipList | None = None,
        cache_bytes: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        check_loader(workers, start_step, prefetch)
        self.plan, self.workers, self.start_step, self.stop_step = plan, workers, start_step, stop_step
        self.prefetch, self.part = prefetch, part
        self.skip = SkipList() if skip is None else skip
        self.cache = AudioCache(plan.clips, cache_bytes, plan.sample_rate) if cache_bytes else None
        self._clips = len({clip.path for clip in plan.clips})

    def __iter__(self) -> Iterator[Batch]:
        steps = count(self.start_step) if self.stop_step is None else range(self.start_step, self.stop_step)
        processes = ProcessJobs(
            self._encode_request,
            self._finish,
            self.plan.batch_size,
            self._samples,
            self.plan.sample_rate,
            self.cache,
        )
        for step, loaded in decode_ahead(steps, self._jobs, self._load, self.workers, self.prefetch, processes):
            yield self._collect(step, loaded)

    @property
    def _samples(self) -> int:
        return round(self.plan.read_seconds * self.plan.sample_rate)

    def _jobs(self, step: int) -> list[_Job]:
        """Positions and their crops."""
        first = step * self.plan.batch_size
        positions = [first + row for row in rows_of(self.plan.batch_size, self.part)]
        return [(position, self.plan.crop(position)) for position in positions]

    def _load(self, job: _Job) -> _Loaded:
        """A crop, or its first readable replacement."""
        position, spec = job
        failures: list[tuple[str, str]] = []
        for attempt in range(MAX_ATTEMPTS + 1):
            if attempt:
                spec = self.plan.crop(position, attempt)
            try:
                return _Loaded(self._read(spec), spec.path, failures)
            except AudioError as error:
                failures.append((spec.path, error.reason))
        path, reason = failures[0]
        raise DataError(f"{path}: {reason}; {MAX_ATTEMPTS} other clips of the same source cannot be read either")

    def _read(self, spec: CropSpec) -> Waveform:
        if self.cache is not None:
            return self.cache.read(spec.path, spec.start, spec.seconds, exact=False)
        return read_audio(spec.path, self.plan.sample_rate, spec.start, spec.seconds, exact=False)

    def _encode_request(self, job: _Job) -> Request:
        """The request for the crop itself. Replacements, being rare, are left to `_load`."""
        spec = job[1]
        slot = None if self.cache is None else self.cache.slot(spec.path)
        window = WindowRequest(Example(spec.path, (Part(spec.path),)), 0.0, spec.start, spec.seconds)
        return Request((window,), slots={} if slot is None else {spec.path: slot}, exact=False)

    def _finish(self, job: _Job, waveform: Waveform) -> _Loaded:
        return _Loaded(waveform, job[1].path, [])

    def _collect(self, step: int, loaded: list[_Loaded]) -> Batch:
        """Pad the crops to one tensor. Failures are recorded here, in the batches' order, not in the threads'."""
        for crop in loaded:
            self.skip.succeeded((crop.path,))
            for path, reason in crop.failures:
                self.skip.record(path, reason)
        self.skip.check(final=self.skip.tried >= self._clips)
        return Batch(step, *pad_rows([crop.waveform for crop in loaded], self._samples))


def load_crops(
    specs: Sequence[CropSpec],
    skip: SkipList | None = None,
    threads: int = 2,
    sample_rate: int = PUBLISHED.sample_rate,
) -> tuple[Tensor, Tensor]:
    """Decode fixed crops, such as those of validation: (waveforms (N, samples) float32, lengths (N,) int64).

    The waveforms are at ``sample_rate``. Unreadable files are left out (N counts the others) and noted in `skip`. All
    crops must have the same `seconds`.

    Raises:
        DataError: too many unreadable files, or none readable.
    """

    def load(spec: CropSpec) -> Waveform | AudioError:
        try:
            return read_audio(spec.path, sample_rate, spec.start, spec.seconds)
        except AudioError as error:
            return error

    skip = SkipList() if skip is None else skip
    waveforms = []
    with ThreadPool(threads) as pool:
        for spec, result in zip(specs, pool.map(load, specs), strict=True):
            if isinstance(result, AudioError):
                skip.record(spec.path, result.reason)
            else:
                skip.succeeded((spec.path,))
                waveforms.append(result)
    skip.check(final=True)
    if not waveforms:
        raise DataError("no readable crops were given")
    return pad_rows(waveforms, round(specs[0].seconds * sample_rate))
