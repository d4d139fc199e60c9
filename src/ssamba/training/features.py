"""What training feeds the model: a batch of padded waveforms as normalised log-mel, made on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssamba.audio.log_mel import filter_bank, fit_length
from ssamba.data.manifest import Source
from ssamba.data.scan import SkipList
from ssamba.data.statistics import compute_statistics
from ssamba.models.config import Config
from ssamba.utils.progress import Bar

STATISTICS_CLIPS = 1000
"""Most clips that log-mel statistics are measured on."""


def batch_features(waveforms: Tensor, lengths: Tensor, config: Config) -> Tensor:
    """Padded waveforms (B, samples) with real lengths (B,) -> normalised log-mel (B, config.frames, mel_bins).

    Frames beyond a recording's end are 0.0 before normalisation, as the reference pads.
    """
    inside = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    mean = (waveforms * inside).sum(dim=1) / lengths
    waveforms = (waveforms - mean[:, None]) * inside
    front_end = config.front_end
    log_mels = fit_length(filter_bank(waveforms, front_end), config.frames)
    length = front_end.frame_length
    real = torch.where(lengths < length, 0, 1 + (lengths - length) // front_end.hop)
    filled = torch.arange(config.frames, device=log_mels.device) < real[:, None]
    return front_end.normalise(log_mels * filled[..., None])


def measure_statistics(sources: Sequence[Source], config: Config, seed: int, threads: int, skip: SkipList) -> Config:
    """The model's config with log-mel mean and standard deviation measured on (at most 1000 of) the sources' clips.

    ``threads`` decode at a time. Raises ``DataError`` as ``data.statistics.compute_statistics``.
    """
    with Bar("measuring log-mel statistics") as bar:
        found = compute_statistics(
            sources,
            config.front_end,
            max_clips=STATISTICS_CLIPS,
            threads=threads,
            seed=seed,
            skip=skip,
            progress=bar.update,
        )
    return config.replace(mean=found.mean, std=found.std)
