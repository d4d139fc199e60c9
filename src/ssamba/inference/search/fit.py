"""Which space an index gets, and fitting one to a collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssamba.inference.file_stream import FileStream
from ssamba.inference.search.arrays import FloatArray
from ssamba.inference.search.columns import Level, column_vectors
from ssamba.inference.search.pieces import PieceMeans
from ssamba.inference.search.space import (
    ENOUGH_RECORDINGS,
    Space,
    default_layer,
    fitted_space,
    learned_space,
    plain_space,
)
from ssamba.utils.errors import DataError

if TYPE_CHECKING:
    from ssamba.inference.model import Encoder


SAMPLE_FILES, COLUMNS_EACH = 512, 16
"""Recordings, spread over the collection, from which a space is fitted, and how many columns of each."""


def choose_space(
    model: Encoder, digest: str, files: Sequence[str], wanted: str, batch: int | None = None, threads: int | None = None
) -> Space:
    """The space for a new index: ``wanted`` is one of ``SPACES``.

    Raises ``DataError`` when a fitted one is asked for and too few files can be read.
    """
    level = Level()
    learned = learned_space(digest) if wanted == "auto" else None
    if learned is not None:
        return learned
    if wanted == "plain" or (wanted == "auto" and len(files) < ENOUGH_RECORDINGS):
        return plain_space(model, digest, level)
    layer = default_layer(model)
    pieces, columns = _sample(model, files, layer, level, batch, threads)
    if len(pieces) >= ENOUGH_RECORDINGS:
        return fitted_space(digest, layer, level, pieces, columns)
    if wanted == "auto":
        return plain_space(model, digest, level)
    raise DataError(
        f"{len(pieces)} recordings with sound: fitting a space takes {ENOUGH_RECORDINGS}; use --space plain"
    )


def _sample(
    model: Encoder, files: Sequence[str], layer: int, level: Level, batch: int | None, threads: int | None
) -> tuple[FloatArray, FloatArray]:
    """The first piece's mean of each recording with sound (n, v), and some of its audible columns (m, v)."""
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), SAMPLE_FILES)).astype(int)]
    state: dict[int, PieceMeans] = {}
    columns: dict[int, list[FloatArray]] = {}
    means: dict[int, FloatArray] = {}
    with FileStream(chosen, threads, None, model.config.sample_rate) as stream:
        for segment, vectors, audible in column_vectors(model, stream.recordings(), layer, level, batch, stream.failed):
            i = segment.recording
            of_file = state.setdefault(i, PieceMeans())
            if len(vectors):
                of_file.add(vectors, audible)
            kept = columns.setdefault(i, [])
            room = COLUMNS_EACH - sum(map(len, kept))
            sounding = vectors[audible > 0]
            kept.append(sounding[:: max(1, len(sounding) // COLUMNS_EACH)][:room].copy())
            if segment.last:
                means[i] = state.pop(i).finish()[0]
    numbers = [i for i in sorted(means) if means[i].any()]
    width = model.config.grid[0] * model.config.width
    pieces = np.stack([means[i] for i in numbers]) if numbers else np.zeros((0, width), np.float32)
    parts = [part for i in numbers for part in columns[i]]
    return pieces, np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
