"""Matching in time: where a stretch of one recording lies in another, by its columns' vectors.

The score at an offset is the sum of the cosines of columns that lie on each other, over the number of pairs that are
audible in both, or the least overlap where these are fewer: 1 for the same sound, near 0 for unlike ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssamba.inference.search.arrays import CountArray, FloatArray

SHARE_OF_SHORTER = 0.5
"""Of the audible columns of the shorter one, how many must lie on columns of the other for a full score."""
FEWEST_COLUMNS = 3
QUERY_COLUMNS = 64
"""Columns of the query that are multiplied at a time."""


class Best(NamedTuple):
    """For each recording the best score and its offset: how many columns after its begin the query begins."""

    score: FloatArray
    offset: FloatArray


def best_offsets(query: FloatArray, columns: FloatArray, first: CountArray) -> Best:
    """The best alignment of ``query`` (q, c) with each of several recordings, whose columns lie one behind the other.

    ``columns`` (m, c), ``first`` (files + 1,) their borders; no recording is empty. Vectors have the length 1, or 0
    where nothing is audible. Offsets are refined between columns by a parabola. Memory: some 64 m + q * files floats.
    """
    n, files = len(query), len(first) - 1
    counts = np.diff(first)
    # Recordings are moved apart by as many empty places as keep the diagonals of neighbours apart.
    place = np.arange(len(columns)) + np.repeat(np.arange(files), counts) * (n - 1)
    total = np.zeros(len(columns) + files * (n - 1), np.float32)
    weight = np.zeros_like(total)
    in_query = np.any(query != 0, axis=1).astype(np.float32)
    in_columns = np.any(columns != 0, axis=1).astype(np.float32)
    for begin in range(0, n, QUERY_COLUMNS):
        products = query[begin : begin + QUERY_COLUMNS] @ columns.T
        for t, row in enumerate(products, start=begin):
            if in_query[t]:
                total[place + (n - 1 - t)] += row
                weight[place + (n - 1 - t)] += in_columns
    audible = np.add.reduceat(in_columns, first[:-1])
    least = np.maximum(SHARE_OF_SHORTER * np.minimum(audible, in_query.sum()), min(FEWEST_COLUMNS, n))
    score = total / np.maximum(weight, np.repeat(least, counts + n - 1))
    return _best(score, first[:-1] + np.arange(files) * (n - 1), counts + n - 1, n)


def _best(score: FloatArray, begin: CountArray, lengths: CountArray, n: int) -> Best:
    """The largest of each recording's scores over all offsets, which begin at ``begin`` and are ``lengths``."""
    best = np.maximum.reduceat(score, begin)
    file = np.repeat(np.arange(len(begin)), lengths)
    hits = np.flatnonzero(score == best[file])
    at = hits[np.searchsorted(file[hits], np.arange(len(begin)))]
    left, right = score[np.maximum(at - 1, begin)], score[np.minimum(at + 1, begin + lengths - 1)]
    bend = left - 2 * best + right
    shift = np.where(bend < -1e-6, 0.5 * (left - right) / np.where(bend < -1e-6, bend, -1), 0)
    offset = at - begin - (n - 1) + np.clip(shift, -0.5, 0.5)
    return Best(best, offset.astype(np.float32))
