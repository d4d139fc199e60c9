"""Changes to training features: drawn for each clip beforehand, applied to a batch at once where the features are.

Features are normalised log-mel (B, frames, mel_bins) on any device (REFERENCE.md, "Fine-tuning").
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

MOST_NOISE, MOST_ROLL = 0.1, 10
"""Largest height of the noise, and frames by which a clip is rolled at most."""


def draw_masks(batch: int, generator: Generator) -> Tensor:
    """What ``mask_stretches`` needs for so many clips: uniform draws (axis, width and place, clip)."""
    return torch.rand(2, 2, batch, generator=generator)


def draw_noise(batch: int, generator: Generator) -> Tensor:
    """What ``noise_and_roll`` needs for so many clips: uniform draws (height and roll, clip)."""
    return torch.rand(2, batch, generator=generator)


def mask_stretches(features: Tensor, draws: Tensor, frequency: int, time: int, fill: float) -> Tensor:
    """One stretch of mel bins and one of frames of each clip replaced by ``fill``.

    Widths are uniform from 0 to ``frequency`` bins and ``time`` frames (both included, cut to the clip), places uniform
    among those where the stretch fits. 0 leaves an axis alone.
    """
    frames, bins = features.shape[1:]
    hidden_BT = _stretch(draws[0], min(time, frames), frames)
    hidden_BF = _stretch(draws[1], min(frequency, bins), bins)
    hidden = torch.zeros(1, 1, 1, dtype=torch.bool, device=features.device)
    if time:
        hidden = hidden | hidden_BT[:, :, None]
    if frequency:
        hidden = hidden | hidden_BF[:, None, :]
    return features.masked_fill(hidden, fill)


def _stretch(draws: Tensor, widest: int, length: int) -> Tensor:
    """(2, B) uniform draws -> (B, length), True inside each clip's stretch."""
    width = (draws[0] * (widest + 1)).long().clamp_max(widest)
    start = (draws[1] * (length - width + 1)).long().minimum(length - width)
    here = torch.arange(length, device=draws.device)
    return (here >= start[:, None]) & (here < (start + width)[:, None])


def noise_and_roll(features: Tensor, draws: Tensor, noise: Generator) -> Tensor:
    """Uniform [0, 1) noise times a height uniform in [0, 0.1), then a roll by -10 to 10 frames, around the ends.

    ``noise`` is a generator on the features' device.
    """
    frames, bins = features.shape[1:]
    values = torch.rand(features.shape, generator=noise, device=features.device, dtype=features.dtype)
    features = features + values * (MOST_NOISE * draws[0])[:, None, None]
    shift = (draws[1] * (2 * MOST_ROLL + 1)).long().clamp_max(2 * MOST_ROLL) - MOST_ROLL
    source_BT = (torch.arange(frames, device=features.device) - shift[:, None]) % frames
    return features.gather(1, source_BT[:, :, None].expand(-1, -1, bins))
