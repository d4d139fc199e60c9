"""Recordings of any length and rate -> embeddings in time order.

Recordings that fit the model's grid go through in one pass with their own number of patch columns. Longer ones are cut
into overlapping windows of the grid's length, whose tokens are cross-faded, or with ``whole=True`` go through in one
pass with interpolated positions. Only recordings with the same number of columns share a batch, so no padding ever
reaches the scan and a batch gives what its members give alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba import frontend, patches

if TYPE_CHECKING:
    from ssamba.config import Config
    from ssamba.models.ssamba import SSAMBA

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 262144}
"""Tokens in one pass: enough to fill the device, little enough to keep the memory flat."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of B recordings. T is the longest one's number of frames, F the number of frequency rows.

    clip (B, d): mean over a recording's patch tokens. frames (B, T, d): time-ordered, mean over frequency. times (T,):
    seconds at the centre of each frame. patches (B, F, T, d). lengths (B,): how many frames each recording has; what
    lies beyond is 0.
    """

    clip: Tensor
    frames: Tensor
    times: Tensor
    patches: Tensor
    lengths: Tensor


def frame_times(n_columns: int, config: Config) -> Tensor:
    """Seconds at the centre of each patch column, (n_columns,) float64."""
    first = frontend.seconds_of_frame((config.patch_time - 1) / 2)
    step = config.stride_time * frontend.FRAME_SHIFT / frontend.SAMPLE_RATE
    return first + step * torch.arange(n_columns, dtype=torch.float64)


def window_starts(n_columns: int, window: int) -> list[int]:
    """First columns of half-overlapping windows that cover ``n_columns``; the last one ends with the recording."""
    if n_columns <= window:
        return [0]
    last, hop = n_columns - window, max(window // 2, 1)
    return [*range(0, last, hop), last]


@torch.no_grad()
def embed_audio(model: SSAMBA, audio: Any, sample_rate: int = 16000, whole: bool = False) -> Embeddings:
    """Embed recordings in memory.

    ``audio`` is (samples,), (batch, samples) or a list of different lengths, numpy or torch, at ``sample_rate``.
    Recordings longer than the grid are cut into overlapping windows, or with ``whole`` read in one pass. Raises
    ``AudioError`` for NaN, wrong shapes and recordings under 25 ms.
    """
    waveforms = frontend.to_waveforms(audio, sample_rate)
    config = model.config
    log_mels = [frontend.log_mel(w.to(model.device), config.mel_bins) for w in waveforms]
    return embed_features([frontend.normalise(x, config.mean, config.std) for x in log_mels], model, whole)


@torch.no_grad()
def embed_features(features: Sequence[Tensor], model: SSAMBA, whole: bool = False) -> Embeddings:
    """Embed normalised log-mel features of different lengths, a list of (frames, mel_bins), without their padding."""
    config = model.config
    pad_value = frontend.normalise(torch.zeros(()), config.mean, config.std).item()
    counts = [patches.columns(x.shape[0], config) for x in features]
    window = config.grid[1]
    # Jobs of equal width share batches: width -> (recording, first column, features of the window).
    jobs: dict[int, list[tuple[int, int, Tensor]]] = defaultdict(list)
    for i, (x, n) in enumerate(zip(features, counts, strict=True)):
        x = F.pad(x, (0, 0, 0, max(0, patches.covered_frames(n, config) - x.shape[0])), value=pad_value)
        width = n if whole else min(n, window)
        for start in window_starts(n, width):
            first = start * config.stride_time
            jobs[width].append((i, start, x[first : first + patches.covered_frames(width, config)]))
    rows, longest = config.grid[0], max(counts)
    total = torch.zeros(len(features), rows, longest, config.width, device=model.device)
    weight = torch.zeros(len(features), longest, device=model.device)
    for width, group in jobs.items():
        fade = torch.ones(width, device=model.device)
        if width == window:
            fade = torch.minimum(torch.arange(1, width + 1), torch.arange(width, 0, -1)).to(fade)
        size = max(1, TOKENS_AT_ONCE.get(model.device.type, 4096) // (1 + rows * width))
        for begin in range(0, len(group), size):
            part = group[begin : begin + size]
            tokens = model.encode(torch.stack([x for _, _, x in part]))
            grid = tokens[:, 1:].unflatten(1, (rows, width)).float()
            for (i, start, _), patch in zip(part, grid, strict=True):
                total[i, :, start : start + width] += patch * fade[:, None]
                weight[i, start : start + width] += fade
    total /= weight.clamp_min(1e-6)[:, None, :, None]
    lengths = torch.tensor(counts, device=model.device)
    clip = total.sum(dim=(1, 2)) / (lengths * rows)[:, None]
    return Embeddings(clip, total.mean(dim=1), frame_times(longest, config).to(model.device), total, lengths)
