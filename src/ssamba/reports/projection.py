"""Embeddings in two dimensions: principal components of standardised values, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Projection:
    """Places (N, 2) and the share of the variance along each of the two axes."""

    places: npt.NDArray[np.float64]
    shares: tuple[float, float]


def principal_components(values: npt.ArrayLike) -> Projection:
    """The two directions of (N, d) along which its rows differ the most, each column with deviation 1 before.

    The sign of a direction is the one of its largest weight, so that the same rows give the same picture.
    """
    table = np.asarray(values, dtype=np.float64)
    centred = table - table.mean(axis=0)
    deviation = centred.std(axis=0)
    centred = centred / np.where(deviation > 1e-12, deviation, 1.0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    places = centred @ (directions * np.where(signs == 0, 1, signs)[:, None]).T
    total = float(np.square(sizes).sum()) or 1.0
    shares = [float(s) ** 2 / total for s in sizes[:2]] + [0.0, 0.0]
    if places.shape[1] < 2:
        places = np.concatenate([places, np.zeros((len(places), 2 - places.shape[1]))], axis=1)
    return Projection(places, (shares[0], shares[1]))
