"""Near-duplicates of a collection: candidates by their pieces, pairs by matching their columns in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssamba.inference.search.arrays import FloatArray, HalfArray
from ssamba.inference.search.match import best_offsets
from ssamba.inference.search.nearest import Nearest, nearest_rows
from ssamba.inference.search.store import checked

PAIR_CANDIDATES = 30
"""Nearest pieces of each piece whose recordings are aligned with its own."""


class IndexedRecording(NamedTuple):
    """A recording of an index: path, seconds, vectors of its columns (n, c), on disk, and of its pieces (p, k)."""

    path: str
    seconds: float
    columns: HalfArray
    pieces: FloatArray


class Pair(NamedTuple):
    """Two recordings with the same sound: what is at second 0 of ``second`` is at ``offset`` of ``first``."""

    first: str
    second: str
    score: float
    offset: float


def find_pairs(
    recordings: Sequence[IndexedRecording],
    threshold: float,
    column_seconds: float,
    nearest: Callable[[FloatArray, int], Nearest] | None = None,
) -> list[Pair]:
    """Pairs with a score from ``threshold`` on, best first.

    ``nearest`` gives, for queries and how many are wanted, the nearest of all pieces of ``recordings``, numbered one
    behind the other, -1 for none; None compares all.
    """
    pairs = []
    for i, others in _candidates(recordings, nearest).items():
        chosen = sorted(others)
        columns = [checked(recordings[j].columns, Path(recordings[j].path)) for j in chosen]
        first = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
        best = best_offsets(checked(recordings[i].columns, Path(recordings[i].path)), np.concatenate(columns), first)
        for j, score, offset in zip(chosen, best.score.tolist(), best.offset.tolist(), strict=True):
            if score >= threshold:
                # The offset is that of i in j; the pair says where j begins in i.
                pairs.append(Pair(recordings[i].path, recordings[j].path, score, -offset * column_seconds))
    return sorted(pairs, key=lambda pair: (-pair.score, pair.first, pair.second))


def _candidates(
    recordings: Sequence[IndexedRecording], nearest: Callable[[FloatArray, int], Nearest] | None
) -> dict[int, set[int]]:
    """For recordings by number, those of higher numbers that may hold the same sound."""
    owner = np.repeat(np.arange(len(recordings)), [len(r.pieces) for r in recordings])
    pieces = np.concatenate([r.pieces for r in recordings])
    audible = pieces.any(axis=1)
    asking, queries = owner[audible], pieces[audible]
    found: dict[int, set[int]] = {}
    if not len(queries):
        return found
    if nearest is None:
        owner, rows = asking, nearest_rows(queries, _parts(queries), PAIR_CANDIDATES + 1).row
    else:
        rows = nearest(queries, PAIR_CANDIDATES + 1).row
    for i, row in zip(asking.tolist(), rows.tolist(), strict=True):
        for j in {int(owner[r]) for r in row if r >= 0} - {i}:
            found.setdefault(min(i, j), set()).add(max(i, j))
    return found


def _parts(rows: np.ndarray, size: int = 1 << 15) -> Iterable[np.ndarray]:
    return (rows[low : low + size] for low in range(0, len(rows), size))


def groups(pairs: Iterable[Pair]) -> list[list[str]]:
    """Recordings that are linked by pairs, each group sorted, the largest first."""
    of: dict[str, set[str]] = {}
    for pair in pairs:
        joined = of.get(pair.first, {pair.first}) | of.get(pair.second, {pair.second})
        for path in joined:
            of[path] = joined
    unique = {id(group): group for group in of.values()}
    return sorted((sorted(group) for group in unique.values()), key=lambda group: (-len(group), group))
