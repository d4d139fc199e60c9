"""Fuzzing: ``PYTHONPATH=tests python -m fuzz.campaign --cases 1000000`` (``make fuzz``).

Every case is a function of (seed, target, number): ``--only mp3/1234`` makes it again. Findings go to ``--out``, one
for each place where the program failed: the damaged file, and a text that says what happened. Exit code 1 with
findings. Each process may take 1.5 GB beyond what it has after the first cases; a case may take 30 s.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fuzz.mutations import mutate
from fuzz.targets import TARGETS, check, order

MEMORY = 1536 << 20
SECONDS = 30.0


class Finding(NamedTuple):
    """What went wrong, and where: findings of one place are one."""

    target: str
    number: int
    kind: str
    place: str
    text: str


class Report(NamedTuple):
    """What a campaign found."""

    cases: int
    taken: int
    refused: int
    findings: list[Finding]


class _Slot(ctypes.Structure):
    """Where a process stands: shared with the one that watches it."""

    _fields_ = [
        ("case", ctypes.c_longlong),
        ("begin", ctypes.c_double),
        ("cases", ctypes.c_longlong),
        ("taken", ctypes.c_longlong),
    ]


class Cases:
    """Damaged files: ``make(target, number)`` writes one."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._seeds: dict[str, list[bytes]] = {}

    def make(self, name: str, number: int) -> Path:
        target = TARGETS[name]
        if name not in self._seeds:
            (self.folder / "seeds").mkdir(parents=True, exist_ok=True)
            self._seeds[name] = target.seeds(self.folder / "seeds")
        inputs = self._seeds[name]
        draw = random.Random(f"{self.seed}/{name}/{number}")
        path = self.folder / f"case{target.ending}"
        path.write_bytes(mutate(draw.choice(inputs), inputs, draw, target.text))
        return path


def run_case(cases: Cases, name: str, number: int) -> tuple[str, Finding | None]:
    """One case: "taken", "refused" or "failed", and the finding."""
    path = cases.make(name, number)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check(TARGETS[name], path), None
    except Exception as error:  # everything but a refusal in one line is a finding
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if "/ssamba/" in f.filename or "/fuzz/" in f.filename
        ]
        place = f"{frames[-1].filename.rpartition('/src/')[2]}:{frames[-1].lineno}" if frames else "?"
        return "failed", Finding(name, number, type(error).__name__, place, traceback.format_exc())


def _work(seed: int, first: int, step: int, last: int, slot: Any, found: Any, root: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        cases = Cases(Path(folder), seed)
        names = order()
        limited = False
        for number in range(last):
            name = next(names)
            if number < first or number % step != first % step:
                continue
            slot.case, slot.begin = number, time.time()
            try:
                outcome, finding = run_case(cases, name, number)
            except MemoryError:
                outcome, finding = "failed", Finding(name, number, "MemoryError", "?", traceback.format_exc())
            slot.begin = 0.0
            slot.cases += 1
            slot.taken += outcome == "taken"
            if finding is not None:
                found.put(finding)
            if not limited and slot.cases > 3 * len(TARGETS):
                limited = True
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def campaign(cases: int, seed: int = 0, jobs: int = 1, seconds: float = float("inf"), quiet: bool = False) -> Report:
    """Run ``cases`` cases, or as many as ``seconds`` allow, in ``jobs`` processes that are watched."""
    context = multiprocessing.get_context("fork")
    root = tempfile.mkdtemp(prefix="ssamba-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    slots: list[Synchronized[Any]] = [context.Value(_Slot, -1, 0.0, 0, 0, lock=False) for _ in range(jobs)]
    found = context.SimpleQueue()
    findings: dict[tuple[str, str, str], Finding] = {}

    def start(worker: int, first: int) -> Any:
        process = context.Process(
            target=_work, args=(seed, first, jobs, cases, slots[worker], found, root), daemon=True
        )
        process.start()
        return process

    processes = [start(worker, worker) for worker in range(jobs)]
    begin = said = time.time()
    names = [name for name, _ in zip(order(), range(sum(t.weight for t in TARGETS.values())), strict=False)]
    while any(process.is_alive() for process in processes):
        time.sleep(0.2)
        now = time.time()
        while not found.empty():
            finding = found.get()
            findings.setdefault((finding.target, finding.kind, finding.place), finding)
        if now - begin > seconds:
            break
        for worker, process in enumerate(processes):
            slot: Any = slots[worker]
            hung = slot.begin and now - slot.begin > SECONDS
            crashed = not process.is_alive() and process.exitcode != 0
            if not (hung or crashed):
                continue
            process.kill()
            process.join()
            number = slot.case
            kind = f"no end after {SECONDS:g} s" if hung else f"exit code {process.exitcode}"
            finding = Finding(names[number % len(names)], number, kind, "?", kind)
            findings.setdefault((finding.target, finding.kind, finding.place), finding)
            slot.begin = 0.0
            slot.cases += 1
            processes[worker] = start(worker, number + jobs)
        if not quiet and now - said > 5:
            said = now
            _say(sum(s.cases for s in slots), cases, now - begin, seconds, len(findings))
    for process in processes:
        process.kill()
        process.join()
    while not found.empty():
        finding = found.get()
        findings.setdefault((finding.target, finding.kind, finding.place), finding)
    shutil.rmtree(root, ignore_errors=True)
    done, taken = sum(s.cases for s in slots), sum(s.taken for s in slots)
    return Report(done, taken, done - taken, list(findings.values()))


def _say(done: int, cases: int, elapsed: float, seconds: float, findings: int) -> None:
    rate = done / max(elapsed, 1e-9)
    left = min((cases - done) / max(rate, 1e-9), seconds - elapsed)
    print(
        f"{done:,} of {cases:,} cases, {rate:,.0f}/s, {left:,.0f} s left, findings: {findings}",
        file=sys.stderr,
        flush=True,
    )


def write_findings(out: Path, seed: int, findings: list[Finding]) -> None:
    """The damaged file and what happened, for each finding."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(Path(folder), seed)
        for finding in findings:
            name = out / f"{finding.target}-{finding.number}"
            path = cases.make(finding.target, finding.number)
            shutil.copyfile(path, name.with_suffix(path.suffix))
            name.with_suffix(".txt").write_text(f"{finding.kind} at {finding.place}\n\n{finding.text}\n")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--jobs", type=int, default=max(1, (multiprocessing.cpu_count() or 1)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--only", help="TARGET/NUMBER: one case, with its traceback")
    arguments = parser.parse_args()
    if arguments.only:
        name, number = arguments.only.split("/")
        with tempfile.TemporaryDirectory() as folder:
            outcome, finding = run_case(Cases(Path(folder), arguments.seed), name, int(number))
        print(finding.text if finding else outcome)
        return int(finding is not None)
    begin = time.time()
    report = campaign(arguments.cases, arguments.seed, arguments.jobs, arguments.seconds)
    write_findings(arguments.out, arguments.seed, report.findings)
    for finding in report.findings:
        last = finding.text.strip().splitlines()[-1]
        print(f"{finding.target}/{finding.number}: {finding.kind} at {finding.place}: {last}"[:200])
    print(
        f"seed {arguments.seed}: {report.cases:,} cases in {time.time() - begin:.0f} s, {report.taken:,} taken, "
        f"{report.refused:,} refused or failed, findings: {len(report.findings)}"
    )
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
