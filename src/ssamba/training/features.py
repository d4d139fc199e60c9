"""What training feeds the model: a batch of padded waveforms as normalised log-mel, made on the model's device."""

from __future__ import annotations

import torch
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.models.config import Config


def crop_seconds(frames: int) -> float:
    """Seconds of audio that give exactly ``frames`` log-mel frames."""
    return log_mel.samples_of_frames(frames) / log_mel.SAMPLE_RATE


def batch_features(waveforms: Tensor, lengths: Tensor, config: Config) -> Tensor:
    """Padded waveforms (B, samples) with real lengths (B,) -> normalised log-mel (B, config.frames, mel_bins).

    Frames beyond a recording's end are 0.0 before normalisation, as the reference pads.
    """
    inside = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    mean = (waveforms * inside).sum(dim=1) / lengths
    waveforms = (waveforms - mean[:, None]) * inside
    log_mels = log_mel.fit_length(log_mel.log_mel(waveforms, config.mel_bins), config.frames)
    shift, length = log_mel.FRAME_SHIFT, log_mel.FRAME_LENGTH
    real = torch.where(lengths < length, 0, 1 + (lengths - length) // shift)
    filled = torch.arange(config.frames, device=log_mels.device) < real[:, None]
    return log_mel.normalise(log_mels * filled[..., None], config.mean, config.std)
