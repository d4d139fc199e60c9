"""A quick look at what embeddings know: nearest-neighbour accuracy, and log-mel statistics as the plain yardstick."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssamba.audio import log_mel as frontend
from ssamba.inference.embed import Embeddings

Floats = NDArray[np.float32]


def log_mel_statistics(waveforms: list[Floats]) -> Floats:
    """Mean and deviation over time of 128 log-mel bands: (N, 256). What plain features give without any training."""
    rows = []
    for waveform in waveforms:
        log_mel = frontend.log_mel(frontend.to_waveform(waveform)).numpy()
        rows.append(np.concatenate([log_mel.mean(axis=0), log_mel.std(axis=0)]))
    return np.stack(rows)


def mean_and_deviation(embeddings: Embeddings) -> Floats:
    """Mean and deviation of each recording's patch tokens, (B, 2 d): what log-mel statistics are to log-mel."""
    rows = []
    for patches, length in zip(embeddings.patches, embeddings.lengths.tolist(), strict=True):
        tokens = patches[:, :length].flatten(0, 1)
        rows.append(torch.cat([tokens.mean(dim=0), tokens.std(dim=0, correction=0)]))
    return np.asarray(torch.stack(rows).cpu().numpy(), dtype=np.float32)


def neighbour_accuracy(
    train: Floats, train_labels: list[str], test: Floats, test_labels: list[str], neighbours: int = 5
) -> float:
    """Share of test rows that their nearest training rows name rightly, by cosine after standardising each dimension.

    ``train`` (N, d) and ``test`` (M, d); the ``neighbours`` nearest vote, each with its similarity as weight.
    """
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6

    def unit(x: Floats) -> Floats:
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
