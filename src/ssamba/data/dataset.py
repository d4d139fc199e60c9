"""Batches of waveforms for a plan's steps, decoded ahead by threads.

Threads and not processes: soundfile and soxr release the interpreter lock while they work, so threads decode as fast
(docs/data.md has the numbers) and need no second copy of anything. What a batch holds depends on the plan alone: not on
the number of workers, the depth of prefetching or the step that the loader began with.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssamba.data.audio import SAMPLE_RATE, Waveform, check_length, read_audio
from ssamba.data.manifest import Clip
from ssamba.data.sampling import CropSpec, PretrainPlan
from ssamba.data.scan import SkipList
from ssamba.errors import AudioError, DataError

__all__ = ["AudioCache", "Batch", "CropLoader", "load_crops"]

_MOST_ATTEMPTS = 16  # stand-ins tried for one crop; at the 5 % limit all of them fail once in 10**21


class Batch(NamedTuple):
    """One training step's audio.

    Attributes:
        step: the plan's step.
        waveforms: (B, samples) float32 at 16 kHz; samples is the plan's crop length, shorter crops end in zeros.
        lengths: (B,) int64, the samples of each row that are audio.
    """

    step: int
    waveforms: Tensor
    lengths: Tensor


class AudioCache:
    """Decoded clips kept in memory, up to a budget, so that a small set is decoded once and not every epoch.

    Kept as int16 scaled by the clip's peak: half the size of float32, -98 dB from it. The clips that fit are chosen
    beforehand, in the given order, so that a crop's samples never depend on which thread came first.

    Args:
        clips: candidates with known lengths, most useful first.
        budget_bytes: most memory for samples; a second takes 32,000 bytes.
    """

    def __init__(self, clips: Sequence[Clip], budget_bytes: int) -> None:
        self._chosen: set[str] = set()
        self._held: dict[str, Future[tuple[np.ndarray, float]]] = {}
        self._lock = threading.Lock()
        self.bytes = 0
        for clip in clips:
            size = 2 * (int((clip.seconds or 0.0) * SAMPLE_RATE) + 1)
            if clip.seconds and clip.path not in self._chosen and self.bytes + size <= budget_bytes:
                self._chosen.add(clip.path)
                self.bytes += size

    def __contains__(self, path: str) -> bool:
        return path in self._chosen

    def read(self, path: str, start: float, seconds: float) -> Waveform:
        """As ``read_audio(path, start=start, seconds=seconds)``, from memory where the clip was chosen for it.

        Raises:
            AudioError: the file cannot be decoded as a whole.
        """
        if path not in self._chosen:
            return read_audio(path, start=start, seconds=seconds)
        samples, peak = self._whole(path)
        first = round(start * SAMPLE_RATE)
        crop = samples[first : first + round(seconds * SAMPLE_RATE)]
        check_length(len(crop), path)
        return crop.astype(np.float32) * np.float32(peak / 32767)

    def _whole(self, path: str) -> tuple[np.ndarray, float]:
        with self._lock:
            future = self._held.get(path)
            mine = future is None
            if future is None:
                future = self._held[path] = Future()
        if mine:  # decode outside the lock; whoever wants the same clip meanwhile waits for this future
            try:
                samples = read_audio(path)
                peak = float(np.abs(samples).max()) or 1.0
                future.set_result((np.round(samples * np.float32(32767 / peak)).astype(np.int16), peak))
            except BaseException as error:
                future.set_exception(error)
        return future.result()


class _Loaded(NamedTuple):
    waveform: Waveform
    path: str
    failures: list[tuple[str, str]]


class CropLoader:
    """Iterates over a plan's batches from `start_step` on, in order, decoding ahead in threads.

    A file that cannot be read is replaced by the plan's stand-in crop, the same in every run, and noted in `skip`.

    Args:
        plan: what to show when.
        workers: decoding threads; 0 decodes in the caller's. No effect on the batches.
        start_step: first step; a resumed run passes the step that it would have taken next.
        stop_step: step to end before; None never ends.
        prefetch: batches decoded ahead, at most.
        skip: where unreadable files are counted; None keeps a list in memory.
        cache_bytes: budget of an :class:`AudioCache` over the plan's clips; 0 for none.

    Raises (while iterating):
        DataError: too many unreadable files (see :class:`SkipList`), or a crop without any readable stand-in.
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
    ) -> None:
        if workers < 0 or start_step < 0 or prefetch < 1:
            raise ValueError(f"workers={workers}, start_step={start_step} must be >= 0 and prefetch={prefetch} >= 1")
        self.plan, self.workers, self.start_step, self.stop_step = plan, workers, start_step, stop_step
        self.prefetch = prefetch
        self.skip = SkipList() if skip is None else skip
        self.cache = AudioCache(plan.clips, cache_bytes) if cache_bytes else None
        self._clips = len({clip.path for clip in plan.clips})

    def __iter__(self) -> Iterator[Batch]:
        steps = count(self.start_step) if self.stop_step is None else range(self.start_step, self.stop_step)
        if self.workers == 0:
            for step in steps:
                yield self._collect(step, [self._load(position) for position in self._positions(step)])
            return
        pool = ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix="ssamba-decode")
        waiting: deque[tuple[int, list[Future[_Loaded]]]] = deque()
        try:
            for step in steps:
                waiting.append((step, [pool.submit(self._load, position) for position in self._positions(step)]))
                if len(waiting) > self.prefetch:
                    yield self._take(waiting)
            while waiting:
                yield self._take(waiting)
        finally:  # also when the caller stops early: its generator is closed
            pool.shutdown(wait=True, cancel_futures=True)

    def _positions(self, step: int) -> range:
        return range(step * self.plan.batch_size, (step + 1) * self.plan.batch_size)

    def _take(self, waiting: deque[tuple[int, list[Future[_Loaded]]]]) -> Batch:
        step, futures = waiting.popleft()
        return self._collect(step, [future.result() for future in futures])

    def _load(self, position: int) -> _Loaded:
        """The crop at a position, or its first readable stand-in."""
        failures: list[tuple[str, str]] = []
        for attempt in range(_MOST_ATTEMPTS + 1):
            spec = self.plan.crop(position, attempt)
            try:
                return _Loaded(self._read(spec), spec.path, failures)
            except AudioError as error:
                failures.append((spec.path, error.reason))
        path, reason = failures[0]
        raise DataError(f"{path}: {reason}; {_MOST_ATTEMPTS} other clips of the same source cannot be read either")

    def _read(self, spec: CropSpec) -> Waveform:
        read = read_audio if self.cache is None else self.cache.read
        return read(spec.path, start=spec.start, seconds=spec.seconds)

    def _collect(self, step: int, loaded: list[_Loaded]) -> Batch:
        """Pad the crops to one tensor. Failures are recorded here, in the batches' order, not in the threads'."""
        for crop in loaded:
            self.skip.succeeded((crop.path,))
            for path, reason in crop.failures:
                self.skip.record(path, reason)
        self.skip.check(final=self.skip.tried >= self._clips)
        return Batch(step, *_pad([crop.waveform for crop in loaded], self.plan.crop_seconds))


def load_crops(specs: Sequence[CropSpec], skip: SkipList | None = None, threads: int = 2) -> tuple[Tensor, Tensor]:
    """Decode fixed crops, such as those of validation: (waveforms (N, samples) float32, lengths (N,) int64).

    Unreadable files are left out (N counts the others) and noted in `skip`. All crops must have the same `seconds`.

    Raises:
        DataError: too many unreadable files, or none readable.
    """

    def load(spec: CropSpec) -> Waveform | AudioError:
        try:
            return read_audio(spec.path, start=spec.start, seconds=spec.seconds)
        except AudioError as error:
            return error

    skip = SkipList() if skip is None else skip
    waveforms = []
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for spec, result in zip(specs, pool.map(load, specs), strict=True):
            if isinstance(result, AudioError):
                skip.record(spec.path, result.reason)
            else:
                skip.succeeded((spec.path,))
                waveforms.append(result)
    skip.check(final=True)
    if not waveforms:
        raise DataError("no readable crops were given")
    return _pad(waveforms, specs[0].seconds)


def _pad(waveforms: Sequence[Waveform], seconds: float) -> tuple[Tensor, Tensor]:
    # numpy copies a row itself; torch would wake its threads for it, which takes 10 times longer on a busy machine.
    batch = np.zeros((len(waveforms), round(seconds * SAMPLE_RATE)), np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return torch.from_numpy(batch), torch.tensor([len(waveform) for waveform in waveforms])
