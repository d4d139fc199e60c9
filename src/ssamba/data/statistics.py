"""Mean and standard deviation of a set's log-mel values, for the front end's normalisation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch

from ssamba.audio.decode import stream_audio
from ssamba.audio.front_end import FrontEnd
from ssamba.audio.log_mel import filter_bank
from ssamba.data.manifest import Clip, Source
from ssamba.data.scan import CountProgress, SkipList
from ssamba.utils.errors import AudioError, DataError
from ssamba.utils.threads import PoolJob, ThreadPool

__all__ = ["Statistics", "compute_statistics"]

_BLOCK_SECONDS = 60.0
_IN_FLIGHT = 32


@dataclass(frozen=True)
class Statistics:
    """What was measured.

    Attributes:
        mean, std: over every log-mel value (all frames and bands together; population standard deviation).
        frames: log-mel frames measured.
        clips: files measured.
    """

    mean: float
    std: float
    frames: int
    clips: int


@dataclass(frozen=True)
class _Moments:
    """Number, mean and sum of squared deviations of some values; two of them merge exactly (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    frames: int = 0

    def merged(self, other: _Moments) -> _Moments:
        """The moments of the values of both."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return _Moments(
            count,
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            self.frames + other.frames,
        )


def compute_statistics(
    sources: Sequence[Source],
    front_end: FrontEnd,
    max_clips: int | None = None,
    threads: int = 2,
    seed: int = 0,
    skip: SkipList | None = None,
    progress: CountProgress | None = None,
) -> Statistics:
    """Measure log-mel mean and standard deviation over whole files, without padding.

    Files are read in blocks of a minute, so memory does not grow with their length (a block's end drops the frames that
    would reach into the next, under 0.1 %). The result does not depend on the number of threads.

    Args:
        sources: the clips; their weights are not used.
        front_end: whose log-mel is measured; its mean and std are not used.
        max_clips: size of the random sample that is measured; None measures all.
        threads: decoders at a time.
        seed: of that choice.
        skip: where unreadable files are counted; None keeps a list in memory.
        progress: called as progress(done, total).

    Raises:
        DataError: no clips, none readable, too many unreadable, or constant values.
    """
    clips = [clip for source in sources for clip in source.clips]
    if max_clips is not None and max_clips < len(clips):
        chosen = np.random.default_rng([seed, 0]).choice(len(clips), max_clips, replace=False)
        clips = [clips[index] for index in np.sort(chosen)]
    skip = SkipList() if skip is None else skip
    total, measured = _Moments(), 0
    for done, (clip, result) in enumerate(_measure_all(clips, front_end, threads), start=1):
        if isinstance(result, AudioError):
            skip.record(clip.path, result.reason)
        else:
            skip.succeeded((clip.path,))
            total, measured = total.merged(result), measured + 1
        if progress is not None:
            progress(done, len(clips))
    skip.check(final=True)
    if not measured:
        raise DataError("no readable clips to measure statistics on")
    std = sqrt(total.m2 / total.count)
    if not std > 0:
        raise DataError(f"every log-mel value of the {measured} clips is {total.mean:.4f}; is all the audio silence?")
    return Statistics(total.mean, std, total.frames, measured)


def _measure_all(
    clips: Sequence[Clip], front_end: FrontEnd, threads: int
) -> Iterator[tuple[Clip, _Moments | AudioError]]:
    """Results in the clips' order, so that rounding is the same for any number of threads."""
    waiting: deque[tuple[Clip, PoolJob[_Moments | AudioError]]] = deque()
    with ThreadPool(threads) as pool:
        for clip in clips:
            waiting.append((clip, pool.submit(_measure, clip, front_end, pool)))
            if len(waiting) > _IN_FLIGHT:
                first, job = waiting.popleft()
                yield first, job.result()
        for first, job in waiting:
            yield first, job.result()


def _measure(clip: Clip, front_end: FrontEnd, pool: ThreadPool) -> _Moments | AudioError:
    moments = _Moments()
    try:
        for block in stream_audio(clip.path, _BLOCK_SECONDS, front_end.sample_rate):
            if pool.closing:  # after Ctrl-C: hours of audio are not read to their end
                break
            if front_end.frame_count(len(block)) == 0:
                continue  # the rest of a long file
            with torch.inference_mode():
                features = filter_bank(torch.from_numpy(block), front_end).to(torch.float64)
            mean = float(features.mean())
            deviations = float((features - mean).square().sum())
            moments = moments.merged(_Moments(features.numel(), mean, deviations, features.shape[0]))
    except AudioError as error:
        return error
    return moments
