"""Folders of noise in several formats and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile


class Format(NamedTuple):
    """How one file is written: rate in Hz, ending, subtype (None: the ending's default)."""

    rate: int
    ending: str
    subtype: str | None = None


MIXED = (Format(16000, "wav"), Format(8000, "flac"), Format(44100, "ogg"))
LENGTHS = tuple(0.3 + 0.2 * number for number in range(7))
"""Seconds."""


def write_noise(
    folder: Path, count: int, formats: Sequence[Format] = MIXED, seconds: Sequence[float] = LENGTHS
) -> Path:
    """``count`` files ``00.wav``, ``01.flac``, ... that take formats and lengths in turn; returns the folder."""
    rng = np.random.default_rng(0)
    for number in range(count):
        rate, ending, subtype = formats[number % len(formats)]
        audio = 0.1 * rng.standard_normal(int(rate * seconds[number % len(seconds)]))
        soundfile.write(folder / f"{number:02d}.{ending}", audio, rate, subtype=subtype)
    return folder
