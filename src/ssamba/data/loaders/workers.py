"""What every loader needs: decoding ahead in threads or processes, and rows padded to one tensor.

Threads serve a few cores: soundfile and soxr release the interpreter lock while they work. On many cores, and next to
a training loop that is busy in Python, threads wait for that lock at each of a clip's calls, and processes take over
(docs/data.md has the numbers).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ssamba.audio.decode import Waveform
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.loaders.decode_worker import Request
from ssamba.data.loaders.process_pool import DecodingProcesses, processes_available
from ssamba.utils.threads import PoolJob, ThreadPool

__all__ = [
    "MAX_ATTEMPTS",
    "ProcessJobs",
    "available_cores",
    "check_loader",
    "choose_workers",
    "decode_ahead",
    "pad_rows",
]

MAX_ATTEMPTS = 16
"""Replacements tried for one unreadable row; at the 5 % limit all of them fail once in 10**21."""
MAX_WORKERS = 16
MIN_PROCESSES = 4
"""So many workers, or more, are processes; fewer are threads."""
MIN_ROWS_PER_PROCESS = 32
"""Rows that a process must have to decode to be worth starting."""

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def available_cores() -> int:
    """Processor cores that this process may use."""
    able = getattr(os, "sched_getaffinity", None)
    return len(able(0)) if able is not None else os.cpu_count() or 1


def check_loader(workers: int, start_step: int, prefetch: int) -> None:
    """Check the arguments that all loaders have. Raises ``ValueError``."""
    if workers < 0 or start_step < 0 or prefetch < 1:
        raise ValueError(f"workers={workers}, start_step={start_step} must be >= 0 and prefetch={prefetch} >= 1")


def choose_workers(setting: int) -> int:
    """The number of workers that a recipe's value means: 0 stands for the cores at hand, 2 to 16 of them.

    Processes of one run on this machine (torchrun's LOCAL_WORLD_SIZE) share the cores.
    """
    if setting:
        return setting
    return max(2, min(MAX_WORKERS, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@dataclass(frozen=True)
class ProcessJobs(Generic[_Job, _Result]):  # no generic NamedTuple before Python 3.11
    """How decoding processes do a loader's jobs.

    Attributes:
        encode_request: a job's request to a process; None leaves the job to the caller's ``run``.
        finish: makes the job's result of the waveform, which is valid until the step has been used.
        rows: most jobs of a step.
        samples: longest waveform.
        sample_rate: of the waveforms, Hz.
        cache: that the requests refer to.
    """

    encode_request: Callable[[_Job], Request | None]
    finish: Callable[[_Job, Waveform], _Result]
    rows: int
    samples: int
    sample_rate: int
    cache: AudioCache | None


def decode_ahead(
    steps: Iterable[int],
    jobs: Callable[[int], Iterable[_Job]],
    run: Callable[[_Job], _Result],
    workers: int,
    prefetch: int,
    processes: ProcessJobs[_Job, _Result] | None = None,
) -> Iterator[tuple[int, list[_Result]]]:
    """Yield (step, [run(job) for job in jobs(step)]) in the steps' order, computed ahead by threads or processes.

    The results do not depend on the workers as long as ``run`` depends on its job alone. An exception of ``run`` is
    raised here, at its step.

    Args:
        steps: numbers to pass to ``jobs``; may be endless.
        jobs: what there is to do for a step.
        run: does one job, in any thread.
        workers: threads or processes; 0 works in the caller's, without looking ahead.
        prefetch: steps computed ahead, at most.
        processes: how processes do the same as ``run``; None keeps to threads. What they cannot do, ``run`` does in the
            caller's thread.

    Raises:
        SsambaError: a decoding process has ended.
    """
    if workers == 0:
        for step in steps:
            yield step, [run(job) for job in jobs(step)]
    elif processes is not None and _worth_processes(steps, processes.rows, workers):
        yield from _in_processes(steps, jobs, run, workers, prefetch, processes)
    else:
        yield from _in_threads(steps, jobs, run, workers, prefetch)


def _worth_processes(steps: Iterable[int], rows: int, workers: int) -> bool:
    enough = len(steps) * rows >= MIN_ROWS_PER_PROCESS * workers if isinstance(steps, range) else True
    return processes_available() and workers >= MIN_PROCESSES and enough


def _in_threads(
    steps: Iterable[int],
    jobs: Callable[[int], Iterable[_Job]],
    run: Callable[[_Job], _Result],
    workers: int,
    prefetch: int,
) -> Iterator[tuple[int, list[_Result]]]:
    waiting: deque[tuple[int, list[PoolJob[_Result]]]] = deque()
    with ThreadPool(workers, "ssamba-decode") as pool:  # closed also when the caller stops early
        for step in steps:
            waiting.append((step, [pool.submit(run, job) for job in jobs(step)]))
            if len(waiting) > prefetch:
                first, asked = waiting.popleft()
                yield first, [job.result() for job in asked]
        for first, asked in waiting:
            yield first, [job.result() for job in asked]


def _in_processes(
    steps: Iterable[int],
    jobs: Callable[[int], Iterable[_Job]],
    run: Callable[[_Job], _Result],
    workers: int,
    prefetch: int,
    processes: ProcessJobs[_Job, _Result],
) -> Iterator[tuple[int, list[_Result]]]:
    rows = (prefetch + 1) * processes.rows
    with DecodingProcesses(min(workers, rows), rows, processes.samples, processes.sample_rate, processes.cache) as pool:
        waiting: deque[tuple[int, list[tuple[_Job, int | None]]]] = deque()

        def result(job: _Job, ticket: int | None) -> _Result:
            waveform = None if ticket is None else pool.result(ticket)
            return run(job) if waveform is None else processes.finish(job, waveform)

        def oldest() -> Iterator[tuple[int, list[_Result]]]:
            step, asked = waiting.popleft()
            yield step, [result(job, ticket) for job, ticket in asked]
            for _, ticket in asked:
                if ticket is not None:
                    pool.release(ticket)

        for step in steps:
            requests = [(job, processes.encode_request(job)) for job in jobs(step)]
            waiting.append((step, [(job, None if r is None else pool.submit(r)) for job, r in requests]))
            if len(waiting) > prefetch:
                yield from oldest()
        while waiting:
            yield from oldest()


def pad_rows(waveforms: Sequence[Waveform], samples: int) -> tuple[Tensor, Tensor]:
    """Rows with zeros behind them: (waveforms (N, samples) float32, lengths (N,) int64)."""
    # numpy copies a row itself; torch would wake its threads for it, which takes 10 times longer on a busy machine.
    batch = np.zeros((len(waveforms), samples), np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return torch.from_numpy(batch), torch.tensor([len(waveform) for waveform in waveforms], device="cpu")
