"""Time, memory and recall of the approximate search in an index that is made large from the vectors of a real one.

OMP_NUM_THREADS=1 python benchmarks/search_approximate.py INDEX WORK [--pieces 1000000] [--probes 16 64 256] [--random]

INDEX is what ``ssamba index`` made of real recordings. Recordings of 1 s with one piece each are written to WORK: a
piece is a mixture, of random shares, of two real pieces, with noise of the real pieces' covariance added, brought to
length 1. Queries are pieces of WORK with such noise, with a mean cosine of 0.9 to where they come from. Seconds are
processor time.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

import ssamba
from ssamba.inference.search import store
from ssamba.inference.search.approximate.piece_lists import PieceLists, make_lists
from ssamba.inference.search.nearest import nearest_rows

RECORDING_COLUMNS, BLOCK_RECORDINGS = 6, 1024
QUERIES, CANDIDATES, PAIR_CANDIDATES = 256, 100, 31
Vectors = npt.NDArray[np.float32]


def unit(rows: Vectors) -> Vectors:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class Pieces:
    """Made-up pieces with the spread of real ones."""

    def __init__(self, real: Vectors) -> None:
        self.real, self.rng = real, np.random.default_rng(0)
        centred = real - real.mean(axis=0)
        self._directions = np.linalg.svd(centred, full_matrices=False)
        self.scale = self._directions[1] / np.sqrt(len(real))

    def noise(self, count: int, length: float) -> Vectors:
        made = self.rng.standard_normal((count, len(self.scale)), dtype=np.float32) * self.scale @ self._directions[2]
        return (made * (length / np.sqrt((self.scale**2).sum()))).astype(np.float32)

    def make(self, count: int) -> Vectors:
        first, second = (self.real[self.rng.integers(0, len(self.real), count)] for _ in range(2))
        share = self.rng.uniform(0, 1, (count, 1)).astype(np.float32)
        return unit(unit(share * first + (1 - share) * second) + self.noise(count, 0.7))

    def like(self, rows: Vectors) -> Vectors:
        return unit(rows + self.noise(len(rows), np.sqrt(0.9**-2 - 1)))


def enlarge(index: ssamba.Index, out: Path, total: int, random: bool) -> None:
    """An index of ``total`` made-up recordings, in the space of a real one; ``random``: of pieces like no others."""
    real = np.concatenate([r.pieces for r in index.recordings()])
    real = real[real.any(axis=1)]
    print(f"{len(real)} real pieces")
    pieces, rng, blocks = Pieces(real), np.random.default_rng(1), []
    out.mkdir(parents=True)
    shutil.copy(index.folder / store.SPACE_FILE, out)
    for low in range(0, total, BLOCK_RECORDINGS):
        count = min(BLOCK_RECORDINGS, total - low)
        made = unit(rng.standard_normal((count, real.shape[1]), dtype=np.float32)) if random else pieces.make(count)
        made = made.astype(np.float16)
        values = (count * RECORDING_COLUMNS, index.header.column_values)
        columns = unit(rng.standard_normal(values, dtype=np.float32)).astype(np.float16)
        entries = [store.FileEntry(f"/none/{low + i}.wav", 1, 1, 1.0, RECORDING_COLUMNS) for i in range(count)]
        blocks.append(store.write_block(out, entries, list(made[:, None]), np.split(columns, count)))
    store.write_header(out, replace(index.header, blocks=tuple(blocks), relative=False, approximate=None))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(what: str, start: float) -> float:
    seconds = time.process_time() - start
    print(f"{what}: {seconds:.2f} s, peak {peak():.0f} MiB", flush=True)
    return seconds


def share_found(found: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> float:
    return float(np.mean([len(set(f) & set(w)) / len(w) for f, w in zip(found.tolist(), wanted.tolist(), strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pieces", type=int, default=1_000_000)
    parser.add_argument("--random", action="store_true", help="independent random pieces, the hardest case")
    parser.add_argument("--probes", type=int, nargs="+", default=[16, 64, 256])
    given = parser.parse_args()
    if not store.is_index(given.work):
        enlarge(ssamba.Index(given.index), given.work, given.pieces, given.random)
    start = time.process_time()
    big = ssamba.Index(given.work)
    timed("open the index", start)
    if big.header.approximate is None:
        start = time.process_time()
        info = make_lists(given.work, big._blocks)
        timed("make the lists", start)
        store.write_header(given.work, replace(big.header, approximate=info))
        big = ssamba.Index(given.work)
    info = big.header.approximate
    assert info is not None
    print(f"{info.lists} lists, file of {info.size / 2**20:.1f} MiB")
    measure(big, info, given.probes)


def measure(big: ssamba.Index, info: store.ApproximateInfo, probes: list[int]) -> None:
    """Exact and approximate search with the same queries."""
    rng = np.random.default_rng(2)
    rows = np.concatenate([np.asarray(block.pieces, np.float32) for block in big._blocks[:64]])
    source = rng.permutation(len(rows))[:QUERIES]
    queries = Pieces(rows[:20000]).like(rows[source])
    print(f"mean cosine of queries and sources {np.mean((queries * rows[source]).sum(axis=1)):.3f}")
    every = range(len(big._blocks))
    start = time.process_time()
    nearest_rows(queries[:1], big._piece_chunks(every), CANDIDATES)
    timed("exact, one query", start)
    start = time.process_time()
    exact = nearest_rows(queries, big._piece_chunks(every), CANDIDATES).row
    timed(f"exact, {QUERIES} queries", start)
    start = time.process_time()
    lists = PieceLists(big.folder, big.header, info, big._blocks)
    timed("open the lists", start)
    for count in probes:
        lists = PieceLists(big.folder, big.header, info, big._blocks)
        start = time.process_time()
        lists.nearest(queries[:1], CANDIDATES, count)
        first = time.process_time() - start
        lists.nearest(queries, CANDIDATES, count)
        start = time.process_time()
        found = lists.nearest(queries, CANDIDATES, count).row
        each = (time.process_time() - start) / QUERIES
        print(
            f"| {count} lists | first query {first:.3f} s | each of {QUERIES} {1000 * each:.2f} ms | recall of 100 "
            f"{100 * share_found(found, exact):.1f} % | of 31 "
            f"{100 * share_found(found[:, :PAIR_CANDIDATES], exact[:, :PAIR_CANDIDATES]):.1f} % | of 1 "
            f"{100 * share_found(found[:, :1], exact[:, :1]):.1f} % | source among 100 "
            f"{100 * share_found(found, source[:, None]):.1f} % "
            f"(exact {100 * share_found(exact, source[:, None]):.1f}) | peak {peak():.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
