"""The nearest training examples vote: cosine of standardised features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.evaluation.logistic_regression import Standardiser

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
"""Numbers of neighbours to choose from."""
ROWS_AT_ONCE = 1024


def neighbour_scores(
    train: Tensor, targets: Tensor, test: Tensor, neighbours: Sequence[int] = NEIGHBOURS
) -> list[Tensor]:
    """Scores (M, classes) for each number of neighbours: the share of their votes that each class gets.

    ``train`` (N, d) with ``targets`` (N, classes) of 0 and 1, ``test`` (M, d). A neighbour's vote weighs its cosine
    similarity, and nothing when that is negative. More neighbours than there are examples means all.
    """
    standardise = Standardiser.of(train)
    train, test = (F.normalize(standardise(x), dim=1) for x in (train, test))
    targets = targets.double()
    most = min(max(neighbours), len(train))
    parts: list[list[Tensor]] = [[] for _ in neighbours]
    for rows in test.split(ROWS_AT_ONCE):
        similarity, index = (rows @ train.T).topk(most, dim=1)
        weight = similarity.clamp_min(0)
        for part, k in zip(parts, neighbours, strict=True):
            w = weight[:, :k]
            votes = torch.einsum("mk,mkc->mc", w, targets[index[:, :k]])
            part.append(votes / w.sum(dim=1, keepdim=True).clamp_min(1e-12))
    return [torch.cat(part) for part in parts]
