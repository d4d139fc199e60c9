"""The library of approximate search, faiss; no other module imports it, and none of its file formats is used."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import torch

from ssamba.inference.search.arrays import CountArray, FloatArray, HalfArray
from ssamba.inference.search.nearest import Nearest
from ssamba.utils.errors import SsambaError

TRAINING_ROUNDS = 10
"""Rounds of k-means."""
TRAINING_PIECES = 64
"""Pieces for each list that k-means looks at."""
LISTS_PER_ROOT = 4
"""Lists for each unit of the square root of the number of pieces."""
KMEANS_SEED = 0
INSTALL = "pip install 'ssamba[search]'"


def is_installed() -> bool:
    """Whether the library can be imported."""
    return importlib.util.find_spec("faiss") is not None


def require_library(place: str, otherwise: str) -> None:
    """Raises ``SsambaError`` when the library is missing: ``place`` needs it, ``otherwise`` does without."""
    if not is_installed():
        raise SsambaError(f"{place}: approximate search takes the package faiss: {INSTALL}, or {otherwise}")


def _faiss() -> Any:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def list_count(pieces: int) -> int:
    """How many lists that many pieces get."""
    return max(1, round(LISTS_PER_ROOT * math.sqrt(pieces)))


def train_centres(sample: FloatArray, lists: int) -> FloatArray:
    """The centres (lists, k) of spherical k-means on vectors (n, k) of length 1, n >= lists; the seed is fixed."""
    faiss = _faiss()
    kmeans = faiss.Kmeans(
        sample.shape[1],
        lists,
        niter=TRAINING_ROUNDS,
        spherical=True,
        seed=KMEANS_SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample),
    )
    kmeans.train(np.ascontiguousarray(sample))
    return np.array(kmeans.centroids, dtype=np.float32).reshape(lists, sample.shape[1])


class NeighbourLists:
    """Vectors in the lists of their nearest centres (lists, k), of which a query looks into the nearest few."""

    def __init__(self, centres: FloatArray) -> None:
        faiss = self._faiss = _faiss()
        lists, values = centres.shape
        self._centres = faiss.IndexFlatIP(values)
        self._centres.add(np.ascontiguousarray(centres))
        kind = faiss.ScalarQuantizer.QT_fp16  # the vectors as they are on disk
        metric = faiss.METRIC_INNER_PRODUCT
        self._lists = faiss.IndexIVFScalarQuantizer(self._centres, values, lists, kind, metric, False)
        self._lists.is_trained = True  # half floats have nothing to learn

    def lists_of(self, vectors: FloatArray, count: int) -> CountArray:
        """The numbers of the ``count`` nearest lists of each vector: (n, count), -1 where there are fewer."""
        return self._centres.search(np.ascontiguousarray(vectors), count)[1]

    def fill(self, number: int, ids: CountArray, vectors: HalfArray) -> None:
        """Put vectors (n, k) under ``ids`` (n,) into a list."""
        if len(ids):
            ids, codes = np.ascontiguousarray(ids), np.ascontiguousarray(vectors).view(np.uint8)
            pointer = self._faiss.swig_ptr
            self._lists.invlists.add_entries(number, len(ids), pointer(ids), pointer(codes))
            self._lists.ntotal += len(ids)

    def nearest(self, queries: FloatArray, top: int, probes: int) -> Nearest:
        """The ``top`` vectors of the ``probes`` nearest lists of each query (q, k), as ``nearest_rows`` gives them."""
        self._lists.nprobe = probes
        score, row = self._lists.search(np.ascontiguousarray(queries), top)
        return Nearest(np.where(row < 0, -np.inf, score).astype(np.float32), row)
