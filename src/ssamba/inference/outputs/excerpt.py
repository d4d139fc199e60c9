"""The beginning of a recording, kept with an output in memory for a notebook's player and for pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssamba.audio.encoded import is_encoded
from ssamba.audio.front_end import FrontEnd
from ssamba.audio.log_mel import filter_bank
from ssamba.utils.files import stored_name

EXCERPT_SAMPLES = 480_000
"""Most samples that are kept of a recording: 30 s at 16 kHz, 1.9 MB."""
KEPT_RECORDINGS = 8
"""Recordings of one call of which the beginning is kept."""


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a recording at the model's rate.

    Attributes:
        name: the file's, or "recording N".
        waveform: (samples,) float32, at most ``EXCERPT_SAMPLES``.
        front_end: the model's; its rate is the waveform's.
        seconds: length of the whole recording.
    """

    name: str
    waveform: Tensor
    front_end: FrontEnd
    seconds: float

    @property
    def covered(self) -> float:
        """Seconds that are kept."""
        return len(self.waveform) / self.front_end.sample_rate

    def log_mel(self) -> np.ndarray:
        """Log-mel of what is kept, (frames, mel_bins), not normalised."""
        return np.asarray(filter_bank(self.waveform, self.front_end).numpy(), dtype=np.float32)

    def wav(self) -> bytes:
        """What is kept as a WAV file of 16 bits; samples beyond full scale are clipped."""
        import wave

        samples = (self.waveform.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().astype("<i2")
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(self.front_end.sample_rate)
            out.writeframes(samples.tobytes())
        return file.getvalue()


def take_excerpts(audio: Any, waveforms: Sequence[Tensor], front_end: FrontEnd) -> tuple[Excerpt, ...]:
    """The beginnings of the first ``KEPT_RECORDINGS`` recordings; ``audio`` is what ``to_waveforms`` took for them."""
    given = list(audio) if isinstance(audio, (list, tuple)) and len(audio) == len(waveforms) else [audio]
    found = []
    for i, waveform in enumerate(waveforms[:KEPT_RECORDINGS]):
        name = _name(given[i]) if i < len(given) else ""
        kept = waveform[:EXCERPT_SAMPLES]
        seconds = len(waveform) / front_end.sample_rate
        # A copy only where the rest would be kept as well.
        kept = kept if len(kept) == len(waveform) else kept.clone()
        found.append(Excerpt(name or f"recording {i + 1}", kept, front_end, seconds))
    return tuple(found)


def _name(item: Any) -> str:
    if not is_encoded(item):
        return ""
    name = item if isinstance(item, (str, os.PathLike)) else getattr(item, "name", "")
    return stored_name(name) if isinstance(name, (str, os.PathLike)) else ""
