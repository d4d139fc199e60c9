"""Tiny in four forms, free or tied decays with scans in both directions or alternating ones: pretrain, then probe.

    python experiments/decay_forms.py OUT LISTS ESC10 ARABIC --gpus 0 1 2 3 [--steps 11400] [--runs free-both:1 ...]

LISTS is the folder of words.csv, speech.csv, effects.csv and music.csv (tools/corpus/tiny_data.py). Each run is
trained on one GPU, as many at a time as ``--gpus`` names, with the data and the options of the package's tiny
(docs/models/tiny.md; it is tied-alternating with 19,000 steps) at equal steps, then scored on training data by
experiments/dev_probe.py; started again, it goes on where it was. ``--runs`` are FORM or FORM:SEED, without it the
four forms with seed 0. ``--peer`` adds SSAST under ``torch.compile``, trained for the minutes of each of ``--like``
(runs of this call): a trial of some steps says how many steps that is.

Prints each command, then the probes and a table with the minutes that training took, by the log. ``--dry-run`` prints
the commands alone. ``--no-probe`` leaves the probes out. ``--options`` are added to those of pretraining and override
them: ``--options "--device cpu --width 16 --depth 2"`` for a trial.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import os
import queue
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SHARES = {"words": 0.25, "speech": 0.25, "effects": 0.38, "music": 0.12}
OPTIONS = """--size tiny --batch 256 --frames 208 --mask 56 --residual-scale 1 --lr 1e-3 --ema 0.999 --drop-path 0
--statistics measure --short-clips repeat --keep last --validate-every 1000 --warmup-steps 500 --warmup-every 1
--log-every 50 --latent 5 --views 2 --contrast 2 --workers 14 --schedule cosine
--mix 0.5 --gain-db 6 --response-db 3 --speed 1.3 --reverb 0.5"""
FORMS = {f"{decay}-{scan}": (decay, scan) for decay in ("free", "tied") for scan in ("both", "alternating")}
PEER = "ssast-compiled"
TRIAL_STEPS = 300
"""Of the peer, to find its rate: most of it is after the compiler's work."""
here = Path(__file__).parent


class Run(NamedTuple):
    """One pretraining. ``steps`` overrides ``--steps``; ``name`` is the folder's."""

    form: str
    seed: int = 0
    steps: int = 0
    suffix: str = ""

    @classmethod
    def read(cls, text: str) -> Run:
        form, _, seed = text.partition(":")
        if form not in FORMS:
            raise argparse.ArgumentTypeError(f"{text}: give FORM or FORM:SEED, with one of {', '.join(FORMS)}")
        return cls(form, int(seed or 0))

    @property
    def name(self) -> str:
        return self.form + (f"-seed{self.seed}" if self.seed else "") + self.suffix


def pretraining(a: argparse.Namespace, run: Run) -> list[str]:
    """The command line of one run."""
    lists = [f"{a.lists / name}.csv={share}" for name, share in SHARES.items()]
    options = shlex.split(OPTIONS)
    if run.form == PEER:
        at = options.index("--residual-scale")  # SSAMBA's
        del options[at : at + 2]
        form = ["--encoder", "ssast", "--compile"]
    else:
        form = ["--decay", FORMS[run.form][0], "--scan", FORMS[run.form][1]]
    form += ["--steps", str(run.steps or a.steps), "--seed", str(run.seed)]
    out = ["--out", str(a.out / run.name)]
    return [sys.executable, "-m", "ssamba", "pretrain", *lists, *out, *options, *form, *a.options]


def probe(a: argparse.Namespace, runs: list[Run]) -> list[str]:
    """The command line that scores all runs."""
    folders = [str(a.out / run.name) for run in runs]
    sets = [str(a.esc10), str(a.arabic)]
    return [sys.executable, str(here / "dev_probe.py"), *sets, *folders, "--device", a.probe_device]


def train(a: argparse.Namespace, run: Run, gpus: queue.Queue[int]) -> None:
    """One run on the first free GPU, its output in a file beside it. Raises CalledProcessError for one that fails."""
    command, gpu = pretraining(a, run), gpus.get()
    print(f"CUDA_VISIBLE_DEVICES={gpu} {shlex.join(command)}", flush=True)
    try:
        with open(a.out / f"{run.name}.txt", "a") as log:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
            subprocess.run(command, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
    finally:
        gpus.put(gpu)


def log_of(a: argparse.Namespace, run: Run) -> list[dict[str, str]]:
    """The rows of a run's log."""
    with open(a.out / run.name / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def peers(a: argparse.Namespace, gpus: queue.Queue[int]) -> list[Run]:
    """The peer's runs, as long as those of ``--like``, by the rate of a trial."""
    trial = Run(PEER, 0, min(TRIAL_STEPS, a.steps), "-trial")
    train(a, trial, gpus)
    rows = log_of(a, trial)
    last, before = rows[-1], rows[-2] if len(rows) > 1 else {"step": "0", "seconds": "0"}
    rate = (int(last["step"]) - int(before["step"])) / (float(last["seconds"]) - float(before["seconds"]))
    found = []
    for run in a.like:
        seconds = float(log_of(a, run)[-1]["seconds"])
        found.append(Run(PEER, 0, max(1, round(rate * seconds)), f"-like-{run.name}"))
    return found


def table(a: argparse.Namespace, runs: list[Run]) -> str:
    """Steps, minutes and held-out accuracy of each run."""
    lines = ["| run | steps | minutes | masked patches identified, held out |", "|---|---|---|---|"]
    for run in runs:
        rows = log_of(a, run)
        accuracy = [row["val_accuracy"] for row in rows if row.get("val_accuracy")]
        held_out = f"{100 * float(accuracy[-1]):.1f} %" if accuracy else ""
        lines.append(f"| {run.name} | {rows[-1]['step']} | {float(rows[-1]['seconds']) / 60:.2f} | {held_out} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("out", "lists", "esc10", "arabic"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--gpus", type=int, nargs="+", default=[0], metavar="N", help="one run at a time on each")
    parser.add_argument("--steps", type=int, default=11400)
    parser.add_argument(
        "--runs", type=Run.read, nargs="+", default=[Run(form) for form in FORMS], metavar="FORM[:SEED]"
    )
    parser.add_argument("--peer", action="store_true", help="SSAST compiled for the minutes of each of --like")
    parser.add_argument("--like", type=Run.read, nargs="+", default=[], metavar="FORM[:SEED]", help="default: --runs")
    parser.add_argument("--no-probe", action="store_true")
    parser.add_argument("--options", type=shlex.split, default=[], metavar="TEXT")
    parser.add_argument("--probe-device", default="auto")
    parser.add_argument("--dry-run", action="store_true")
    a = parser.parse_args()
    a.like = a.like or a.runs
    if a.dry_run:
        print("\n".join(shlex.join(c) for c in (*(pretraining(a, run) for run in a.runs), probe(a, a.runs))))
        return
    a.out.mkdir(parents=True, exist_ok=True)
    gpus: queue.Queue[int] = queue.Queue()
    for gpu in a.gpus:
        gpus.put(gpu)
    runs = list(a.runs)
    with concurrent.futures.ThreadPoolExecutor(len(a.gpus)) as pool:
        for done in [pool.submit(train, a, run, gpus) for run in runs]:
            done.result()
        if a.peer:
            more = peers(a, gpus)
            for done in [pool.submit(train, a, run, gpus) for run in more]:
                done.result()
            runs += more
    if not a.no_probe:
        print(shlex.join(probe(a, runs)), flush=True)
        print(subprocess.run(probe(a, runs), check=True, capture_output=True, text=True).stdout)
    print(table(a, runs))


if __name__ == "__main__":
    main()
