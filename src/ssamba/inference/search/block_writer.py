"""Columns of recordings as they come from the model -> vectors of recordings that are complete."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssamba.inference.search.arrays import FloatArray, HalfArray
from ssamba.inference.search.pieces import PieceMeans
from ssamba.inference.search.space import Space
from ssamba.inference.windows import Segment

BLOCK_FILES, VECTOR_BLOCK_BYTES = 1024, 64 << 20
"""A block is written after that many recordings or bytes of vectors, whichever comes first."""


class Vectors(NamedTuple):
    """What an index holds of one recording: its number, vectors of its pieces and columns in float16, its length."""

    number: int
    pieces: HalfArray
    columns: HalfArray
    seconds: float


class _Open:
    """A recording whose end has not come."""

    def __init__(self) -> None:
        self.means = PieceMeans()
        self.columns: list[HalfArray] = []


class BlockWriter:
    """Gathers recordings until there are enough for a block."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self.waiting: list[Vectors] = []
        self._bytes = 0

    def take(self, segment: Segment, columns: FloatArray, audible: FloatArray, space: Space) -> bool:
        """Take the next columns (n, v) of a recording; True when the complete ones are enough for a block."""
        state = self._open.setdefault(segment.recording, _Open())
        if len(columns):
            state.means.add(columns, audible)
            state.columns.append(space.columns(columns, audible).astype(np.float16))
        if segment.end is not None:
            del self._open[segment.recording]
            pieces = space.pieces(state.means.finish()).astype(np.float16)
            done = Vectors(segment.recording, pieces, np.concatenate(state.columns), segment.end.seconds)
            self.waiting.append(done)
            self._bytes += done.pieces.nbytes + done.columns.nbytes
        return len(self.waiting) >= BLOCK_FILES or self._bytes >= VECTOR_BLOCK_BYTES

    def take_all(self) -> list[Vectors]:
        """The complete recordings in the order of their numbers, which are then forgotten here."""
        done, self.waiting, self._bytes = sorted(self.waiting, key=lambda d: d.number), [], 0
        return done
