"""One vector for a recording from its patch tokens: how ``ssamba embed`` and the probes pool.

A recording's tokens come in pieces of patch columns, (F, n, d). To add a pooling to ``embed``: write a class with the
members of ``StreamPooling``, add it to ``CLIP_POOLINGS``, and give ``ssamba.cli.commands.recordings.embed`` an option
that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ssamba.models.config import Config
from ssamba.utils.torch_defaults import HOST_FLOAT32


class StreamPooling(Protocol):
    """Pools one recording's tokens as they come."""

    @staticmethod
    def values(config: Config) -> int:
        """Length of the vector."""

    def add(self, columns_FTd: Tensor) -> None:
        """Take the recording's next columns."""

    def result(self) -> Tensor:
        """The vector (values,) of all columns so far, at least one."""


class MeanPooling:
    """The mean over all patches, in double precision: hours have hundreds of thousands of columns."""

    def __init__(self) -> None:
        self._total, self._count = torch.zeros((), **HOST_FLOAT32), 0

    @staticmethod
    def values(config: Config) -> int:
        """The model's width."""
        return config.width

    def add(self, columns_FTd: Tensor) -> None:
        """See ``StreamPooling``."""
        self._total = self._total.to(columns_FTd.device) + columns_FTd.double().mean(dim=0).sum(dim=0)
        self._count += columns_FTd.shape[1]

    def result(self) -> Tensor:
        """The mean (d,) float64."""
        return self._total / self._count


class Moments:
    """Mean and standard deviation over all columns of (..., F, n, d), in double precision on the CPU."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._square = torch.zeros((), **HOST_FLOAT32)

    @staticmethod
    def values(config: Config) -> int:
        """Twice the model's width."""
        return 2 * config.width

    def add(self, columns_FTd: Tensor) -> None:
        """Take the next columns: any leading dimensions, the same each time."""
        self.add_moments(*column_moments(columns_FTd.float()), columns_FTd.shape[-2])

    def add_moments(self, mean_Fd: Tensor, square_Fd: Tensor, count: int) -> None:
        """Take ``count`` columns whose mean and mean square are known, (..., F, d) float64 on the CPU."""
        if not self._count:
            self._count, self._mean, self._square = count, mean_Fd, square_Fd
            return
        self._count += count
        share = count / self._count
        self._mean = torch.lerp(self._mean, mean_Fd, share)
        self._square = torch.lerp(self._square, square_Fd, share)

    def result(self) -> Tensor:
        """Mean, then deviation, over all patches: (..., 2 d) float32."""
        return _mean_and_deviation(self._mean.mean(dim=-2), self._square.mean(dim=-2))

    def rows(self) -> Tensor:
        """Means of all rows of patches, then their deviations over time: (..., 2 F d) float32."""
        return _mean_and_deviation(self._mean.flatten(-2), self._square.flatten(-2))


CLIP_POOLINGS: Mapping[str, type[StreamPooling]] = {"mean": MeanPooling}
"""The poolings of ``embed`` by name."""


def column_moments(columns_FTd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the columns of (..., F, n, d), and that of the squares: (..., F, d) float64 on the CPU."""
    variance, mean = torch.var_mean(columns_FTd, dim=-2, correction=0)
    mean, variance = mean.double(), variance.double()
    return mean.cpu(), (variance + mean.square()).cpu()


def _mean_and_deviation(mean: Tensor, square: Tensor) -> Tensor:
    return torch.cat([mean, (square - mean.square()).clamp_min(0).sqrt()], dim=-1).float()


def mean_of_padded(patches_BFTd: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean over the patches of each of B recordings, which have ``lengths_B`` columns and zeros behind them: (B, d)."""
    return patches_BFTd.sum(dim=(1, 2)) / (lengths_B * patches_BFTd.shape[1])[:, None]


def mean_and_deviation_of_padded(patches_BFTd: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean, then standard deviation, over the patches of each recording, as ``mean_of_padded``: (B, 2 d)."""
    rows = []
    for patches_FTd, length in zip(patches_BFTd, lengths_B.tolist(), strict=True):
        tokens = patches_FTd[:, :length].flatten(0, 1)
        rows.append(torch.cat([tokens.mean(dim=0), tokens.std(dim=0, correction=0)]))
    return torch.stack(rows)
