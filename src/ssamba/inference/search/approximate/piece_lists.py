"""The approximate lists of an index: made from its pieces, kept in a tensor file, read with checks.

The file holds the centres and, list after list, the numbers of the pieces in them; the vectors stay where they are, in
the blocks. ``index.json`` has its size and digest and names the blocks that it covers. A search fills the lists that it
looks into from the mapped blocks; pieces of newer blocks are compared one by one, so answers never miss what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ssamba.inference.search import store
from ssamba.inference.search.approximate.library import TRAINING_PIECES, NeighbourLists, list_count, train_centres
from ssamba.inference.search.arrays import CountArray, FloatArray
from ssamba.inference.search.nearest import Nearest
from ssamba.inference.search.store import ApproximateInfo, IndexHeader, StoredBlock
from ssamba.utils.errors import DataError
from ssamba.utils.tensor_file import DIGEST, digest_of, read_tensors, write_tensors

PROBES = 64
"""Lists that a search looks into."""
CHUNK_PIECES = 1 << 16
"""Pieces that are read at a time."""
QUERIES_AT_ONCE = 4096
TEXTS = {"format": "pt"}
"""Metadata of the file."""
SHARE_OUT_OF_STEP = 0.1
"""Share of an index's pieces that the lists may lack, or hold in vain, before an update makes them anew."""


def make_lists(folder: Path, blocks: Sequence[StoredBlock]) -> ApproximateInfo | None:
    """Make the lists of all pieces of ``blocks`` and write them; None when there are no pieces.

    Raises ``DataError`` for damaged vectors, ``SsambaError`` when the file cannot be written.
    """
    pieces = _Pieces(folder, blocks)
    if not pieces.total:
        return None
    lists = list_count(pieces.total)
    chosen = np.random.default_rng(0).permutation(pieces.total)[: TRAINING_PIECES * lists]
    centres = train_centres(pieces.read(np.sort(chosen)), min(lists, len(chosen)))
    finder = NeighbourLists(centres)
    numbers = np.concatenate(
        [
            finder.lists_of(pieces.read(np.arange(low, min(low + CHUNK_PIECES, pieces.total))), 1)[:, 0]
            for low in range(0, pieces.total, CHUNK_PIECES)
        ]
    )
    tensors = {
        "centres": torch.from_numpy(centres),
        "rows": torch.from_numpy(np.argsort(numbers, kind="stable")),
        "sizes": torch.from_numpy(np.bincount(numbers, minlength=len(centres))),
    }
    covered = tuple((block.info.name, block.info.pieces) for block in blocks)
    info = ApproximateInfo(digest_of(tensors, TEXTS), 0, len(centres), covered)
    path = folder / info.file_name
    write_tensors(path, tensors, TEXTS)
    return replace(info, size=path.stat().st_size)


def out_of_step(header: IndexHeader) -> bool:
    """Whether an index has lists that lack too many of its pieces, or hold too many that are gone."""
    if header.approximate is None:
        return False
    now, then = {b.name: b.pieces for b in header.blocks}, dict(header.approximate.blocks)
    total = sum(now.values())
    lacking = sum(pieces for name, pieces in now.items() if name not in then)
    gone = sum(pieces for name, pieces in then.items() if name not in now)
    return lacking + gone > SHARE_OUT_OF_STEP * total


class PieceLists:
    """The lists of an index, opened: the nearest pieces of queries among those of the blocks that they cover.

    Pieces are numbered as those of ``blocks`` one behind the other. Raises ``DataError`` for a file that is not the one
    that ``index.json`` names, or whose numbers do not fit the blocks.
    """

    def __init__(self, folder: Path, header: IndexHeader, info: ApproximateInfo, blocks: Sequence[StoredBlock]) -> None:
        self._path = folder / info.file_name
        centres, self._rows, sizes = _read(self._path, info, header.piece_values)
        self._ends = np.cumsum([0, *sizes], dtype=np.int64)
        self._pieces = _Pieces(folder, blocks)
        self._number = self._numbers(info, blocks)
        self._lists = NeighbourLists(centres)
        self._filled = np.zeros(len(centres), bool)
        covered = dict(info.blocks)
        self.others = [n for n, block in enumerate(blocks) if block.info.name not in covered]
        """Numbers of the blocks that are not covered."""

    def _numbers(self, info: ApproximateInfo, blocks: Sequence[StoredBlock]) -> CountArray:
        """The number of each of the file's pieces among those of ``blocks``; -1 for those of blocks that are gone."""
        first = {b.info.name: int(start) for b, start in zip(blocks, self._pieces.first, strict=False)}
        held = {b.info.name: b.info.pieces for b in blocks}
        if any(n != held.get(name, n) for name, n in info.blocks):
            raise DataError(f"{self._path}: does not hold the lists of these blocks; {_AGAIN}")
        parts = [np.arange(n) + first[name] if name in first else np.full(n, -1) for name, n in info.blocks]
        return np.concatenate(parts)

    def nearest(self, queries: FloatArray, top: int, probes: int = PROBES) -> Nearest:
        """The ``top`` nearest pieces of each query (q, k) in its ``probes`` nearest lists."""
        probes = min(probes, len(self._filled))
        parts = []
        for low in range(0, len(queries), QUERIES_AT_ONCE):
            part = np.asarray(queries[low : low + QUERIES_AT_ONCE], dtype=np.float32)
            self._fill(np.unique(self._lists.lists_of(part, probes)))
            parts.append(self._lists.nearest(part, top, probes))
        return Nearest(np.concatenate([p.score for p in parts]), np.concatenate([p.row for p in parts]))

    def _fill(self, numbers: CountArray) -> None:
        """Read the vectors of lists that are looked into for the first time."""
        missing = numbers[(numbers >= 0) & ~self._filled[numbers]]
        while len(missing):
            sizes = self._ends[missing + 1] - self._ends[missing]
            count = max(1, int(np.searchsorted(np.cumsum(sizes), CHUNK_PIECES)))
            now, missing = missing[:count], missing[count:]
            rows = [self._number[self._rows[self._ends[n] : self._ends[n + 1]]] for n in now]
            rows = [part[part >= 0] for part in rows]
            vectors = self._pieces.read(np.concatenate(rows)).astype(np.float16)
            ends = np.cumsum([0, *map(len, rows)])
            for i, n in enumerate(now.tolist()):
                self._lists.fill(n, rows[i], vectors[ends[i] : ends[i + 1]])
            self._filled[now] = True


def _read(path: Path, info: ApproximateInfo, values: int) -> tuple[FloatArray, CountArray, CountArray]:
    """Centres, pieces and sizes of the lists, checked."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None
    if size != info.size:
        raise DataError(f"{path}: has {size:,} bytes, {store.INDEX_FILE} says {info.size:,}; {_AGAIN}")
    tensors, metadata = read_tensors(path, DataError, digest_required=True)
    if metadata[DIGEST] != info.digest:
        raise DataError(f"{path}: is not the one that {store.INDEX_FILE} names (SHA-256); {_AGAIN}")
    pieces = sum(n for _, n in info.blocks)
    wanted = {
        "centres": (torch.float32, (info.lists, values)),
        "rows": (torch.int64, (pieces,)),
        "sizes": (torch.int64, (info.lists,)),
    }
    if {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} != wanted:
        raise DataError(f"{path}: does not hold the lists that {store.INDEX_FILE} says; {_AGAIN}")
    centres, rows, sizes = (tensors[name].numpy() for name in wanted)
    in_range = bool(((rows >= 0) & (rows < pieces)).all() and ((sizes >= 0) & (sizes <= pieces)).all())
    if not in_range or sizes.sum() != pieces or (np.bincount(rows, minlength=pieces) != 1).any():
        raise DataError(f"{path}: its lists do not hold each piece once; {_AGAIN}")
    return store.checked(centres, path), rows, sizes


_AGAIN = "make them again with ssamba index --approximate"


class _Pieces:
    """The pieces of blocks one behind the other, on disk."""

    def __init__(self, folder: Path, blocks: Sequence[StoredBlock]) -> None:
        self._folder, self._blocks = folder, blocks
        self.first = np.cumsum([0, *(block.info.pieces for block in blocks)], dtype=np.int64)
        self.total = int(self.first[-1])

    def read(self, rows: CountArray) -> FloatArray:
        """The vectors of pieces (n,) in any order: (n, k) in float32, checked."""
        values = self._blocks[0].pieces.shape[1]
        out = np.empty((len(rows), values), np.float32)
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], self.first)
        for n, block in enumerate(self._blocks):
            here = order[ends[n] : ends[n + 1]]
            if len(here):
                vectors = block.pieces[rows[here] - self.first[n]]
                out[here] = store.checked(vectors, self._folder / block.info.name)
        return out
