"""Pieces of a recording: the stretches of some seconds that have one vector each, cut as its columns come."""

from __future__ import annotations

import numpy as np

from ssamba.inference.search.arrays import FloatArray

PIECE_COLUMNS, PIECE_HOP = 62, 31
"""Columns in a piece (10 s with the standard patches), and from one piece to the next."""


def piece_count(columns: int) -> int:
    """How many pieces a recording has."""
    return 1 + max(0, -(-(columns - PIECE_COLUMNS) // PIECE_HOP))


class PieceMeans:
    """Means of the audible columns of each piece of one recording, whose columns come in parts of any size.

    Holds no more than two pieces. A piece in which nothing is audible has the mean 0.
    """

    def __init__(self) -> None:
        self._vectors: list[FloatArray] = []
        self._audible: list[FloatArray] = []
        self._first = 0  # column at which the held ones begin
        self._held = 0
        self._next = 0  # first column of the next piece
        self.means: list[FloatArray] = []

    def add(self, vectors: FloatArray, audible: FloatArray) -> None:
        """Take the next columns (n, v) and which are audible (n,), 1 or 0."""
        self._vectors.append(vectors)
        self._audible.append(audible)
        self._held += len(vectors)
        while self._first + self._held > self._next + PIECE_COLUMNS:
            self._emit(self._next)
            self._next += PIECE_HOP
            self._forget(self._first + self._held - PIECE_COLUMNS)

    def finish(self) -> FloatArray:
        """The means (pieces, v) of the recording, at least one."""
        end = self._first + self._held
        self._emit(max(0, end - PIECE_COLUMNS))
        return np.stack(self.means)

    def _emit(self, start: int) -> None:
        self._join()
        part = slice(start - self._first, start - self._first + PIECE_COLUMNS)
        audible = self._audible[0][part, None]
        total = (self._vectors[0][part] * audible).sum(axis=0, dtype=np.float64)
        self.means.append((total / max(1.0, float(audible.sum()))).astype(np.float32))

    def _join(self) -> None:
        self._vectors = [np.concatenate(self._vectors)]
        self._audible = [np.concatenate(self._audible)]

    def _forget(self, before: int) -> None:
        """Drop columns that neither the next piece nor the last one can need."""
        count = min(before, self._next) - self._first
        if count > 0:
            self._join()
            self._vectors, self._audible = [self._vectors[0][count:].copy()], [self._audible[0][count:].copy()]
            self._first, self._held = self._first + count, self._held - count
