"""Decoding speed of the pretraining loader: clips of 10.24 s a second, by threads and by processes.

    python benchmarks/decode.py FOLDER [--workers 1 2 4] [--seconds 5] [--files 150] [--cache] [--busy]

FOLDER's audio files are decoded as they are and as FLAC copies made first, each crop anew. A number is the mean over
--seconds, of batches of 64 crops, once the first batch is there; how long that took stands behind it in brackets. The
files are read once before, so that they come from memory. With --busy another thread of the program runs Python all the
while, as a training loop does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from itertools import repeat
from pathlib import Path

import soundfile

from ssamba.data.loaders import workers as decoding
from ssamba.data.loaders.pretraining import CropLoader
from ssamba.data.manifest import read_sources
from ssamba.data.samplers.pretraining import PretrainPlan
from ssamba.data.scan import scan_sources

BATCH, CROP = 64, 10.24
NEVER = 10**9


def flac_copies(folder: Path, copies: Path, most: int) -> None:
    """FLAC of the folder's first files."""
    for i, path in enumerate(sorted(p for p in folder.rglob("*") if p.suffix in (".opus", ".ogg"))[:most]):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(copies / f"{i}.flac", samples, rate)


def rate(
    plan: PretrainPlan, workers: int, processes: bool, seconds: float, cache_bytes: int = 0
) -> tuple[float, float]:
    """Clips a second, and seconds to the first batch."""
    decoding.PROCESSES_FROM = 1 if processes else NEVER
    loader = CropLoader(plan, workers, cache_bytes=cache_bytes)
    if cache_bytes:
        loader.stop_step = plan.steps_per_epoch
        for _ in loader:
            pass
        loader.stop_step = None
    begin = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - begin
    begin, clips = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        clips += len(next(batches).lengths)
    taken = time.perf_counter() - begin
    batches.close()  # type: ignore[attr-defined]
    return clips / taken, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--files", type=int, default=150, help="most FLAC copies")
    parser.add_argument("--cache", action="store_true", help="also measure with all audio in the loader's cache")
    parser.add_argument("--busy", action="store_true", help="run Python in another thread meanwhile")
    options = parser.parse_args()
    if options.busy:
        threading.Thread(target=lambda: all(True for _ in repeat(None)), daemon=True).start()
    print(f"{os.cpu_count()} cores; clips of {CROP} s a second (seconds to the first batch)\n")
    heads = ["files", "workers", "threads", "processes", *(["processes, cached"] if options.cache else [])]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as name:
        flac_copies(options.folder, Path(name), options.files)
        for kind, folder in (("as they are", options.folder), ("FLAC", Path(name))):
            plan = PretrainPlan(scan_sources(read_sources([str(folder)])), BATCH, crop_seconds=CROP)
            for path in {clip.path for clip in plan.clips}:
                Path(path).read_bytes()
            for workers in options.workers:
                cells = [rate(plan, workers, processes, options.seconds) for processes in (False, True)]
                if options.cache:
                    cells.append(rate(plan, workers, True, options.seconds, 4 << 30))
                text = " | ".join(f"{speed:,.0f} ({first:.2f})" for speed, first in cells)
                print(f"| {kind} | {workers} | {text} |", flush=True)


if __name__ == "__main__":
    main()
