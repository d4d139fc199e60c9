"""Changes to training features: drawn for each clip beforehand, applied to a batch at once where the features are.

Features are normalised log-mel (B, frames, mel_bins) on any device (docs/reference.md, "Fine-tuning").
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor

from ssamba.utils.torch_defaults import HOST_FLOAT32

MAX_NOISE, MAX_ROLL = 0.1, 10
"""Largest height of the noise, and frames by which a clip is rolled at most."""


def sample_masks(batch: int, generator: Generator) -> Tensor:
    """What ``mask_stretches`` needs for so many clips: uniform draws (axis, width and place, clip)."""
    return torch.rand(2, 2, batch, generator=generator, **HOST_FLOAT32)


def sample_noise_and_roll(batch: int, generator: Generator) -> Tensor:
    """What ``noise_and_roll`` needs for so many clips: uniform draws (height and roll, clip)."""
    return torch.rand(2, batch, generator=generator, **HOST_FLOAT32)


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


def noise_and_roll(
    features: Tensor, draws: Tensor, noise: Generator, batch: int | None = None, rows: slice = slice(None)
) -> Tensor:
    """Uniform [0, 1) noise times a height uniform in [0, 0.1), then a roll by -10 to 10 frames, around the ends.

    ``noise`` is a generator on the features' device. It draws for ``batch`` clips, of which these are ``rows``.
    """
    frames, bins = features.shape[1:]
    whole = (batch or len(features), frames, bins)
    values = torch.rand(whole, generator=noise, device=features.device, dtype=features.dtype)[rows]
    features = features + values * (MAX_NOISE * draws[0])[:, None, None]
    shift = (draws[1] * (2 * MAX_ROLL + 1)).long().clamp_max(2 * MAX_ROLL) - MAX_ROLL
    source_BT = (torch.arange(frames, device=features.device) - shift[:, None]) % frames
    return features.gather(1, source_BT[:, :, None].expand(-1, -1, bins))


RESPONSE_KNOTS = 6
MAX_MIX_DB = 20.0


def sample_mixing(batch: int, share: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """What ``mix_waveforms`` needs: the clip to mix into each (B,), and its level (B,), 0 where none is."""
    other = torch.randperm(batch, generator=generator, device="cpu")
    level = 10 ** (-MAX_MIX_DB / 20 * torch.rand(batch, generator=generator, **HOST_FLOAT32))
    return other, level * (torch.rand(batch, generator=generator, **HOST_FLOAT32) < share)


def mix_waveforms(waveforms: Tensor, lengths: Tensor, other: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Each waveform (B, samples) plus another of the batch at ``level`` times its own root mean square.

    Returns waveforms and lengths: a mixed clip is as long as the longer of the two.
    """
    power = waveforms.square().sum(dim=1) / lengths
    scale = level * (power / power[other].clamp_min(1e-10)).sqrt()
    mixed = waveforms + scale[:, None] * waveforms[other]
    return mixed, torch.where(level > 0, torch.maximum(lengths, lengths[other]), lengths)


def sample_frequency_response(
    batch: int, gain_db: float, response_db: float, bins: int, generator: Generator
) -> Tensor:
    """A gain uniform in -gain_db to gain_db and a smooth random frequency response: (B, bins) natural-log power.

    The response goes in straight lines between a few values drawn from a normal distribution of ``response_db``.
    """
    knots = response_db * torch.randn(batch, 1, RESPONSE_KNOTS, generator=generator, **HOST_FLOAT32)
    curve = torch.nn.functional.interpolate(knots, size=bins, mode="linear", align_corners=True)[:, 0]
    gain = gain_db * (2 * torch.rand(batch, 1, generator=generator, **HOST_FLOAT32) - 1)
    return (curve + gain) * (math.log(10) / 10)


def apply_frequency_response(features: Tensor, response: Tensor, std: float) -> Tensor:
    """Normalised features (B, frames, bins) of standard deviation ``std``, changed by a response (B, bins)."""
    return features + response[:, None] / (2 * std)


OVERSAMPLING, FRACTION_BITS = 4, 20
ROOMS = 256


def sample_speeds(batch: int, most: float, generator: Generator) -> Tensor:
    """What ``change_speed`` needs: a factor for each clip (B,), log-uniform from 1 / most to most."""
    return most ** (2 * torch.rand(batch, generator=generator, **HOST_FLOAT32) - 1)


def change_speed(waveforms: Tensor, lengths: Tensor, speed: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Each waveform (B, S) played ``speed`` (B,) times as fast, pitch included: (B, samples), and the new lengths.

    After Ko et al. 2015, "Audio augmentation for speech recognition". What would lie above half the sample rate is
    filtered out first. The band-limited signal at OVERSAMPLING times the rate is joined by straight lines: a tone of
    1 kHz comes out with errors 61 dB below it, one of 4 kHz 37 dB, one of 6 kHz 30 dB.
    """
    size = _fast_size(waveforms.shape[1] + 64)
    spectrum = torch.fft.rfft(waveforms, size)
    here = torch.arange(spectrum.shape[1], dtype=torch.float32, device=waveforms.device) / (size / 2)
    spectrum = spectrum * (here <= (1 / speed).clamp_max(1)[:, None])
    spectrum[:, -1] /= 2  # half the rate (sizes are even): a longer transform counts it twice
    fine = OVERSAMPLING * torch.fft.irfft(spectrum, OVERSAMPLING * size)
    # Whole numbers, since single precision is too coarse for places in a long crop.
    step = (speed * (OVERSAMPLING << FRACTION_BITS)).round().long()
    last = (fine.shape[1] - 2) << FRACTION_BITS
    place = (torch.arange(samples, device=waveforms.device) * step[:, None]).clamp_max(last)
    below, fraction = place >> FRACTION_BITS, (place & ((1 << FRACTION_BITS) - 1)).float() / (1 << FRACTION_BITS)
    low, high = fine.gather(1, below), fine.gather(1, below + 1)
    lengths = (lengths / speed).long().clamp(1, samples)
    inside = torch.arange(samples, device=waveforms.device) < lengths[:, None]
    return torch.lerp(low, high, fraction) * inside, lengths


def sample_rooms(batch: int, share: float, sample_rate: int, generator: Generator) -> Tensor:
    """What ``reverberate`` needs, for each clip (3, B): a noise's number, decay in samples, and the tail's level.

    Times in which the sound falls by 60 dB are log-uniform from 0.1 to 1 s, levels of the tail uniform from 20 dB below
    the direct sound to its own; ``share`` of the clips have a tail, the others the level 0.
    """
    noise, time, level, chosen = torch.rand(4, batch, generator=generator, **HOST_FLOAT32)
    decay = sample_rate * 10 ** (time - 1) / math.log(1000)
    return torch.stack([(noise * ROOMS).floor(), decay, 10 ** (level - 1) * (chosen < share)])


def make_noise_bank(generator: Generator, sample_rate: int) -> Tensor:
    """The tails of all rooms before they decay: a second of white noise each (ROOMS, samples)."""
    return torch.randn(ROOMS, sample_rate, generator=generator, **HOST_FLOAT32)


def reverberate(waveforms: Tensor, lengths: Tensor, rooms: Tensor, noises: Tensor) -> tuple[Tensor, Tensor]:
    """Each waveform (B, samples) with the tail of a room: white noise that decays exponentially (Polack's model).

    Returns waveforms and lengths: a clip's tail goes on behind its end, until 60 dB are gone. The loudness of
    direct sound and tail together is that of the waveform, as far as its spectrum is flat. ``noises`` is
    ``make_noise_bank``', on the waveforms' device.
    """
    number, decay, level = rooms
    here = torch.arange(noises.shape[1], device=waveforms.device)
    tail = noises[number.long()] * torch.exp(-here / decay[:, None])
    tail = tail * (level / tail.norm(dim=1))[:, None]
    size = _fast_size(waveforms.shape[1] + noises.shape[1])
    response = 1 + torch.fft.rfft(tail, size)
    reverberated = torch.fft.irfft(torch.fft.rfft(waveforms, size) * response, size)[:, : waveforms.shape[1]]
    sounding = (lengths + decay * math.log(1000) * (level > 0)).long().clamp_max(waveforms.shape[1])
    reverberated = reverberated * (torch.arange(waveforms.shape[1], device=waveforms.device) < sounding[:, None])
    return reverberated / (1 + level.square()).sqrt()[:, None], sounding


@lru_cache(maxsize=64)
def _fast_size(least: int) -> int:
    """A size from ``least`` on, a multiple of 8 with small prime factors alone, for which FFTs are fast."""
    sizes = (2**a * 3**b * 5**c for a in range(3, 32) for b in range(6) for c in range(6))
    return min(size for size in sizes if size >= least)


def repeat_short(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Waveforms (B, samples) with what lies behind each one's length filled by the clip again, and the new lengths."""
    filled = waveforms.numpy().copy()
    for row, length in zip(filled, lengths.tolist(), strict=True):
        if length < len(row):
            row[length:] = np.resize(row[:length], len(row) - length)
    return torch.from_numpy(filled), torch.full_like(lengths, waveforms.shape[1])
