"""From waveform to the model's input: resampling and mixing in memory, Kaldi's log-mel filter bank, normalisation.

The filter bank follows Kaldi's definition (25 ms frames, 10 ms shift, symmetric Hann window, snip edges, per-frame DC
removal, pre-emphasis 0.97, FFT of the next power of two, power, HTK mel scale from 20 Hz to half the sample rate,
natural log floored at float32 epsilon, no energy, no dither): docs/reference.md, "Front end". It is batched torch, so
it runs on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio.checks import (
    check_rate,
    check_samples,
    numbered,
    rate_of_arrays,
    shape_problem,
    split_recordings,
)
from ssamba.audio.constants import AUDIOSET_MEAN, AUDIOSET_STD, FRAME_SECONDS, MEL_BINS, SAMPLE_RATE
from ssamba.audio.decode import read_audio
from ssamba.audio.encoded import as_source, is_encoded
from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.utils.errors import AudioError, ConfigError

PRE_EMPHASIS = 0.97
LOW_FREQUENCY = 20.0
FRAMES_AT_ONCE = 32768
"""Frames of 25 ms at 16 kHz transformed together, fewer at higher rates: bounds the memory of an hour-long recording to
about 300 MB."""
Audio = np.ndarray | Tensor | Sequence[float]


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Frequencies on the HTK mel scale, float64."""
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0))


@lru_cache(maxsize=8)
def mel_filters(mel_bins: int = MEL_BINS, sample_rate: int = SAMPLE_RATE, fft_size: int = 512) -> Tensor:
    """Kaldi's triangular filters on the HTK mel scale, (fft_size / 2 + 1, mel_bins); the last row, Nyquist, is 0."""
    edges = np.linspace(mel(LOW_FREQUENCY), mel(sample_rate / 2), mel_bins + 2)
    bins = mel(np.arange(fft_size // 2) * sample_rate / fft_size)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0.0)
    filters = np.concatenate([triangles, np.zeros((1, mel_bins))]).astype(np.float32)
    with torch.inference_mode(False):  # kept for later calls, whose gradients a tensor of that mode would not carry
        return torch.from_numpy(filters)


@lru_cache(maxsize=8)
def _filters_on(device: torch.device, mel_bins: int, sample_rate: int, fft_size: int) -> Tensor:
    """The filters on a device, copied there once: a copy for each batch would make the host wait for the device."""
    with torch.inference_mode(False):  # as above
        return mel_filters(mel_bins, sample_rate, fft_size).to(device)


def log_mel(waveforms: Tensor, mel_bins: int = MEL_BINS) -> Tensor:
    """``filter_bank`` at 16 kHz: (B, samples) or (samples,) -> (B, frames, mel_bins) or (frames, mel_bins)."""
    return filter_bank(waveforms, FrontEnd(mel_bins=mel_bins))


def filter_bank(waveforms: Tensor, front_end: FrontEnd) -> Tensor:
    """Kaldi's log-mel filter bank, not normalised.

    (B, samples) or (samples,) at the front end's rate -> (B, frames, mel_bins) or (frames, mel_bins).

    The mean of each waveform is removed first. Raises ``AudioError`` when shorter than one frame.
    """
    if waveforms.dim() == 1:
        return filter_bank(waveforms[None], front_end)[0]
    n_frames = require_frames(waveforms.shape[1], front_end)
    waveforms = waveforms.float()
    waveforms = waveforms - waveforms.mean(dim=1, keepdim=True)
    frames = waveforms.unfold(1, front_end.frame_length, front_end.hop)
    filters = _filters_on(waveforms.device, front_end.mel_bins, front_end.sample_rate, front_end.fft_size)
    # Chunks of time bound the memory: a frame grows from 160 new samples to 400 windowed ones and 257 complex ones.
    at_once = FRAMES_AT_ONCE * PUBLISHED.frame_length // max(PUBLISHED.frame_length, front_end.frame_length)
    step = max(1, at_once // waveforms.shape[0])
    parts = [_log_mel_of_frames(frames[:, start : start + step], filters) for start in range(0, n_frames, step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def require_frames(samples: int, front_end: FrontEnd) -> int:
    """Frames of a waveform of that many samples. Raises ``AudioError`` when it is shorter than one frame."""
    n_frames = front_end.frame_count(samples)
    if n_frames == 0:
        raise AudioError(
            None,
            f"{samples} samples at {front_end.sample_rate / 1000:g} kHz, one frame takes {front_end.frame_length}: "
            "give 25 ms or more",
        )
    return n_frames


def _log_mel_of_frames(frames: Tensor, filters: Tensor) -> Tensor:
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(frames.shape[-1], periodic=False, device=frames.device, dtype=torch.float32)
    spectrum = torch.fft.rfft((frames - PRE_EMPHASIS * previous) * window, n=2 * (len(filters) - 1))
    power = spectrum.real.square() + spectrum.imag.square()
    # Mixed precision would round the energies to 8 bits and return them as bfloat16.
    with torch.autocast(frames.device.type, enabled=False):
        return (power @ filters).clamp_min(torch.finfo(torch.float32).eps).log()


def fit_length(log_mels: Tensor, target_length: int) -> Tensor:
    """Cut (..., frames, mel_bins) at the end, or pad it with 0.0 at the end, before normalisation."""
    return F.pad(log_mels, (0, 0, 0, target_length - log_mels.shape[-2]))


def to_waveform(audio: Audio, sample_rate: int = SAMPLE_RATE, model_rate: int = SAMPLE_RATE) -> Tensor:
    """One recording in memory, of ``sample_rate`` -> (samples,) float32 at ``model_rate`` on the CPU.

    Takes numpy, torch or a list: floats, or integers of up to 32 bits (scaled to [-1, 1) by their type). Raises
    ``AudioError`` on other types and shapes, on NaN, infinite or absurdly large samples, and on a sample rate outside
    of 1 kHz to 768 kHz.
    """
    rate = check_rate(sample_rate)
    array = _to_array(audio)
    if array.dtype.kind not in "fiu":
        found = "text" if array.dtype.kind in "US" else f"values of type {array.dtype}"
        raise AudioError(None, f"holds {found}, not samples: give numbers, or paths in a list")
    if array.ndim != 1:
        raise AudioError(None, shape_problem(array.shape, ceil(FRAME_SECONDS * rate)))
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        raise AudioError(None, f"{array.dtype} samples have no known full scale: give floats from -1 to 1, or int16")
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        middle, half = (limits.min + limits.max + 1) // 2, (limits.max - limits.min + 1) // 2
        array = (array.astype(np.float64) - middle) / half
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused
        array = np.ascontiguousarray(array, dtype=np.float32)
    check_samples(array)
    if rate != model_rate:
        array = soxr.resample(array, rate, model_rate)
    return torch.from_numpy(np.array(array, dtype=np.float32, copy=True))


def _to_array(audio: Audio | Sequence[Audio]) -> np.ndarray:
    if isinstance(audio, Tensor):
        # numpy has no bfloat16.
        audio = audio.detach().cpu()
        return (audio.float() if audio.dtype == torch.bfloat16 else audio).numpy()
    try:
        return np.asarray(audio)
    except ValueError:
        raise AudioError(None, "a list that is neither samples nor recordings: give one kind") from None


def to_waveforms(
    audio: Any,
    sample_rate: int | None = None,
    model_rate: int = SAMPLE_RATE,
    front_end: FrontEnd | None = None,
) -> list[Tensor]:
    """One recording, or a list of them -> a list of (samples,) waveforms at ``model_rate``.

    Recordings are samples, (samples,) or a batch (batch, samples), of ``sample_rate`` (None: 16 kHz, with a warning),
    or encoded audio, whose rate is its own: a path, bytes, a binary file object (``ssamba.audio.encoded``). A list may
    hold both. With a ``front_end``, whose rate ``model_rate`` is, recordings under one of its frames are refused.

    Raises ``AudioError`` as ``to_waveform`` and ``read_audio`` do, for a batch of no recordings, and for (samples,
    channels); with the number of the recording, from 1, where there are several.
    """
    if is_encoded(audio):
        recordings: Sequence[Any] = [audio]
    elif isinstance(audio, (list, tuple)) and len(audio) and (is_encoded(audio[0]) or not np.isscalar(audio[0])):
        recordings = audio
    else:
        sample_rate = rate_of_arrays(sample_rate)
        recordings = split_recordings(_to_array(audio), ceil(FRAME_SECONDS * check_rate(sample_rate)))
    if sample_rate is None and not all(map(is_encoded, recordings)):
        sample_rate = rate_of_arrays(None)
    found: list[Tensor] = []
    for recording in recordings:
        with numbered(len(found), len(recordings)):
            if is_encoded(recording):
                found.append(torch.from_numpy(read_audio(as_source(recording), model_rate)))
            else:
                found.append(to_waveform(recording, rate_of_arrays(sample_rate), model_rate))
            if front_end is not None:
                require_frames(len(found[-1]), front_end)
    return found


def features(
    audio: Any,
    sample_rate: int | None = None,
    target_length: int | None = None,
    mean: float = AUDIOSET_MEAN,
    std: float = AUDIOSET_STD,
) -> Tensor:
    """Normalised log-mel of recordings, for the published front end -> (B, frames, 128).

    ``audio`` and ``sample_rate`` are those of ``to_waveforms``; ``target_length`` is in frames of 10 ms.
    Without it the longest recording decides. Shorter ones are padded with 0.0 before normalisation, as in the
    reference, so padding is not 0 afterwards. ``mean`` and ``std`` are AudioSet's, those of the published models; a
    model that was trained with others needs its own, which ``model.features`` takes. Raises ``AudioError``, and
    ``ConfigError`` for a length below 1 and statistics that no log-mel has.
    """
    return features_of(audio, sample_rate, target_length, FrontEnd(mean=mean, std=std))


def features_of(audio: Any, sample_rate: int | None, target_length: int | None, front_end: FrontEnd) -> Tensor:
    """As ``features``, for any front end: (B, frames, mel_bins) at its rate, normalised by its statistics."""
    if target_length is not None and target_length < 1:
        raise ConfigError(f"target_length is {target_length}: give frames of 10 ms, at least 1")
    waveforms = to_waveforms(audio, sample_rate, front_end.sample_rate, front_end)
    log_mels = [filter_bank(waveform, front_end) for waveform in waveforms]
    length = target_length or max(x.shape[0] for x in log_mels)
    return front_end.normalise(torch.stack([fit_length(x, length) for x in log_mels]))
