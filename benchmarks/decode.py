"""Decoding speed: 10 s crops a second, by threads and by processes, and the loader with and without its cache.

    python benchmarks/decode.py FOLDER [--crops 200] [--workers 1 2]

FOLDER is searched for audio files. Every way reads the same crops; the first pass warms the disk cache, untimed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

from ssamba.data.audio import read_audio
from ssamba.data.dataset import CropLoader
from ssamba.data.manifest import read_sources
from ssamba.data.sampling import CropSpec, PretrainPlan
from ssamba.data.scan import scan_sources

BATCH = 20


def decode(spec: CropSpec) -> int:
    return len(read_audio(spec.path, start=spec.start, seconds=spec.seconds))


def decode_and_return(spec: CropSpec) -> object:
    return read_audio(spec.path, start=spec.start, seconds=spec.seconds)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def with_pool(pool: Executor, specs: Sequence[CropSpec]) -> float:
    """Crops a second of a pool that has started its workers; the waveforms come back to the caller."""
    with pool:
        list(pool.map(decode, specs[:8]))
        return len(specs) / timed(lambda: list(pool.map(decode_and_return, specs, chunksize=4)))


def loader_rate(plan: PretrainPlan, steps: int, workers: int, cache_bytes: int) -> float:
    """Crops a second of the loader's second pass over the same steps (its first fills the cache)."""
    loader = CropLoader(plan, workers, stop_step=steps, cache_bytes=cache_bytes)
    for _ in loader:
        pass
    return steps * BATCH / timed(lambda: [batch.step for batch in loader])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--crops", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    begin = time.perf_counter()
    sources = scan_sources(read_sources([options.folder]))
    clips = sources[0].clips
    print(f"{len(clips)} files scanned in {time.perf_counter() - begin:.2f} s, {os.cpu_count()} cores")
    plan = PretrainPlan(sources, batch_size=BATCH, crop_seconds=options.seconds)
    steps = max(1, options.crops // BATCH)
    specs = [spec for step in range(steps) for spec in plan.batch(step)]
    list(map(decode, specs))
    print(f"crops of {options.seconds:g} s a second over {len(specs)} crops")
    print(f"  caller alone        {len(specs) / timed(lambda: list(map(decode_and_return, specs))):7.1f}")
    for workers in options.workers:
        print(f"  {workers} thread(s)         {with_pool(ThreadPoolExecutor(workers), specs):7.1f}")
    for workers in options.workers:
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        print(f"  {workers} process(es)       {with_pool(pool, specs):7.1f}")
    for workers in options.workers:
        for cache in (0, 2 << 30):
            rate = loader_rate(plan, steps, workers, cache)
            print(f"  loader, {workers} thread(s), {'cache' if cache else 'no cache':8s} {rate:7.1f}")


if __name__ == "__main__":
    main()
