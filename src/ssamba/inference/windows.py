"""From the waveforms of recordings to the segments that a model reads, in bounded memory.

A recording's features come in pieces of any size. A plan says which frames of it the model reads at once: windows of
the grid's length that overlap by half, all of it, or one segment around the middle of each stretch of time. The same
plans serve recordings in memory and files of any length, embeddings and predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio.feature_stream import FeatureStream
from ssamba.audio.log_mel import require_frames
from ssamba.models import patches

if TYPE_CHECKING:
    from ssamba.inference.cuda_graphs import GraphedEncoder
    from ssamba.models.config import Config


class Span(NamedTuple):
    """Frames [first, stop) of a recording, padded to ``frames``, and the position that the plan gives them."""

    first: int
    stop: int
    frames: int
    position: int


class Plan(Protocol):
    """Which segments of a recording the model reads."""

    def span(self, i: int, n: int, final: bool) -> Span | None:
        """The i-th segment when n frames have come, None while it is unknown; ``final``: None when there is none."""


class OverlappingWindows:
    """Windows that begin half a window after each other, the last one ending with the recording.

    ``step`` is the distance in frames of two places where a window may begin, ``window`` a window's length in steps,
    ``length`` its length in frames. ``steps`` gives the steps in n frames, ``padded`` the frames to which a window of
    n frames is padded. A segment's position is its first step.
    """

    def __init__(
        self, step: float, window: int, length: int, steps: Callable[[int], int], padded: Callable[[int], int]
    ) -> None:
        self._step, self._window, self._length = step, window, length
        self._steps, self._padded = steps, padded
        self._hop = max(1, window // 2)

    def span(self, i: int, n: int, final: bool) -> Span | None:
        """See ``Plan``."""
        last = 0 if n <= self._length else max(0, self._steps(n) - self._window)
        start = min(i * self._hop, last)
        first = round(start * self._step)
        waits = i * self._hop >= last or n < first + self._length
        if (waits and not final) or (i > 0 and (i - 1) * self._hop >= last):
            return None
        stop = min(n, first + self._length)
        return Span(first, stop, self._padded(stop - first), start)


class WholeRecording:
    """All of the recording at once, padded to full patch columns; its position is 0."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def span(self, i: int, n: int, final: bool) -> Span | None:
        """See ``Plan``."""
        return Span(0, n, _full_columns(n, self._config), 0) if final and i == 0 else None


class CentredWindows:
    """Segment i has the centre of the stretch from i * every to (i + 1) * every seconds, and the position i.

    It has ``window`` seconds (None: the length of the model's grid), and is padded to the grid's. At the recording's
    ends it is moved inwards: a whole one is what the model was trained on.
    """

    def __init__(self, config: Config, every: float, window: float | None = None) -> None:
        per_second = config.front_end.frames_per_second
        self._every = every * per_second
        self._length = config.frames if window is None else max(1, round(window * per_second))
        self._padded = config.frames

    def span(self, i: int, n: int, final: bool) -> Span | None:
        """See ``Plan``."""
        begin, end = i * self._every, (i + 1) * self._every
        if final and i > 0 and begin >= n - 1e-6:
            return None
        if end >= n and not final:  # perhaps the last row, and then shorter
            return None
        first = max(0, round((begin + min(end, n) - self._length) / 2))
        if first + self._length > n and not final:
            return None
        first = max(0, min(first, n - self._length))
        return Span(first, min(first + self._length, n), self._padded, i)


def column_windows(config: Config) -> OverlappingWindows:
    """Windows of the grid's patch columns, for embeddings; a shorter recording is padded to full columns.

    A segment's position is its first patch column.
    """
    columns = config.grid[1]
    return OverlappingWindows(
        step=config.stride_time,
        window=columns,
        length=patches.covered_frames(columns, config),
        steps=lambda n: patches.columns(n, config),
        padded=lambda n: _full_columns(n, config),
    )


def frame_windows(config: Config, step: float = 1.0) -> OverlappingWindows:
    """Windows of the grid's frames, padded to all of them as in fine-tuning, that begin at multiples of ``step``."""
    return OverlappingWindows(
        step=step,
        window=max(1, int(config.frames // step)),
        length=config.frames,
        steps=lambda n: math.ceil(n / step),
        padded=lambda n: config.frames,
    )


def _full_columns(n: int, config: Config) -> int:
    return patches.covered_frames(patches.columns(n, config), config)


class Length(NamedTuple):
    """How long a recording is."""

    frames: int
    seconds: float


@dataclass(frozen=True)
class Segment:
    """What the model reads at once of a recording: normalised log-mel (frames, mel_bins), padding included.

    ``recording`` is its number, ``position`` the place that the plan gave it. ``end``, in the recording's last segment
    alone, is the length of the recording. ``shift`` is the frame of the recording at which its pass begins.
    """

    recording: int
    position: int
    features: Tensor
    end: Length | None = None
    shift: int = 0

    @property
    def last(self) -> bool:
        """Whether it is the recording's last segment."""
        return self.end is not None


class Segmenter:
    """Cuts one recording's normalised features, fed in pieces of any size, into the segments of a plan.

    Holds little more than two segments. ``pad_value`` is what silence is after normalisation. The first ``shift``
    frames are left out; a recording that has no others gives no segment.
    """

    def __init__(self, plan: Plan, pad_value: float, recording: int = 0, shift: int = 0) -> None:
        self._plan, self._pad_value, self._recording = plan, pad_value, recording
        self._shift = self._to_skip = shift
        self._held: list[Tensor] = []
        self._base = 0  # number of the first frame held
        self._done = 0  # segments
        self._frames = 0

    def feed(self, features: Tensor) -> Iterator[Segment]:
        """Take the next (frames, mel_bins); gives the segments that are complete and not the recording's last."""
        skipped = min(self._to_skip, features.shape[0])
        self._to_skip -= skipped
        self._held.append(features[skipped:])
        self._frames += features.shape[0] - skipped
        while (span := self._plan.span(self._done, self._frames, final=False)) is not None:
            yield self._cut(span)

    def finish(self, seconds: float = 0.0) -> Iterator[Segment]:
        """The segments that are left of a recording of that many seconds; at least one if it has a frame."""
        if self._shift and not self._frames:
            return
        span = self._plan.span(self._done, self._frames, final=True)
        while span is not None:
            following = self._plan.span(self._done + 1, self._frames, final=True)
            yield self._cut(span, Length(self._frames, seconds) if following is None else None)
            span = following

    def _cut(self, span: Span, end: Length | None = None) -> Segment:
        if len(self._held) > 1:
            self._held = [torch.cat(self._held)]
        # Segments begin one behind the other: nothing before this one is needed again.
        self._held = [self._held[0][span.first - self._base :]]
        self._base = span.first
        self._done += 1
        features = self._held[0][: span.stop - span.first]
        missing = span.frames - features.shape[0]
        if missing:
            features = F.pad(features, (0, 0, 0, missing), value=self._pad_value)
        return Segment(self._recording, span.position, features, end, self._shift)


def cut_recordings(
    model: GraphedEncoder,
    recordings: Iterable[tuple[int, Iterable[Tensor]]],
    plan: Plan,
    failed: Collection[int] = (),
    shifts: Sequence[int] = (0,),
) -> Iterator[Segment]:
    """Segments of many recordings, one recording after the other; for each of ``shifts`` those from that frame on.

    ``recordings`` are pairs of a number and the blocks (samples,) of its waveform at the model's rate. Those of a
    recording that turns up in ``failed`` while its blocks are read end early, without a last segment. Raises
    ``AudioError`` for another one that is shorter than a frame (25 ms).
    """
    front_end = model.config.front_end
    for i, blocks in recordings:
        segmenters = [Segmenter(plan, front_end.pad_value, i, shift) for shift in shifts]
        features = FeatureStream(front_end, model.device)
        samples = 0
        for block in blocks:
            new = features.feed(block)
            for segmenter in segmenters:
                yield from segmenter.feed(new)
            samples += len(block)
        if i not in failed:
            require_frames(samples, front_end)
            new = features.finish()
            for segmenter in segmenters:
                yield from segmenter.feed(new)
                yield from segmenter.finish(samples / front_end.sample_rate)
