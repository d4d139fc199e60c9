"""What every loader needs: threads that decode ahead, a cache of decoded clips, rows padded to one tensor.

Threads and not processes: soundfile and soxr release the interpreter lock while they work, so threads decode as fast
(docs/data.md has the numbers) and need no second copy of anything.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ssamba.data.audio import SAMPLE_RATE, Waveform, check_length, read_audio
from ssamba.data.manifest import Clip

__all__ = ["MOST_ATTEMPTS", "AudioCache", "decode_ahead", "pad_rows"]

MOST_ATTEMPTS = 16
"""Stand-ins tried for one unreadable row; at the 5 % limit all of them fail once in 10**21."""

Job = TypeVar("Job")
Result = TypeVar("Result")


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

    def read(self, path: str, start: float = 0.0, seconds: float | None = None) -> Waveform:
        """As ``read_audio(path, start=start, seconds=seconds)``, from memory where the clip was chosen for it.

        Raises:
            AudioError: the file cannot be decoded as a whole.
        """
        if path not in self._chosen:
            return read_audio(path, start=start, seconds=seconds)
        samples, peak = self._whole(path)
        first = round(start * SAMPLE_RATE)
        crop = samples[first:] if seconds is None else samples[first : first + round(seconds * SAMPLE_RATE)]
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


def decode_ahead(
    steps: Iterable[int],
    jobs: Callable[[int], Iterable[Job]],
    run: Callable[[Job], Result],
    workers: int,
    prefetch: int,
) -> Iterator[tuple[int, list[Result]]]:
    """Yield (step, [run(job) for job in jobs(step)]) in the steps' order, worked out ahead by threads.

    The results do not depend on the threads as long as ``run`` depends on its job alone. An exception of ``run`` is
    raised here, at its step.

    Args:
        steps: numbers to pass to ``jobs``; may be endless.
        jobs: what there is to do for a step.
        run: does one job, in any thread.
        workers: threads; 0 works in the caller's, without looking ahead.
        prefetch: steps worked on ahead, at most.
    """
    if workers == 0:
        for step in steps:
            yield step, [run(job) for job in jobs(step)]
        return
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="ssamba-decode")
    waiting: deque[tuple[int, list[Future[Result]]]] = deque()
    try:
        for step in steps:
            waiting.append((step, [pool.submit(run, job) for job in jobs(step)]))
            if len(waiting) > prefetch:
                first, futures = waiting.popleft()
                yield first, [future.result() for future in futures]
        for first, futures in waiting:
            yield first, [future.result() for future in futures]
    finally:  # also when the caller stops early: its generator is closed
        pool.shutdown(wait=True, cancel_futures=True)


def pad_rows(waveforms: Sequence[Waveform], samples: int) -> tuple[Tensor, Tensor]:
    """Rows with zeros behind them: (waveforms (N, samples) float32, lengths (N,) int64)."""
    # numpy copies a row itself; torch would wake its threads for it, which takes 10 times longer on a busy machine.
    batch = np.zeros((len(waveforms), samples), np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return torch.from_numpy(batch), torch.tensor([len(waveform) for waveform in waveforms])
