"""The front end as one value: the rate that waveforms have, the frames and bands of the log-mel, its normalisation.

Needs no torch, so that processes that only decode audio can read it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ssamba.audio.checks import rate_number, rate_problem
from ssamba.audio.constants import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    FRAME_MILLISECONDS,
    HOP_MILLISECONDS,
    MEL_BINS,
    SAMPLE_RATE,
)
from ssamba.utils.errors import ConfigError
from ssamba.utils.terminal import shorten

if TYPE_CHECKING:
    from torch import Tensor

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 384_000
"""Hz. Below, a frame of 25 ms is too short for a spectrum; audio files have no more."""
MAX_MEL_BINS = 2048
LARGEST_MEAN = 1000.0
MIN_STD, MAX_STD = 1e-3, 1e3
"""Bounds on the statistics of log-mel values, which lie between -16 and 80 or so: others make features without meaning,
or infinite ones."""


def normalise_log_mel(log_mels: Tensor, mean: float = AUDIOSET_MEAN, std: float = AUDIOSET_STD) -> Tensor:
    """(x - mean) / (2 std), as in AST and SSAST."""
    return (log_mels - mean) / (2 * std)


@dataclass(frozen=True)
class FrontEnd:
    """From waveforms to normalised log-mel features.

    Attributes:
        sample_rate: Hz of the waveforms; audio of another rate is resampled to it.
        mel_bins: triangular filters on the mel scale, from 20 Hz to half the rate.
        frame_length: samples in an analysis frame; 0 takes 25 ms (rounded down to whole samples, as Kaldi does).
        hop: samples between the beginnings of two frames; 0 takes 10 ms (rounded down).
        mean, std: of the log-mel values; features are (x - mean) / (2 std).

    Raises ``ConfigError`` naming the first value that no front end can have.
    """

    sample_rate: int = SAMPLE_RATE
    mel_bins: int = MEL_BINS
    frame_length: int = 0
    hop: int = 0
    mean: float = AUDIOSET_MEAN
    std: float = AUDIOSET_STD

    def __post_init__(self) -> None:
        if problem := rate_problem(self.sample_rate, MIN_SAMPLE_RATE, MAX_SAMPLE_RATE):
            raise ConfigError(problem)
        object.__setattr__(self, "sample_rate", rate_number(self.sample_rate))
        for name in ("sample_rate", "mel_bins", "frame_length", "hop"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), (int, np.integer)):
                unit = " of Hz" if name == "sample_rate" else ""
                raise ConfigError(f"{name} is {shorten(getattr(self, name))}: give a whole number{unit}")
        for name in ("mean", "std"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), (int, float, np.number)):
                raise ConfigError(f"{name} is {shorten(getattr(self, name))}: give a number")
        if self.frame_length == 0:
            object.__setattr__(self, "frame_length", self.sample_rate * FRAME_MILLISECONDS // 1000)
        if self.hop == 0:
            object.__setattr__(self, "hop", self.sample_rate * HOP_MILLISECONDS // 1000)
        for name, least in (("mel_bins", 1), ("frame_length", 2), ("hop", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: give {least} or more")
        if self.mel_bins > MAX_MEL_BINS or max(self.frame_length, self.hop) > self.sample_rate:
            raise ConfigError(
                f"mel_bins is {self.mel_bins}, frame_length {self.frame_length}, hop {self.hop}: give at most "
                f"{MAX_MEL_BINS} mel bins, and frames and hops of at most a second"
            )
        if not -LARGEST_MEAN <= self.mean <= LARGEST_MEAN:
            raise ConfigError(f"mean is {shorten(self.mean)}: give a number from {-LARGEST_MEAN:g} to {LARGEST_MEAN:g}")
        if not MIN_STD <= self.std <= MAX_STD:
            raise ConfigError(f"std is {shorten(self.std)}: give a positive number, from {MIN_STD:g} to {MAX_STD:g}")

    @property
    def fft_size(self) -> int:
        """Points of the transform: the power of two from ``frame_length`` on, as in Kaldi."""
        return 1 << (self.frame_length - 1).bit_length()

    @property
    def nyquist(self) -> float:
        """Highest frequency of the waveforms and of the filter bank, Hz."""
        return self.sample_rate / 2

    @property
    def frames_per_second(self) -> float:
        """100 at rates of which 10 ms are whole samples, else a little more."""
        return self.sample_rate / self.hop

    @property
    def frame_seconds(self) -> float:
        """Length of an analysis frame."""
        return self.frame_length / self.sample_rate

    @property
    def pad_value(self) -> float:
        """What 0.0, with which log-mels are padded, is after normalisation (rounded to float32)."""
        return float(np.float32(-self.mean) / np.float32(2 * self.std))

    @property
    def description(self) -> str:
        """For messages: rate and bands, which features of two models must share to be comparable."""
        return f"{self.sample_rate} Hz and {self.mel_bins} mel bins"

    def same_bands(self, other: FrontEnd) -> bool:
        """Whether log-mels of both are alike before normalisation, so that statistics of one suit the other."""
        return replace(self, mean=other.mean, std=other.std) == other

    def frame_count(self, samples: int) -> int:
        """Frames of a waveform of that many samples: only whole frames count."""
        return 0 if samples < self.frame_length else 1 + (samples - self.frame_length) // self.hop

    def samples_of_frames(self, frames: int) -> int:
        """The fewest samples that give that many frames (at least 1)."""
        return (frames - 1) * self.hop + self.frame_length

    def seconds_of_frames(self, frames: int) -> float:
        """Seconds of audio that give exactly that many frames."""
        return self.samples_of_frames(frames) / self.sample_rate

    def seconds_of_frame(self, frame: float) -> float:
        """Centre of the frame of that number (from 0; fractions are allowed), in seconds."""
        return (frame * self.hop + self.frame_length / 2) / self.sample_rate

    def seconds_between(self, frames: float) -> float:
        """Distance in seconds between the centres of two frames whose numbers differ by ``frames``."""
        return frames * self.hop / self.sample_rate

    def normalise(self, log_mels: Tensor) -> Tensor:
        """(x - mean) / (2 std), as in AST and SSAST."""
        return normalise_log_mel(log_mels, self.mean, self.std)

    def denormalise(self, features: Tensor) -> Tensor:
        """The reverse of ``normalise``: log-mel in natural log units."""
        return features * (2 * self.std) + self.mean


PUBLISHED = FrontEnd()
"""That of the published models: 16 kHz, 128 mel bins, AudioSet's statistics."""
