"""Choose recipes of fine-tuning without test data: many configurations, some jobs side by side, one table.

    python experiments/finetune_dev.py OUT CONFIGURATIONS --esc10 ROOT --seeds 0 1 --jobs 12 --minutes 8
    python experiments/finetune_dev.py OUT CONFIGURATIONS --arabic ROOT --jobs 8

ESC-10: folds 2 to 5 alone; three of them are trained on, the fourth is judged, four ways (fold 1 is never read). Arabic
Speech Commands: the training speakers, judged on the validation speakers (the test speakers are never read). OUT gets a
table of those clips, which ``ssamba finetune`` reads as layout ``custom``; everything else is as in the recipe.

CONFIGURATIONS is a text file of lines ``name: options of ssamba finetune``; ``--from SOURCE`` may be among them, and is
else the benchmark's. Empty lines and what follows # are passed over. First every configuration with the first seed,
in the file's order, then with the next.

As they finish, each gives a row: validation accuracy as the mean of the last five epochs (which does not choose among
noisy ones), and of the epoch that is best on average over the folds. At the end, or when --minutes are over, the same
averaged over seeds, best first. OUT/summary.md holds both from the first job on. A finished job is not repeated, a
stopped one goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import queue
import shlex
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from downstream import free_gpus, last_line, on_gpu, share_cores

from ssamba.data.datasets import read_layout
from ssamba.data.examples import Example

LAST = 5
"""Epochs at the end whose mean counts."""
HEADER = "| configuration | seed | data | last epochs | best epoch | seconds |\n|---|---|---|---|---|---|"
MEANS = "| configuration | data | seeds | last epochs | best epoch | seconds |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Job:
    """One ``ssamba finetune``."""

    name: str
    data: str
    seed: int
    out: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """Validation accuracy in percent: mean of the last epochs, and of the best one; seconds of the job."""

    job: Job
    last: float
    best: float
    seconds: float


def write_table(path: Path, column: str, examples: list[tuple[Example, str]], classes: tuple[str, ...]) -> Path:
    """A table of files, labels and the folds or splits of ``column``."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", column])
        for example, part in examples:
            writer.writerow([Path(example.parts[0].path).resolve(), classes[example.labels[0]], part])
    return path


def esc10(root: Path, out: Path) -> Path:
    """Folds 2 to 5, numbered from 1."""
    data = read_layout("esc10", root)
    parts = [(e, str(number)) for number, fold in enumerate(data.folds[1:], start=1) for e in fold.test]
    return write_table(out / "esc10-folds-2-to-5.csv", "fold", parts, data.classes)


def arabic(root: Path, out: Path) -> Path:
    """The training speakers, and the validation speakers as what is judged."""
    data = read_layout("arabic-speech-commands", root)
    (fold,) = data.folds
    parts = [*((e, "train") for e in fold.train), *((e, "validation") for e in fold.validation)]
    return write_table(out / "arabic-train-validation.csv", "split", parts, data.classes)


def configurations(path: Path) -> dict[str, list[str]]:
    """Name -> options, in the file's order."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        name, colon, options = words.partition(":")
        if not colon or name in found or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise SystemExit(f"{path}, line {number}: give 'name: options', each name once, of letters, digits, - _ .")
        found[name] = shlex.split(options)
    return found


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Seed after seed: what a stopped run leaves is whole for its first seeds."""
    tables = []
    if arguments.esc10:
        tables.append(("esc10", esc10(arguments.esc10, arguments.out), "folds"))
    if arguments.arabic:
        tables.append(("arabic-speech-commands", arabic(arguments.arabic, arguments.out), "last"))
    listed = configurations(arguments.configurations)
    found = []
    for seed in arguments.seeds:
        for data, table, choose in tables:
            for name, options in listed.items():
                out = arguments.out / f"{name}-{data}-{seed}"
                words = ["finetune", data, "--layout", "custom", "--choose", choose, "--data", table]
                words += ["--from", arguments.source, "--workers", arguments.workers, "--save-minutes", 60]
                words += [*shlex.split(arguments.options), *options, "--seed", seed, "--out", out]
                found.append(Job(name, data, seed, out, tuple(map(str, words))))
    return found


class Runner:
    """Runs jobs in processes of their own until a time is over; then those that run are asked to stop."""

    def __init__(self, until: float, gpus: queue.SimpleQueue[str]) -> None:
        self.until, self.gpus = until, gpus
        self.lock = threading.Lock()
        self.results: list[Result] = []

    def __call__(self, job: Job) -> None:
        """Wait for one job, and print its row."""
        kept = job.out / "seconds.json"
        if not kept.exists():
            if time.monotonic() >= self.until:
                return
            job.out.mkdir(parents=True, exist_ok=True)
            begin = time.monotonic()
            command, gpu = [sys.executable, "-m", "ssamba", *job.command], self.gpus.get()
            with open(job.out / "log.txt", "ab") as log:
                code = self._wait(subprocess.Popen(command, stdout=log, stderr=log, env=on_gpu(gpu)))
            self.gpus.put(gpu)
            if code and time.monotonic() >= self.until:
                print(f"{job.out.name}: stopped", flush=True)
                return
            if code:
                print(f"{job.out.name}: exit {code}: {last_line(job.out / 'log.txt', 300)}", flush=True)
                return
            kept.write_text(json.dumps(time.monotonic() - begin))
        found = result(job, json.loads(kept.read_text()))
        with self.lock:
            self.results.append(found)
            print(row(found), flush=True)
            write_summary(self.results, job.out.parent / "summary.md")

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(None if self.until == float("inf") else max(0.1, self.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.wait()


def result(job: Job, seconds: float) -> Result:
    """A finished job's numbers, from the logs of its folds."""
    curves = []
    for log in sorted(job.out.glob("fold-*/log.csv")):
        with open(log, encoding="utf-8", newline="") as file:
            curves.append([100 * float(r["val_accuracy"]) for r in csv.DictReader(file) if r["val_accuracy"]])
    curve = [statistics.mean(values) for values in zip(*curves, strict=True)]
    return Result(job, statistics.mean(curve[-LAST:]), max(curve), seconds)


def row(r: Result) -> str:
    """One job's line of the table."""
    return f"| {r.job.name} | {r.job.seed} | {r.job.data} | {r.last:.2f} | {r.best:.2f} | {r.seconds:.0f} |"


def means(results: list[Result]) -> str:
    """One line for each configuration and set, averaged over seeds, best first; ± is the seeds' deviation."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        grouped.setdefault((r.job.data, r.job.name), []).append(r)
    lines = [MEANS]
    for (data, name), group in sorted(grouped.items(), key=lambda x: (x[0][0], -statistics.mean(r.last for r in x[1]))):
        last, best = [r.last for r in group], [r.best for r in group]
        spread = f" ± {statistics.stdev(last):.2f}" if len(last) > 1 else ""
        seconds = statistics.mean(r.seconds for r in group)
        cells = [f"{statistics.mean(last):.2f}{spread}", f"{statistics.mean(best):.2f}", f"{seconds:.0f}"]
        lines.append(f"| {name} | {data} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_summary(results: list[Result], path: Path) -> None:
    """Means, then every job, written whole."""
    temporary = path.with_suffix(".new")
    temporary.write_text(means(results) + "\n" + "\n".join([HEADER, *map(row, results)]) + "\n")
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("configurations", type=Path)
    parser.add_argument("--esc10", type=Path)
    parser.add_argument("--arabic", type=Path)
    parser.add_argument("--from", dest="source", default="tiny", help="what lines without --from start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=4, help="at once, each on its share of the cores (OMP_NUM_THREADS)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to share the jobs out to; 0: each job takes its own")
    parser.add_argument("--workers", type=int, default=1, help="decoding workers of each")
    parser.add_argument("--options", default="", help="options for every job, in one string; a line's own win")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then running jobs are stopped")
    arguments = parser.parse_args()
    if not (arguments.esc10 or arguments.arabic):
        parser.error("give --esc10 or --arabic")
    until = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    share_cores(arguments.jobs)
    todo, runner = jobs(arguments), Runner(until, free_gpus(arguments.jobs, arguments.gpus))
    print(HEADER, flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(runner, todo))
    print(f"\n{len(runner.results)} of {len(todo)} jobs\n\n{means(runner.results)}", flush=True)


if __name__ == "__main__":
    main()
