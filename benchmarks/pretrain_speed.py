"""Pretraining from files on one GPU: clips a second end to end, and the share of the time that the GPU waits for them.

    PYTHONPATH=src python benchmarks/pretrain_speed.py AUDIO_FOLDER [--sizes tiny small base] [--workers 16]
        [--ways threads processes]

Decodes every crop anew (no cache) from the folder's files as they are, and again from FLAC copies of them made first.
Each line is two timings of the training loop's own step, batch 64 of 10.24 s, mask 400, one pass, bf16: with batches
from the loader, and with one batch that stays in memory. What the first takes more is waiting. --dry-run goes the same
way on the CPU, with a model and a batch so small that the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, product, repeat
from pathlib import Path
from typing import Any

import soundfile
import torch

from ssamba.data.loaders import workers as decoding
from ssamba.data.manifest import read_sources
from ssamba.data.scan import SkipList
from ssamba.training.loop import Loop
from ssamba.training.pretrain import run
from ssamba.training.pretrain import task as pretrain_task
from ssamba.training.pretrain.data import prepare_data
from ssamba.training.pretrain.model import build_model
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.task import PretrainTask

PAPER_CLIPS = 10 * 2_000_000
WARM_UP = 8
DRY = {"width": 16, "depth": 2, "frames": 64, "mask": 8, "batch": 2}
"""Recipe of a dry run."""
NEVER = 10**9


def flac_copies(folder: Path, copies: Path, most: int) -> None:
    """FLAC of the folder's first files."""
    for i, path in enumerate(sorted(p for p in folder.rglob("*") if p.suffix in (".opus", ".ogg"))[:most]):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(copies / f"{i}.flac", samples, rate)


def make_loop(data: Path, out: Path, values: dict[str, object], device: torch.device) -> Loop:
    """A training loop over a folder that never validates or saves."""
    never = {"steps": 10_000, "validate_every": 10_000, "log_every": 10_000, "save_minutes": 60.0}
    recipe = make_recipe(None, {**values, **never})
    prepared = prepare_data(read_sources([str(data)]), recipe, SkipList(out / "skipped.csv"))
    model = build_model(recipe, prepared).to(device).train()
    return run.make_loop(PretrainTask(recipe, model, prepared.plan, prepared.skip), out, model.device)


def wait() -> None:
    """Until the GPU, where there is one, has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_a_step(loop: Loop, batches: Iterator[Any], steps: int) -> float:
    for batch in islice(batches, WARM_UP):
        loop.one_step([batch])
    wait()
    begin = time.perf_counter()
    for batch in islice(batches, steps):
        loop.one_step([batch])
    wait()
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoders", nargs="+", default=["ssamba"])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40, help="timed steps")
    parser.add_argument("--files", type=int, default=200, help="most FLAC copies")
    parser.add_argument("--ways", nargs="+", default=["processes"], choices=["threads", "processes"])
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU")
    options = parser.parse_args()
    pretrain_task.CACHE_BYTES = 0
    device = torch.device("cpu" if options.dry_run else "cuda")
    name_of_device = "dry run" if options.dry_run else torch.cuda.get_device_name()
    print(f"{name_of_device}, torch {torch.__version__}, {options.workers} decoding workers\n")
    print("| encoder | files, decoded by | clips/s | without loading | GPU waits | hours for 20 M clips | GiB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        copies = Path(name) / "flac"
        copies.mkdir()
        flac_copies(options.folder, copies, options.files)
        for encoder in options.encoders:
            for size in options.sizes:
                files = (("Ogg Opus", options.folder), ("FLAC", copies))
                for way, (kind, data) in product(options.ways, files):
                    decoding.PROCESSES_FROM = 1 if way == "processes" else NEVER
                    if not options.dry_run:
                        torch.cuda.reset_peak_memory_stats()
                    out = Path(name) / f"{encoder}-{size}-{kind[0]}-{way}"
                    out.mkdir()
                    values = {"encoder": encoder, "size": size, "workers": options.workers}
                    loop = make_loop(data, out, values | (DRY if options.dry_run else {}), device)
                    task = loop.task
                    batches = task.batches(0)
                    first = next(batches)
                    loaded = seconds_a_step(loop, batches, options.steps)
                    batches.close()  # type: ignore[attr-defined]
                    alone = seconds_a_step(loop, repeat(first), options.steps)
                    rate = task.batch_size / loaded
                    memory = 0 if options.dry_run else torch.cuda.max_memory_allocated() / 2**30
                    print(
                        f"| {encoder} {size} | {kind}, {way} | {rate:,.0f} | {task.batch_size / alone:,.0f} | "
                        f"{max(0.0, 1 - alone / loaded):.0%} | {PAPER_CLIPS / rate / 3600:,.1f} | "
                        f"{memory:.1f} |",
                        flush=True,
                    )
                    del loop, task, batches, first


if __name__ == "__main__":
    main()
