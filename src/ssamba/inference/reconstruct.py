"""What the generative head predicts at masked patches of a recording: the numbers behind ``ssamba reconstruct``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ssamba.audio.decode import read_audio
from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.audio.log_mel import filter_bank, fit_length
from ssamba.inference.model import Encoder
from ssamba.models import patches
from ssamba.models.masking import cluster_masks, frame_masks
from ssamba.utils.errors import ConfigError, nearest
from ssamba.utils.torch_defaults import HOST_FLOAT32

MASKED_FRACTION = 400 / 512
"""Fraction of the patches that are masked by default: the reference's 400 of 512."""
MASK_KINDS = {"cluster": cluster_masks, "frame": frame_masks}


@dataclass(frozen=True)
class Reconstruction:
    """An excerpt and its reconstruction, as log-mel in natural log units.

    original and predicted: (frames, mel_bins) float32; masked: the same shape, True at masked patches. ``error``
    is the mean squared error over masked patches in the normalised units of the training loss; ``start`` is in seconds.
    """

    name: str
    start: float
    original: npt.NDArray[np.float32]
    masked: npt.NDArray[np.bool_]
    predicted: npt.NDArray[np.float32]
    mask: int
    patches: int
    error: float
    front_end: FrontEnd = PUBLISHED

    def summary(self) -> str:
        """One line: how many patches were masked, and how well they were predicted."""
        return f"{self.mask} of {self.patches} patches hidden, mean squared error {self.error:.4f}"


def reconstruct(
    model: Encoder,
    path: str | os.PathLike[str],
    mask: int | None = None,
    mask_kind: str = "cluster",
    seed: int = 0,
    start: float = 0.0,
) -> Reconstruction:
    """Mask ``mask`` patches (None: 400 of 512, in proportion) of the excerpt from ``start`` s on, and predict them.

    The excerpt is as long as the model's grid, or what the file has from there. Raises ``AudioError`` for the file,
    ``ConfigError`` for a model without heads, an unknown mask kind, or more patches than there are.
    """
    config = model.config
    if mask_kind not in MASK_KINDS:
        raise ConfigError(f"mask kind '{mask_kind}'{nearest(mask_kind, list(MASK_KINDS))}: give cluster or frame")
    if patches.patches_overlap(config):
        raise ConfigError("overlapping patches cannot be joined to one picture: load the model without a stride")
    front_end = config.front_end
    seconds = front_end.seconds_of_frames(config.frames)
    waveform = torch.from_numpy(read_audio(path, front_end.sample_rate, start, seconds))
    log_mel = filter_bank(waveform, front_end)
    n_columns = min(patches.columns(log_mel.shape[0], config), config.grid[1])
    features = front_end.normalise(fit_length(log_mel, patches.covered_frames(n_columns, config)))[None]
    rows = config.grid[0]
    count = max(1, round(MASKED_FRACTION * rows * n_columns)) if mask is None else mask
    masked = MASK_KINDS[mask_kind](1, (rows, n_columns), count, torch.Generator().manual_seed(seed))
    predicted = model.reconstruct(features, masked).cpu().float()

    flags = torch.zeros(1, rows * n_columns, config.patch_size, **HOST_FLOAT32).index_fill_(1, masked[0], 1.0)
    where = patches.unpatchify(flags, config, n_columns)[0] > 0
    bins = where.shape[1]
    error = (predicted[0] - features[0, :, :bins]).square()[where].mean().item()
    length = min(log_mel.shape[0], where.shape[0])  # without the padding of the last column
    return Reconstruction(
        name=Path(path).name,
        start=start,
        original=log_mel[:length, :bins].numpy(),
        masked=where[:length].numpy(),
        predicted=front_end.denormalise(predicted[0])[:length].numpy(),
        mask=count,
        patches=rows * n_columns,
        error=error,
        front_end=front_end,
    )
