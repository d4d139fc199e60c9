"""Exact nearest vectors by a matrix product, block after block, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ssamba.inference.search.arrays import CountArray, FloatArray

QUERIES_TOGETHER = 256


class Nearest(NamedTuple):
    """For each query its nearest rows, best first: (q, top) inner products and numbers, -1 where there are fewer."""

    score: FloatArray
    row: CountArray


def nearest_rows(queries: FloatArray, blocks: Iterable[npt.NDArray[np.floating]], top: int) -> Nearest:
    """The ``top`` rows with the largest inner product with each of ``queries`` (q, k).

    ``blocks`` are (rows, k) arrays, of any kind of float and of a size that fits into memory; rows are numbered
    throughout. Exact up to rounding in float32.
    """
    queries = np.asarray(queries, dtype=np.float32)
    score = np.full((len(queries), 0), -np.inf, np.float32)
    index = np.zeros((len(queries), 0), np.int64)
    first = 0
    for block in blocks:
        rows = np.asarray(block, dtype=np.float32)
        parts = [
            _best_of(queries[q : q + QUERIES_TOGETHER] @ rows.T, top) for q in range(0, len(queries), QUERIES_TOGETHER)
        ]
        score = np.concatenate([score, *[np.concatenate([p.score for p in parts])]], axis=1)
        index = np.concatenate([index, np.concatenate([p.row for p in parts]) + first], axis=1)
        order = np.argsort(-score, axis=1, kind="stable")[:, :top]
        score, index = np.take_along_axis(score, order, 1), np.take_along_axis(index, order, 1)
        first += len(rows)
    missing = top - score.shape[1]
    if missing > 0:
        score = np.pad(score, ((0, 0), (0, missing)), constant_values=-np.inf)
        index = np.pad(index, ((0, 0), (0, missing)), constant_values=-1)
    return Nearest(score, index)


def _best_of(products: FloatArray, top: int) -> Nearest:
    if products.shape[1] <= top:
        return Nearest(products, np.broadcast_to(np.arange(products.shape[1]), products.shape))
    # A copy: a view would keep the numbers of all rows in memory, for every part of the queries.
    index = np.argpartition(-products, top - 1, axis=1)[:, :top].copy()
    return Nearest(np.take_along_axis(products, index, 1), index)
