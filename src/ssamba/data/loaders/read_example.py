"""One labelled example as a waveform and a target: files, stretches and scenes; mixing two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from ssamba.audio.constants import FRAME_SECONDS
from ssamba.audio.decode import Waveform, read_audio, stream_audio
from ssamba.audio.front_end import PUBLISHED
from ssamba.data.examples import Example, Part
from ssamba.data.scan import cached_info
from ssamba.utils.errors import AudioError

__all__ = [
    "ReadPart",
    "class_vector",
    "example_seconds",
    "is_long",
    "mix",
    "read_example",
    "read_window",
    "stream_example",
]

ReadPart = Callable[[str, float, float | None], Waveform]
"""(path, start, seconds or None) -> (samples,) at one rate, as :func:`ssamba.audio.decode.read_audio` gives them."""

LONG_SECONDS = 600.0
"""Longer examples are not held in memory as a whole: 38 MB at 16 kHz."""
STREAM_SECONDS = 30.0

_MIN_SECONDS = FRAME_SECONDS + 0.001


def example_seconds(example: Example) -> float:
    """Length of an example in seconds, from the headers of its files (remembered until a file changes).

    Raises:
        AudioError: a file is missing or its header cannot be read.
    """
    if example.per_second is not None:
        return float(len(example.per_second))
    return max((part.at + _part_seconds(part) for part in example.parts), default=0.0)


def read_example(
    example: Example,
    start: float = 0.0,
    seconds: float | None = None,
    read: ReadPart | None = None,
    sample_rate: int = PUBLISHED.sample_rate,
) -> Waveform:
    """The waveform of an example, or a window of it.

    Scenes are joined: each part at its second, silence (zeros) elsewhere. A scene has its full length even where it
    ends in silence.

    Args:
        example: what to read.
        start: the window's first second.
        seconds: its length; None reads to the end. A window that runs past the end is cut there.
        read: another way to decode a stretch of a file, such as a cache's, at the same rate.
        sample_rate: of the waveform, Hz.

    Returns:
        (samples,) float32 at ``sample_rate``.

    Raises:
        AudioError: a file cannot be read; nothing of the example lies in the window.
    """
    read = _decoder(sample_rate) if read is None else read
    if len(example.parts) == 1 and example.per_second is None and example.parts[0].at == 0.0:
        return _read_single(example.parts[0], start, seconds, read)
    end = example_seconds(example) if seconds is None else min(start + seconds, example_seconds(example))
    if not end > start:
        raise AudioError(example.key, f"the window starts at {start:g} s but the example ends at {end:g} s")
    waveform = np.zeros(round((end - start) * sample_rate), np.float32)
    for part in example.parts:
        _add_part(waveform, part, start, end, read, sample_rate)
    return waveform


def is_long(example: Example) -> bool:
    """Whether an example lasts over ``LONG_SECONDS`` and is read in blocks. False where its header cannot be read."""
    try:
        return example_seconds(example) > LONG_SECONDS
    except AudioError:
        return False


def stream_example(example: Example, sample_rate: int = PUBLISHED.sample_rate) -> Iterator[Waveform]:
    """The waveform of an example in blocks of ``STREAM_SECONDS``, which joined are what :func:`read_example` gives.

    Raises ``AudioError`` as that function, when it comes to what cannot be read.
    """
    part = example.parts[0]
    if len(example.parts) == 1 and example.per_second is None and (part.at, part.start, part.seconds) == (0, 0, None):
        yield from stream_audio(part.path, STREAM_SECONDS, sample_rate)
        return
    whole = example_seconds(example)
    start = 0.0
    while start < whole:
        # A rest that is too short to be decoded alone goes with the block before.
        seconds = STREAM_SECONDS if whole - start > STREAM_SECONDS + 1 else None
        yield read_example(example, start, seconds, sample_rate=sample_rate)
        start = whole if seconds is None else start + seconds


def read_window(
    example: Example,
    position: float,
    start: float | None,
    seconds: float | None,
    read: ReadPart | None = None,
    sample_rate: int = PUBLISHED.sample_rate,
) -> Waveform:
    """A window of at most `seconds`, from `start` on, or without one at `position` (0 to 1) of where it fits.

    Returns (samples,) float32. Raises ``AudioError`` as :func:`read_example`.
    """
    if start is None:
        start = 0.0
        if position and seconds is not None:
            room = max(0.0, example_seconds(example) - seconds)
            start = int(position * room * sample_rate) / sample_rate
    return read_example(example, start, seconds, read, sample_rate)


def mix(first: Waveform, second: Waveform, share: float) -> Waveform:
    """Mixup of two waveforms as the reference does it (docs/reference.md, "Fine-tuning").

    Each loses its mean, the second is cut or padded with zeros to the first's length, they are added with the weights
    `share` and 1 - `share`, and the sum loses its mean.

    Args:
        first, second: (samples,) and (other samples,) float32.
        share: of the first.

    Returns:
        (samples,) float32.
    """
    mixed = np.float32(share) * (first - first.mean())
    count = min(len(first), len(second))
    # The mean is that of the whole second waveform, also when it is cut.
    mixed[:count] += np.float32(1.0 - share) * (second[:count] - second.mean())
    return mixed - mixed.mean()


def class_vector(labels: Iterable[int], classes: int) -> npt.NDArray[np.float32]:
    """(classes,) float32: 1 for each label, else 0."""
    vector = np.zeros(classes, np.float32)
    vector[list(labels)] = 1.0
    return vector


def _decoder(sample_rate: int) -> ReadPart:
    return lambda path, start, seconds: read_audio(path, sample_rate, start, seconds)


def _part_seconds(part: Part) -> float:
    rest = cached_info(part.path).seconds - part.start
    return rest if part.seconds is None else min(part.seconds, rest)


def _read_single(part: Part, start: float, seconds: float | None, read: ReadPart) -> Waveform:
    length = None if part.seconds is None else part.seconds - start
    if length is not None and not length > 0:
        raise AudioError(part.path, f"the window starts at {start:g} s but the stretch ends at {part.seconds:g} s")
    wanted = [value for value in (length, seconds) if value is not None]
    return read(part.path, part.start + start, min(wanted) if wanted else None)


def _add_part(waveform: Waveform, part: Part, start: float, end: float, read: ReadPart, sample_rate: int) -> None:
    """Add what a part has in the window [start, end) where it belongs; a part may run on behind its last second."""
    skipped = max(0.0, start - part.at)
    limit = end - part.at if part.seconds is None else min(part.seconds, end - part.at)
    begin = part.start + skipped
    # What is left of a file behind a cut may be too short to decode by itself: it becomes silence.
    if limit - skipped < _MIN_SECONDS or (begin and cached_info(part.path).seconds - begin < _MIN_SECONDS):
        return
    audio = read(part.path, begin, limit - skipped)
    first = round((part.at + skipped - start) * sample_rate)
    room = waveform[first : first + len(audio)]
    room += audio[: len(room)]
