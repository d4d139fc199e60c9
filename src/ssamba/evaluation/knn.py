"""Nearest neighbours by cosine of standardised features; log-mel statistics as the plain features to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.audio.log_mel import filter_bank, to_waveform
from ssamba.evaluation.logistic_regression import Standardiser
from ssamba.inference.embed import Embeddings
from ssamba.inference.pooling import mean_and_deviation_of_padded

FeatureRows = NDArray[np.float32]

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
"""Numbers of neighbours to choose from."""
ROWS_AT_ONCE = 1024
"""Test examples whose similarities are computed together."""


def log_mel_statistics(waveforms: Sequence[FeatureRows], front_end: FrontEnd = PUBLISHED) -> FeatureRows:
    """Mean and deviation over time of the log-mel bands of waveforms at the front end's rate: (N, 2 mel_bins).

    What plain features give without any training.
    """
    rows = []
    for waveform in waveforms:
        log_mel = filter_bank(to_waveform(waveform), front_end).numpy()
        rows.append(np.concatenate([log_mel.mean(axis=0), log_mel.std(axis=0)]))
    return np.stack(rows)


class ColumnSums:
    """The same of a waveform that comes in blocks, whose ends drop frames that would reach into the next."""

    def __init__(self) -> None:
        self._frames, self._sum, self._square = 0, np.zeros(()), np.zeros(())

    def add(self, block: FeatureRows, front_end: FrontEnd) -> None:
        """A block (samples,); one without a whole frame adds nothing."""
        if not front_end.frame_count(len(block)):
            return
        log_mel = filter_bank(to_waveform(block), front_end).numpy().astype(np.float64)
        self._frames += len(log_mel)
        self._sum, self._square = self._sum + log_mel.sum(axis=0), self._square + np.square(log_mel).sum(axis=0)

    def result(self) -> FeatureRows:
        """(2 mel_bins,) float32 of all blocks."""
        mean = self._sum / self._frames
        deviation = np.sqrt(np.maximum(self._square / self._frames - np.square(mean), 0.0))
        return np.concatenate([mean, deviation]).astype(np.float32)


def mean_and_deviation(embeddings: Embeddings) -> FeatureRows:
    """Mean and deviation of each recording's patch tokens, (B, 2 d): what log-mel statistics are to log-mel."""
    pooled = mean_and_deviation_of_padded(embeddings.patches, embeddings.lengths)
    return np.asarray(pooled.cpu().numpy(), dtype=np.float32)


def neighbour_accuracy(
    train: FeatureRows, train_labels: list[str], test: FeatureRows, test_labels: list[str], neighbours: int = 5
) -> float:
    """Accuracy of the nearest training rows on test rows, by cosine after standardising each dimension.

    ``train`` (N, d) and ``test`` (M, d); the ``neighbours`` nearest vote, each with its similarity as weight.
    """
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6

    def unit(x: FeatureRows) -> FeatureRows:
        x = (x - mean) / std
        return np.asarray(x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12), dtype=np.float32)

    classes, codes = np.unique(train_labels, return_inverse=True)
    similarity = unit(test) @ unit(train).T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    votes = np.zeros((len(test), len(classes)))
    for rank in range(nearest.shape[1]):
        column = nearest[:, rank]
        votes[np.arange(len(test)), codes[column]] += np.take_along_axis(similarity, column[:, None], axis=1)[:, 0]
    return float((classes[votes.argmax(axis=1)] == np.asarray(test_labels)).mean())


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
