"""Tiny in four forms, free or tied decays with scans in both directions or alternating ones: pretrain, then probe.

    python experiments/decay_forms.py OUT LISTS ESC10 ARABIC [--gpus 4] [--steps 11400] [--seed 0] [--options ...]

LISTS is the folder of words.csv, speech.csv, effects.csv and music.csv (tools/corpus/tiny_data.py). Each form is
trained on one GPU, ``--gpus`` at a time, with the data and the options of the package's tiny (docs/models/tiny.md) at
equal steps, then scored on training data by experiments/dev_probe.py; started again, it goes on where it was. Prints
each command, then a table with the minutes that training took. ``--dry-run`` prints the commands alone. ``--options``
are added to those of pretraining and override them: ``--options "--device cpu --width 16 --depth 2"`` for a trial.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import queue
import shlex
import subprocess
import sys
import time
from pathlib import Path

SHARES = {"words": 0.25, "speech": 0.25, "effects": 0.38, "music": 0.12}
OPTIONS = """--size tiny --batch 256 --frames 208 --mask 56 --residual-scale 1 --lr 1e-3 --ema 0.999 --drop-path 0
--statistics measure --short-clips repeat --keep last --validate-every 1000 --warmup-steps 500 --warmup-every 1
--log-every 50 --latent 5 --views 2 --contrast 2 --workers 14 --schedule cosine
--mix 0.5 --gain-db 6 --response-db 3 --speed 1.3 --reverb 0.5"""
FORMS = [(decay, scan) for decay in ("free", "tied") for scan in ("both", "alternating")]
MINUTES_FILE = "minutes.json"
"""In a run, beside what `ssamba pretrain` writes: the minutes of each start."""
here = Path(__file__).parent


def pretraining(a: argparse.Namespace, decay: str, scan: str) -> list[str]:
    """The command line of one form's run."""
    lists = [f"{a.lists / name}.csv={share}" for name, share in SHARES.items()]
    form = ["--decay", decay, "--scan", scan, "--steps", str(a.steps), "--seed", str(a.seed)]
    out = ["--out", str(a.out / f"{decay}-{scan}")]
    return [sys.executable, "-m", "ssamba", "pretrain", *lists, *out, *shlex.split(OPTIONS), *form, *a.options]


def probe(a: argparse.Namespace) -> list[str]:
    """The command line that scores all runs."""
    runs = [str(a.out / f"{decay}-{scan}") for decay, scan in FORMS]
    return [sys.executable, str(here / "dev_probe.py"), str(a.esc10), str(a.arabic), *runs, "--device", a.probe_device]


def train(a: argparse.Namespace, form: tuple[str, str], gpus: queue.Queue[int]) -> None:
    """One run on the first free GPU, its output in a file beside it. Raises CalledProcessError for one that fails."""
    command, name, gpu = pretraining(a, *form), "-".join(form), gpus.get()
    print(f"CUDA_VISIBLE_DEVICES={gpu} {shlex.join(command)}", flush=True)
    begin = time.perf_counter()
    try:
        with open(a.out / f"{name}.txt", "a") as log:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
            subprocess.run(command, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
    finally:
        gpus.put(gpu)
    path = a.out / name / MINUTES_FILE
    minutes = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*minutes, (time.perf_counter() - begin) / 60]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("out", "lists", "esc10", "arabic"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--gpus", type=int, default=4, help="runs at a time, on GPUs 0, 1, ...")
    parser.add_argument("--steps", type=int, default=11400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=shlex.split, default=[], metavar="TEXT")
    parser.add_argument("--probe-device", default="auto")
    parser.add_argument("--dry-run", action="store_true")
    a = parser.parse_args()
    if a.dry_run:
        print("\n".join(shlex.join(c) for c in (*(pretraining(a, *form) for form in FORMS), probe(a))))
        return
    a.out.mkdir(parents=True, exist_ok=True)
    gpus: queue.Queue[int] = queue.Queue()
    for gpu in range(a.gpus):
        gpus.put(gpu)
    with concurrent.futures.ThreadPoolExecutor(a.gpus) as pool:
        for done in [pool.submit(train, a, form, gpus) for form in FORMS]:
            done.result()
    print(shlex.join(probe(a)), flush=True)
    print(subprocess.run(probe(a), check=True, capture_output=True, text=True).stdout)
    print("| decays | scans | minutes of the machine, with starting |\n|---|---|---|")
    for decay, scan in FORMS:
        minutes = json.loads((a.out / f"{decay}-{scan}" / MINUTES_FILE).read_text())
        print(f"| {decay} | {scan} | {' + '.join(f'{m:.1f}' for m in minutes)} |")


if __name__ == "__main__":
    main()
