"""From labels with times to training clips of one length.

- **Length.** The median length of the labels, 0.3 to 10.2 s, so that the model's window fits what was labelled.
- **A short label** gives one clip of that length around its middle, moved inwards at the recording's ends.
- **A long label**, 1.5 clips or more, gives round(length / clip) of them, spread evenly from its start to its end.
- **Labels at one time.** Where labels of different names overlap, the set is multi-label: a clip has each label that is
  half in it, or that fills half of it. Otherwise a clip has one label and ends where another
  label begins, so that nothing else is in it; such a clip may be shorter.
- **Unlabelled stretches** are left out, or give clips of a ``background`` class, no more than the labels give.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssamba.data.labels.event import Event
from ssamba.data.labels.recordings import LabelledRecording

CLIP_STEP, CLIP_BASE = 0.16, 0.02
"""Clips last a multiple of 16 frames of 10 ms, the patches of the published grid, and the rest of the last frame."""
SHORTEST_CLIP, LONGEST_CLIP = 2, 64
"""In steps."""
TOUCH_SECONDS = 0.1
"""Labels set by hand overlap by so much where they only touch."""
MIN_CLIP = 0.05
"""Seconds; a stretch between labels may leave less, and then the clip takes more."""


@dataclass(frozen=True)
class LabelledClip:
    """A stretch of a recording with its labels; ``event`` numbers the label that it was cut for, -1: background."""

    path: str
    recording: str
    start: float
    seconds: float
    labels: tuple[str, ...]
    event: int = -1

    @property
    def key(self) -> str:
        """Its name in reports."""
        return f"{self.recording}@{self.start:.3f}-{self.start + self.seconds:.3f}"


def choose_clip_seconds(events: Sequence[Event]) -> float:
    """The median length of labels that have one, as a whole number of patches; 0.98 s for points in time."""
    lengths = [event.seconds for event in events if event.seconds > 0] or [0.98]
    steps = round((statistics.median(lengths) - CLIP_BASE) / CLIP_STEP)
    return round(CLIP_BASE + CLIP_STEP * max(SHORTEST_CLIP, min(LONGEST_CLIP, steps)), 6)


def have_overlaps(recordings: Sequence[LabelledRecording]) -> bool:
    """Whether anywhere two labels of different names are on at one time, for more than a touch."""
    for recording in recordings:
        active: list[Event] = []
        for event in recording.events:
            active = [other for other in active if other.end >= event.start]
            if any(other.label != event.label and overlaps(other, event) for other in active):
                return True
            active.append(event)
    return False


def overlaps(first: Event, second: Event) -> bool:
    """Whether two labels share more than 0.1 s or half of the shorter one; a point is in what surrounds it."""
    shared = min(first.end, second.end) - max(first.start, second.start)
    shorter = min(first.seconds, second.seconds)
    return shared >= 0 if shorter == 0 else shared > min(TOUCH_SECONDS, shorter / 2)


def cut_clips(
    recordings: Sequence[LabelledRecording],
    seconds: float | None = None,
    background: str | None = None,
    multi_label: bool | None = None,
) -> list[LabelledClip]:
    """Clips of ``seconds`` (None: chosen by the labels), by recording and time; see the module.

    ``multi_label`` None: where labels overlap. No two clips have the same recording and times.
    """
    events = [event for recording in recordings for event in recording.events]
    seconds = choose_clip_seconds(events) if seconds is None else seconds
    several = have_overlaps(recordings) if multi_label is None else multi_label
    clips: dict[str, LabelledClip] = {}
    number = 0
    for recording in recordings:
        timeline = _Timeline(recording.events)
        for event in recording.events:
            others = timeline.between(event.start - seconds, event.end + seconds)
            for start, length in _windows(event, others, recording.seconds, seconds, several):
                labels = _labels(event, start, length, others) if several else (event.label,)
                clip = LabelledClip(recording.path, recording.key, start, length, labels, number)
                clips.setdefault(clip.key, clip)
            number += 1
    if background is not None:
        gaps = [clip for recording in recordings for clip in _unlabelled(recording, seconds, background)]
        kept = min(len(gaps), len(clips))
        for clip in (gaps[i * len(gaps) // kept] for i in range(kept)):
            clips.setdefault(clip.key, clip)
    return sorted(clips.values(), key=lambda clip: (clip.recording, clip.start, clip.seconds))


class _Timeline:
    """Events by start, to find those in a stretch without looking at all of them."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events
        self._starts = [event.start for event in events]
        self._longest = max((event.seconds for event in events), default=0.0)

    def between(self, begin: float, end: float) -> Sequence[Event]:
        """All events that touch the stretch, and perhaps a few before it."""
        return self._events[bisect_left(self._starts, begin - self._longest) : bisect_right(self._starts, end)]


def _windows(
    event: Event, others: Sequence[Event], end: float, seconds: float, several: bool
) -> Iterator[tuple[float, float]]:
    """(start, length) of the clips of one label; ``others`` are those near it, ``end`` the recording's."""
    count = round(event.seconds / seconds) if event.seconds >= 1.5 * seconds else 1
    if count > 1:
        room = event.seconds - seconds
        for i in range(count):
            yield round(event.start + room * i / (count - 1), 6), seconds
        return
    low, high = (0.0, end) if several else _room(event, others, end)
    middle = (event.start + event.end) / 2
    if high - low < MIN_CLIP:
        low, high = max(0.0, middle - MIN_CLIP / 2), min(end, middle + MIN_CLIP / 2)
    length = min(seconds, high - low)
    start = max(low, min(middle - length / 2, high - length))
    yield round(start, 6), round(length, 6)


def _room(event: Event, others: Sequence[Event], end: float) -> tuple[float, float]:
    """From the end of the label before to the start of the one after, of those with other names."""
    low, high = 0.0, end
    middle = (event.start + event.end) / 2
    for other in others:
        if other.label != event.label:
            if (other.start + other.end) / 2 <= middle:
                low = max(low, min(other.end, event.start))
            else:
                high = min(high, max(other.start, event.end))
    return low, high


def _labels(event: Event, start: float, length: float, events: Sequence[Event]) -> tuple[str, ...]:
    """The clip's own label and those that are half in it, or fill half of it."""
    found = {event.label}
    for other in events:
        shared = min(other.end, start + length) - max(other.start, start)
        if shared >= 0 and (other.seconds == 0 or shared >= min(other.seconds, length) / 2):
            found.add(other.label)
    return tuple(sorted(found))


def _unlabelled(recording: LabelledRecording, seconds: float, background: str) -> Iterator[LabelledClip]:
    """Clips between labels, one after the other from the start of each gap."""
    begin = 0.0
    for start, end in [*((e.start, e.end) for e in recording.events), (recording.seconds, recording.seconds)]:
        for i in range(int((start - begin) / seconds + 1e-9)):
            yield LabelledClip(recording.path, recording.key, round(begin + i * seconds, 6), seconds, (background,))
        begin = max(begin, end)
