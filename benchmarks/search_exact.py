"""Time and memory of the exact search among random vectors on disk, in mapped blocks.

OMP_NUM_THREADS=2 python benchmarks/search_exact.py [--rows 1000000] [--values 192] [--queries 1 32]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from ssamba.inference.search.nearest import nearest_rows

BLOCK_ROWS = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--values", type=int, default=192)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 32])
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        rows = np.lib.format.open_memmap(path, mode="w+", dtype="<f2", shape=(given.rows, given.values))
        for low in range(0, given.rows, BLOCK_ROWS):
            part = rng.standard_normal((min(BLOCK_ROWS, given.rows - low), given.values), dtype=np.float32)
            rows[low : low + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
        del rows
        mapped = np.load(path, mmap_mode="r")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print("| rows | values | queries | seconds | peak of the process, MiB (before) |\n|---|---|---|---|---|")
        for count in given.queries:
            queries = mapped[:count].astype(np.float32)
            begin = time.perf_counter()
            blocks = (mapped[low : low + BLOCK_ROWS] for low in range(0, given.rows, BLOCK_ROWS))
            found = nearest_rows(queries, blocks, 10)
            seconds = time.perf_counter() - begin
            assert (found.row[:, 0] == np.arange(count)).all()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(
                f"| {given.rows} | {given.values} | {count} | {seconds:.2f} | {peak / 1024:.0f} ({before / 1024:.0f}) |"
            )


if __name__ == "__main__":
    main()
