"""Pooling of patch tokens (B, F*T, d), frequency-major: over all of them, over each row of patches, over each second.

The streaming forms, for recordings longer than one pass, are in ``ssamba.inference.pooling``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.models.config import Config
from ssamba.models.patches import column_times

_VARIANCE = 1e-6  # added under the root of a row's variance: one column has none, and the root no gradient at 0


def row_statistics(patches_BPd: Tensor, n_columns: int) -> Tensor:
    """Mean, then standard deviation, over the columns of each row: (B, 2 x rows x d) float32."""
    rows_BFTd = patches_BPd.unflatten(1, (-1, n_columns)).float()
    deviation_BFd = (rows_BFTd.var(dim=2, correction=0) + _VARIANCE).sqrt()
    return torch.cat([rows_BFTd.mean(dim=2), deviation_BFd], dim=1).flatten(1)


def seconds_of_columns(n_columns: int, config: Config) -> Tensor:
    """The second (from 0) in which the centre of each patch column lies, (n_columns,) int64."""
    return column_times(torch.arange(n_columns), config).floor().long()


def second_means(patches_BPd: Tensor, n_columns: int, config: Config) -> Tensor:
    """Mean over frequency, then over the columns whose centres lie in each second: (B, seconds, d)."""
    columns_BTd = patches_BPd.unflatten(1, (-1, n_columns)).mean(dim=1)
    share_ST = _second_shares(n_columns, config, columns_BTd.device)
    return torch.einsum("st,btd->bsd", share_ST.to(columns_BTd.dtype), columns_BTd)


@lru_cache(maxsize=8)
def _second_shares(n_columns: int, config: Config, device: torch.device) -> Tensor:
    """(seconds, columns) weights of the mean over each second, copied once: nobody may wait for it in each step."""
    with torch.inference_mode(False):  # a cached tensor must serve later passes with gradients, too
        share_ST = F.one_hot(seconds_of_columns(n_columns, config)).float().T
        return (share_ST / share_ST.sum(dim=1, keepdim=True).clamp_min(1)).to(device)
