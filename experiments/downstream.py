"""Probe and fine-tune several models on ESC-10 and Arabic Speech Commands, some jobs side by side; table and picture.

    python experiments/downstream.py OUT --esc10 ROOT --arabic ROOT --seeds 0 1 2 --jobs 6 \
        pretrained=RUN@12.5 other=RUN@6 scratch=none:ssamba

Each model is NAME=SOURCE, SOURCE a run or model directory, or none:ENCODER for random weights (none:ENCODER:OPTIONS
with options of finetune); @MINUTES is the GPU time of its pretraining, for the picture. Either set may be left out, and
the probes. Every job is a `ssamba` command in a process of its own, shown before it starts; --gpus shares the jobs out
to several GPUs. Jobs at once share the processor cores out, unless OMP_NUM_THREADS is set. A finished job is not
repeated, a stopped one goes on. OUT gets a folder for each job, summary.json, summary.md and, where minutes are given,
minutes.png: accuracy against GPU minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssamba.data.loaders.workers import available_cores

RECIPES = {"esc10": "ESC-10", "arabic-speech-commands": "Arabic"}
PROBED = "mean and deviation of each row"


@dataclass(frozen=True)
class Model:
    """A name for tables, what to start from, the encoder of random weights, GPU minutes of pretraining."""

    name: str
    source: str
    encoder: str
    minutes: float | None

    @classmethod
    def read(cls, text: str) -> Model:
        name, _, rest = text.partition("=")
        source, _, minutes = rest.partition("@")
        if not source:
            raise argparse.ArgumentTypeError(f"{text}: give NAME=SOURCE or NAME=SOURCE@MINUTES")
        first, _, encoder = source.partition(":")
        if first != "none":
            first, encoder = source, ""
        return cls(name, first, encoder, float(minutes) if minutes else None)


@dataclass(frozen=True)
class Job:
    """One command. ``task`` is "probe" or "fine-tuned", ``data`` a recipe."""

    model: str
    task: str
    data: str
    seed: int
    out: Path
    command: tuple[str, ...]


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Probes first, then seed after seed: what a stopped run leaves is whole for its first seeds."""
    roots = {"esc10": arguments.esc10, "arabic-speech-commands": arguments.arabic}
    roots = {data: root for data, root in roots.items() if root}
    found = []
    for data, root in roots.items():
        for model in arguments.models:
            if model.source != "none" and arguments.probes:
                out = arguments.out / f"{model.name}-{data}-probe"
                words = ["probe", data, "--data", root, "--model", model.source, "--out", out]
                found.append(Job(model.name, "probe", data, 0, out, tuple(map(str, words))))
    for seed in arguments.seeds:
        for data, root in roots.items():
            for model in arguments.models:
                out = arguments.out / f"{model.name}-{data}-{seed}"
                words = ["finetune", data, "--data", root, "--from", model.source, "--seed", seed, "--out", out]
                encoder, _, more = model.encoder.partition(":")
                words += ["--encoder", encoder, *shlex.split(more)] if encoder else []
                words += ["--workers", arguments.workers, *shlex.split(arguments.options)]
                found.append(Job(model.name, "fine-tuned", data, seed, out, tuple(map(str, words))))
    return found


def share_cores(processes: int) -> None:
    """Give each of several processes its share of the cores: with threads for all of them each, a probe crawls."""
    if processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))


def free_gpus(jobs: int, gpus: int) -> queue.SimpleQueue[str]:
    """A GPU's number for each of so many jobs at once; an empty one, where a job takes its own, for 0 GPUs."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for i in range(jobs):
        free.put(str(i % gpus) if gpus else "")
    return free


def on_gpu(gpu: str) -> dict[str, str]:
    """The environment of a job on one of ``free_gpus``."""
    return {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}


def last_line(log: Path, most: int) -> str:
    """The end of what a job wrote, progress bars included."""
    return " ".join(log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()[-1:])[-most:]


def run(job: Job, gpus: queue.SimpleQueue[str]) -> Job:
    """Start a job on the next free GPU and wait for it; its output goes to log.txt beside its results."""
    if (job.out / "results.json").exists():
        return job
    job.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ssamba", *job.command]
    print("ssamba", shlex.join(job.command), flush=True)
    gpu = gpus.get()
    begin = time.monotonic()
    with open(job.out / "log.txt", "ab") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False, env=on_gpu(gpu)).returncode
    gpus.put(gpu)
    seconds = time.monotonic() - begin
    if code:
        last = last_line(job.out / "log.txt", 200)
        print(f"{job.out.name}: exit {code} after {seconds:.0f} s: {last}", flush=True)
    else:
        (job.out / "seconds.json").write_text(json.dumps(seconds))
    return job


def result(job: Job) -> dict[str, Any] | None:
    """Accuracy in percent, spread over folds and seconds, or None for a job without results."""
    path = job.out / "results.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    found: dict[str, Any] = {"model": job.model, "task": job.task, "data": job.data, "seed": job.seed}
    if job.task == "probe":
        (row,) = (r for r in values["rows"] if r["layer"] is not None and r["pooling"] == PROBED)
        (yardstick,) = (r for r in values["rows"] if r["layer"] is None)
        found |= {"accuracy": 100 * row["linear"]["mean"], "deviation": 100 * row["linear"]["deviation"]}
        found["log_mel"] = 100 * yardstick["linear"]["mean"]
    else:
        spread = (values.get("sample_deviation") or {}).get("accuracy")
        found |= {"accuracy": 100 * values["mean"]["accuracy"], "deviation": None if spread is None else 100 * spread}
    seconds = job.out / "seconds.json"
    found["seconds"] = json.loads(seconds.read_text()) if seconds.exists() else None
    return found


def table(results: list[dict[str, Any]], models: list[Model]) -> str:
    """One row for each model: mean over seeds, the seeds' deviation, and the mean of the four numbers."""
    columns = [(task, data) for task in ("probe", "fine-tuned") for data in RECIPES]
    lines = [
        "| model | " + " | ".join(f"{RECIPES[data]}, {task}" for task, data in columns) + " | mean of the four |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for model in models:
        cells, means = [], []
        for task, data in columns:
            chosen = [r for r in results if (r["model"], r["task"], r["data"]) == (model.name, task, data)]
            scores = [r["accuracy"] for r in chosen]
            if not scores:
                cells.append("")
                continue
            means.append(statistics.mean(scores))
            spread = f" ± {statistics.stdev(scores):.1f} ({len(scores)} seeds)" if len(scores) > 1 else ""
            cells.append(f"{means[-1]:.1f} %{spread}")
        cells.append(f"{statistics.mean(means):.1f} %" if len(means) == len(columns) else "")
        lines.append(f"| {model.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(results: list[dict[str, Any]], models: list[Model], out: Path) -> None:
    """Accuracy against the GPU minutes of pretraining, a panel for each of the four numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(2, 2)
    handles = {}
    for row, task in zip(panels, ("probe", "fine-tuned"), strict=True):
        for panel, data in zip(row, RECIPES, strict=True):
            for number, model in enumerate(models):
                chosen = [r for r in results if (r["model"], r["task"], r["data"]) == (model.name, task, data)]
                if model.minutes is None or not chosen:
                    continue
                scores = [r["accuracy"] for r in chosen]
                spread = statistics.stdev(scores) if len(scores) > 1 else None
                ssast = "ssast" in model.name.lower()
                style: dict[str, Any] = {"color": f"C{number % 10}", "marker": "s" if ssast else "o", "linestyle": ""}
                style |= {"markersize": 10 if ssast else 6, "markerfacecolor": "none" if ssast else None, "capsize": 3}
                handles[model.name] = panel.errorbar(model.minutes, statistics.mean(scores), spread, **style)
            panel.set(title=f"{RECIPES[data]}, {task}", xlabel="GPU minutes of pretraining", ylabel="accuracy, %")
            panel.margins(0.1, 0.1)
            panel.grid(alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(handles) or 1))
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", type=Model.read, metavar="NAME=SOURCE[@MINUTES]")
    parser.add_argument("--esc10", type=Path)
    parser.add_argument("--arabic", type=Path)
    parser.add_argument(
        "--probes", action=argparse.BooleanOptionalAction, default=True, help="and not fine-tuning alone"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=4, help="at once, each on its share of the cores (OMP_NUM_THREADS)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to share the jobs out to; 0: each job takes its own")
    parser.add_argument("--workers", type=int, default=2, help="decoding workers of each")
    parser.add_argument("--options", default="", help="more options for every fine-tuning, in one string")
    arguments = parser.parse_args()
    if not (arguments.esc10 or arguments.arabic):
        parser.error("give --esc10 or --arabic")
    arguments.out.mkdir(parents=True, exist_ok=True)
    share_cores(arguments.jobs)
    results = []
    gpus = free_gpus(arguments.jobs, arguments.gpus)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for job in pool.map(partial(run, gpus=gpus), jobs(arguments)):
            if (found := result(job)) is not None:
                results.append(found)
                (arguments.out / "summary.json").write_text(json.dumps(results, indent=2) + "\n")
    text = table(results, arguments.models)
    (arguments.out / "summary.md").write_text(text)
    if any(model.minutes is not None for model in arguments.models):
        picture(results, arguments.models, arguments.out / "minutes.png")
    print(text)


if __name__ == "__main__":
    main()
