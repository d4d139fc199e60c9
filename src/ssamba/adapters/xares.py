"""An encoder for X-ARES (eXtensive Audio Representation and Evaluation Suite): docs/adapters.md.

Its programs take the path of a Python file with a class whose name ends in ``Encoder``; this file is one.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ssamba.adapters.recordings import frame_vectors, hop_milliseconds, near_shifts, waveforms_of
from ssamba.inference.load import load


class SsambaEncoder(nn.Module):
    """Waveforms (B, samples) -> vectors in time (B, T, output_dim).

    Attributes:
        sampling_rate: Hz of the waveforms, the model's.
        output_dim: values in a vector.
        hop_size_in_ms: milliseconds between two vectors.
        encoder: the model itself.
    """

    def __init__(
        self, source: str | os.PathLike[str] | None = None, hop_ms: float | None = None, device: str = "auto"
    ) -> None:
        """``source`` and ``device`` are those of ``ssamba.load``.

        ``hop_ms`` is 40 for the published patches if nothing is said, which takes four passes.
        """
        super().__init__()
        self.encoder = load(source, device)
        self.shifts = near_shifts(hop_ms, self.encoder.config)
        self.sampling_rate = self.encoder.config.sample_rate
        self.output_dim = self.encoder.config.width
        self.hop_size_in_ms = hop_milliseconds(self.shifts, self.encoder.config)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """(B, samples), or (samples,) for one -> (B, T, output_dim) on the model's device. Raises ``AudioError``."""
        batch = audio[None] if isinstance(audio, Tensor) and audio.dim() == 1 else audio
        waveforms = waveforms_of(batch, self.encoder.config, "a tensor (batch, samples) at sampling_rate")
        return torch.stack(frame_vectors(self.encoder, waveforms, self.shifts))
