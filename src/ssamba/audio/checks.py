"""What audio may be, in files and in memory: rates, channels and samples, with one message for each.

Needs no torch, so that processes that only decode audio can use it.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ssamba.audio.constants import FRAME_SECONDS, SAMPLE_RATE
from ssamba.utils.errors import AudioError
from ssamba.utils.terminal import shorten

MIN_RECORDING_RATE, MAX_RECORDING_RATE = 1_000, 768_000
"""Hz, of files and of arrays. Bat detectors and hydrophones record at up to 768 kHz; a lower rate is a damaged
header or a number in kHz, and resampling it to 16 kHz would take a thousand times the memory of the file."""
MAX_CHANNELS = 256
"""Microphone arrays and multitrack recorders have up to 128."""
LOUDEST = 1e15
"""Samples beyond this overflow the float32 power spectrum; no recording has them."""


def rate_number(value: object) -> int | float | None:
    """A sample rate as a plain number, whole ones as int; None for what is no number (text, lists, None, bool, NaN)."""
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "torch":
        array: Any = value
        if getattr(array, "ndim", 1) != 0:
            return None
        value = array.item()
        if isinstance(value, bool):
            return None
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) else number


def rate_problem(value: object, low: int, high: int, name: str = "sample_rate") -> str | None:
    """What is wrong with a sample rate that must be from `low` to `high` Hz, in one line; None: nothing."""
    number = rate_number(value)
    if number is not None and low <= number <= high:
        return None
    text = str(number) if number is not None else shorten(value, 40)
    kilo = number is not None and number < low <= 1000 * number <= high
    hint = f"; {number} kHz is {round(1000 * number)}" if kilo and number is not None else ""
    return f"{name} is {text}: give {low} to {high} Hz{hint}"


def check_rate(value: object, name: str = "sample_rate") -> int | float:
    """The rate of a recording in memory as a plain number.

    Raises:
        AudioError: no number, or outside of 1 kHz to 768 kHz.
    """
    problem = rate_problem(value, MIN_RECORDING_RATE, MAX_RECORDING_RATE, name)
    number = rate_number(value)
    if problem is not None or number is None:
        raise AudioError(None, problem or f"{name} is no number")
    return number


_warned: list[str] = []


def rate_of_arrays(sample_rate: int | None) -> int:
    """The rate of arrays, not checked; 16 kHz where none is given, with one warning in a process."""
    if sample_rate is not None:
        return sample_rate
    if not _warned:
        _warned.append("sample_rate")
        warnings.warn(
            "no sample_rate for an array: 16000 Hz is taken; the next version requires it, give sample_rate=16000",
            UserWarning,
            stacklevel=_level_outside(),
        )
    return SAMPLE_RATE


def _level_outside() -> int:
    """The stack level, for the caller's ``warnings.warn``, of the first frame outside of this package and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("ssamba", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def check_target_rate(value: object) -> int:
    """The rate that a file is to be read at: a whole number of Hz within the bounds of recordings.

    Raises:
        AudioError: otherwise.
    """
    number = check_rate(value)
    if not isinstance(number, int):
        raise AudioError(None, f"sample_rate is {number}: give a whole number of Hz")
    return number


def check_header(path: str | os.PathLike[str], rate: int, channels: int) -> None:
    """Refuse a file whose header states a rate or a number of channels that no recording has, before memory is taken.

    Raises:
        AudioError: naming the file.
    """
    if not MIN_RECORDING_RATE <= rate <= MAX_RECORDING_RATE:
        raise AudioError(
            path,
            f"states a sample rate of {rate} Hz; {MIN_RECORDING_RATE} to {MAX_RECORDING_RATE} Hz are read: is the "
            "header damaged?",
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            path,
            f"states {channels} channels; up to {MAX_CHANNELS} are read: split the file, or is the header damaged?",
        )


def check_samples(
    samples: npt.NDArray[np.float32], path: str | os.PathLike[str] | None = None, offset: int = 0, rate: float = 0.0
) -> None:
    """Refuse NaN, infinite and absurdly large samples.

    Args:
        samples: (samples,) float32.
        path: the file, None for audio in memory.
        offset: number of the first sample in the recording.
        rate: Hz, to name the time; 0 leaves it out.

    Raises:
        AudioError: naming the first such sample.
    """
    if not len(samples):
        return
    high, low = samples.max(), samples.min()  # NaN if there is one
    if high <= LOUDEST and low >= -LOUDEST:
        return
    where = int(np.argmin(np.abs(samples) <= LOUDEST))  # NaN compares as False, too
    value = float(samples[where])
    if math.isnan(value):
        kind = "NaN"
    elif math.isinf(value):
        kind = "an infinite value"
    else:
        kind = f"a value of {value:.0e}"
    place = f"sample {offset + where}" + (f" ({(offset + where) / rate:.3f} s)" if rate else "")
    raise AudioError(path, f"holds {kind} at {place}: give samples from -1 to 1, repair or leave out the recording")


def split_recordings(audio: npt.NDArray[Any], frame: int) -> list[npt.NDArray[Any]]:
    """(samples,) or (batch, samples) -> one array for each recording.

    Args:
        audio: as given.
        frame: fewest samples that a recording may have.

    Raises:
        AudioError: the shape is that of no recordings, or of (samples, channels).
    """
    if audio.ndim != 2:
        return [audio]
    if not len(audio):
        raise AudioError(None, f"shape {audio.shape}: holds no recording")
    if looks_like_channels(audio.shape, frame):
        raise AudioError(None, shape_problem(audio.shape, frame))
    return list(audio)


def looks_like_channels(shape: tuple[int, ...], frame: int) -> bool:
    """Whether a shape can only be meant as (samples, channels): its rows are too short for one frame, and many."""
    return len(shape) == 2 and shape[1] < frame and shape[1] <= MAX_CHANNELS and shape[0] > shape[1]


def shape_problem(shape: tuple[int, ...], frame: int) -> str:
    """What to do with an array of a shape that is not understood."""
    if looks_like_channels(shape, frame):
        one = "audio[:, 0]" if shape[1] == 1 else "audio.mean(axis=1)"
        return (
            f"shape {shape} looks like (samples, channels): give one channel as (samples,), for example {one}; "
            "a batch is (recordings, samples)"
        )
    return f"shape {shape}: give one channel as (samples,), or mix down before"


@contextlib.contextmanager
def numbered(index: int, count: int) -> Iterator[None]:
    """Add which of several recordings in memory is meant to an ``AudioError``; ``index`` counts from 0."""
    try:
        yield
    except AudioError as error:
        if count == 1:
            raise
        raise AudioError(error.path, f"recording {index + 1} of {count}: {error.reason}") from None


def check_length(
    samples: int, path: str | os.PathLike[str] | None = None, sample_rate: int | float = SAMPLE_RATE
) -> None:
    """Refuse audio that is too short for a single 25 ms frame (400 samples at 16 kHz).

    Raises:
        AudioError: naming `path`, or "audio" without one.
    """
    least = math.ceil(FRAME_SECONDS * sample_rate)
    if samples < least:
        raise AudioError(
            path, f"{samples} samples at {sample_rate} Hz is shorter than one 25 ms frame ({least} samples)"
        )
