"""The one thread that uses the model: recordings of several requests go through it together.

A group is what has come within a few milliseconds, or while the group before it was under way. Segments of one width
share passes, as those of many files do, so a recording gets what it gets alone up to the rounding of a matrix product
of another size.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.inference.embed import embed_segments, embedding_plan, pad_embeddings
from ssamba.inference.model import Encoder
from ssamba.inference.predict import PredictOptions, predict_segments, prediction_plan
from ssamba.inference.search.query import Index, Match
from ssamba.inference.windows import Segment, cut_recordings
from ssamba.utils.device import device_memory
from ssamba.utils.errors import SsambaError
from ssamba.utils.threads import InterruptsHeld
from ssamba.utils.torch_defaults import HOST_FLOAT32

GROUP_SECONDS = 60.0
"""Audio from which on a group takes no further recording: the next ones would wait too long for it."""


@dataclass(frozen=True)
class EmbedWork:
    """Embeddings are asked for."""


@dataclass(frozen=True)
class PredictWork:
    """Class scores are asked for; ``top`` classes in each answer."""

    options: PredictOptions
    top: int | None = None


@dataclass(frozen=True)
class SearchWork:
    """The ``top`` recordings of the index that are most like a stretch of the query."""

    start: float | None = None
    seconds: float | None = None
    top: int = 10
    fast: bool = False


Question = EmbedWork | PredictWork | SearchWork


class Embedded(NamedTuple):
    """Embeddings of one recording on the CPU: ``clip`` (d,), ``frames`` (T, d) and their ``times`` (T,) in seconds."""

    clip: Tensor
    frames: Tensor
    times: Tensor


@dataclass
class Job:
    """A waveform (samples,) at the rate of its model, what is asked for, and the future of the answer."""

    work: Question
    waveform: Tensor
    rate: int
    future: Future[Any] = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.waveform) / self.rate

    def finish(self, answer: Any) -> None:
        """Give the answer, unless nobody waits for it any longer."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Give the error, unless nobody waits any longer."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Engine:
    """Answers jobs, in groups of up to ``batch``; a job waits up to ``wait`` seconds for others.

    ``seen`` is called with the size of each group and the seconds that it took. A context manager: its thread ends
    with the block, after the jobs that it has.
    """

    def __init__(
        self,
        model: Encoder,
        index: Index | None = None,
        batch: int = 32,
        wait: float = 0.005,
        seen: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.model, self.index = model, index
        self._batch, self._wait, self._seen = batch, wait, seen
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="ssamba-engine", daemon=True)

    def __enter__(self) -> Engine:
        with InterruptsHeld():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(_END)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive()

    def submit(self, work: Question, waveform: Tensor, rate: int) -> Future[Any]:
        """Ask for an ``Embedded``, a ``Prediction`` or a list of ``Match``, none of which needs the device.

        The work of a cancelled future is left out.
        """
        job = Job(work, waveform, rate)
        self._queue.put(job)
        return job.future

    def waiting(self) -> int:
        """Jobs that no group has taken yet."""
        return self._queue.qsize()

    def _loop(self) -> None:
        job = self._queue.get()
        while job is not _END:
            group, following = self._gather(job)
            begin = time.monotonic()
            self._answer(group)
            self._seen(len(group), time.monotonic() - begin)
            del group, job  # waveforms, which nobody needs while this waits
            job = self._queue.get() if following is None else following

    def _gather(self, first: Job) -> tuple[list[Job], Job | None]:
        """The jobs of a group, and the one behind them where it has been taken from the queue as well."""
        group, seconds, end = [first], first.seconds, time.monotonic() + self._wait
        while len(group) < self._batch:
            try:
                job = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return group, None
            seconds += job.seconds
            if job is _END or seconds > GROUP_SECONDS:
                return group, job
            group.append(job)
        return group, None

    def _answer(self, group: list[Job]) -> None:
        by_work: dict[Question, list[Job]] = defaultdict(list)
        for job in group:
            by_work[job.work].append(job)
        for work, jobs in by_work.items():
            try:
                self._work(work, jobs)
            except Exception as error:
                if len(jobs) == 1:
                    jobs[0].fail(error)
                    continue
                for job in jobs:  # alone, so that one of them does not fail the others
                    if not job.future.done():
                        self._answer([job])

    @torch.no_grad()
    def _work(self, work: Question, jobs: list[Job]) -> None:
        with device_memory("a shorter recording"):
            if isinstance(work, SearchWork):
                for job in jobs:
                    if not job.future.cancelled():
                        job.finish(self._search(work, job))
            elif isinstance(work, PredictWork):
                segments = self._segments(jobs, prediction_plan(self.model, work.options))
                for i, prediction in predict_segments(self.model, segments, work.options, top=work.top):
                    jobs[i].finish(prediction)
            else:
                segments = self._segments(jobs, embedding_plan(self.model.config))
                for i, embeddings in _embeddings(self.model, segments):
                    jobs[i].finish(embeddings)

    def _segments(self, jobs: list[Job], plan: Any) -> Iterator[Segment]:
        """The segments of recordings that somebody still waits for."""
        recordings = ((i, [job.waveform]) for i, job in enumerate(jobs) if not job.future.cancelled())
        for segment in cut_recordings(self.model, recordings, plan):
            if not jobs[segment.recording].future.cancelled():
                yield segment

    def _search(self, work: SearchWork, job: Job) -> list[Match]:
        if self.index is None:
            raise SsambaError("there is no index here")
        return self.index.search(
            job.waveform, job.rate, start=work.start, seconds=work.seconds, top=work.top, fast=work.fast
        )


_END = Job(EmbedWork(), torch.empty(0, **HOST_FLOAT32), 1)
"""Behind the last job."""


def _embeddings(model: Encoder, segments: Iterable[Segment]) -> Iterator[tuple[int, Embedded]]:
    parts: dict[int, list[Tensor]] = defaultdict(list)
    for segment, columns_FTd in embed_segments(model, segments):
        parts[segment.recording].append(columns_FTd)
        if segment.last:
            tokens_FTd = torch.cat(parts.pop(segment.recording), dim=1)
            found = pad_embeddings([tokens_FTd], model, model.config.stride_time)
            # Copied here: another thread must not use a GPU while this one captures a graph.
            yield segment.recording, Embedded(found.clip[0].cpu(), found.frames[0].cpu(), found.times.cpu())
