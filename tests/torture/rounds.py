"""Kills real runs at moments drawn from a seed, lets them go on, and compares what they leave with undisturbed runs.

    python tests/torture/rounds.py --rounds 200 --seed 1 --jobs 16

Without an installed ssamba the source tree's is run. Work goes on in the system's temporary folder (TMPDIR).

A round is one kill: SIGKILL, SIGTERM, SIGHUP or SIGINT, after a time or at one of the run's own calls of ``os.replace``
and ``os.fsync`` (between two renames, for example). Runs are pretraining and fine-tuning, saved at every step or
seldom; in some the clocks jump, forwards and (of the two, the one that may) backwards. A run is started again until it
has been killed as often as was drawn and has ended; then all that it leaves is compared bit by bit, times left out.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several runs at a time, and their results depend on it
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
import layout_trees

from ssamba.cli.main import main as ssamba
from ssamba.data.synthetic.generate import make_synthetic
from ssamba.models.pretrained.file_checks import CHECKS_FILE
from ssamba.training.finetune import run as _finetune  # noqa: F401 (imported before processes are made of this one)
from ssamba.training.pretrain import run as _pretrain  # noqa: F401
from ssamba.utils.files import sha256_of
from ssamba.utils.json_text import read_json

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
SMALL = "--width 32 --depth 2 --workers 1 --precision fp32 --device cpu"
PRETRAIN = f"pretrain SOUNDS --out OUT --frames 64 --mask 16 --validation-mask 16 --batch 4 --steps 24 {SMALL}"
PRETRAIN += " --lr 1e-3 --warmup-steps 4 --warmup-every 1 --validate-every 8 --validation 0.1 --log-every 3 --ema 0.9"
FINETUNE = f"finetune custom --data LABELLED --out OUT --from none --frames 32 --stride 16 --epochs 3 --batch 8 {SMALL}"
FINETUNE += " --mixup 0.5 --log-every 2 --freq-mask 8 --time-mask 4 --choose folds --cache-gb 1 --eval-batch 16"
KINDS = {"pretrain": PRETRAIN, "finetune": FINETUNE}
TIMES = ("seconds", "clips_per_second")
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass
class Ended:
    """How a process ended: its exit code, negative for a signal, its stderr and the time it took."""

    code: int
    err: str
    seconds: float


def in_process(words: list[str], before: Callable[[], None], after: Callable[[int], None] = lambda pid: None) -> Ended:
    """The command line in a copy of this process, which has imported everything; ``before`` runs in it first."""
    with tempfile.TemporaryFile() as file:
        begin = time.monotonic()
        pid = os.fork()
        if not pid:
            code = 70
            try:
                os.dup2(file.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
                sys.__stderr__ = sys.stderr  # type: ignore[misc]  # pytest has put others in their place
                logging.getLogger().handlers.clear()
                before()
                code = ssamba(words)
            finally:
                os._exit(code)
        after(pid)
        status = os.waitpid(pid, 0)[1]
        file.seek(0)
        err = file.read().decode(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), err, time.monotonic() - begin)


def kill_at_call(number: int, kind: int) -> Callable[[], None]:
    """Ends the process at its n-th call of ``os.replace`` or ``os.fsync``: before the call, or after it."""

    def patch() -> None:
        count = [0]
        for name in ("replace", "fsync"):
            original = getattr(os, name)

            def wrapped(*arguments: Any, plain: Any = original, **more: Any) -> Any:
                count[0] += 1
                if count[0] == number and number % 2:
                    os.kill(os.getpid(), kind)
                result = plain(*arguments, **more)
                if count[0] == number and not number % 2:
                    os.kill(os.getpid(), kind)
                return result

            setattr(os, name, wrapped)

    return patch


def jump_clocks(seed: int) -> None:
    """From now on the clocks jump at one call in ten: the wall clock both ways, the monotonic one forwards."""
    rng = random.Random(seed)
    wall, steady, offsets = time.time, time.monotonic, [0.0, 0.0]

    def jumping(plain: Callable[[], float], index: int, low: float) -> Callable[[], float]:
        def read() -> float:
            if rng.random() < 0.1:
                offsets[index] += rng.uniform(low, 1e5)
            return plain() + offsets[index]

        return read

    time.time, time.monotonic = jumping(wall, 0, -1e5), jumping(steady, 1, 0.0)


def leaves(folder: Path) -> dict[str, bytes]:
    """What a run leaves, without times; the state before depends on when a run was killed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or "tfevents" in name or path.name == "state.previous.safetensors":
            continue
        found[name] = path.read_bytes()
        if path.name == CHECKS_FILE:  # holds digests of times; what it lists is compared, and that it fits
            listed = read_json(path)["files"]
            fits = all(sha256_of(path.parent / inner) == digest for inner, digest in listed.items())
            found[name] = repr((fits, sorted(x for x in listed if "tfevents" not in x))).encode()
        if path.name == "log.csv":
            with path.open(newline="", errors="replace") as file:
                rows = [[v for k, v in row.items() if k not in TIMES] for row in csv.DictReader(file)]
            found[name] = repr(rows).encode()
        if path.name == "recipe.yaml":
            found[name] = b"\n".join(x for x in found[name].splitlines() if b"save_minutes" not in x)
    return found


@dataclass
class Torture:
    """Data, and what undisturbed runs leave: of each kind its files and its time."""

    work: Path
    seed: int

    def prepare(self) -> None:
        """Data, and an undisturbed run of each kind."""
        make_synthetic(self.work / "sounds", clips=45, seconds=1.0, seed=1)
        layout_trees.custom_table(self.work / "labelled", split="fold")
        self.whole: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}
        for kind in KINDS:
            out = self.work / f"whole-{kind}"
            ended = in_process(self.words(kind, out, "60"), lambda: None)
            if ended.code:
                raise SystemExit(f"the undisturbed run failed: {ended.err[-2000:]}")
            # The first may have compiled something, and no later one takes so long.
            self.seconds[kind], self.whole[kind] = min(ended.seconds, 4.0), leaves(out)

    def words(self, kind: str, out: Path, save_minutes: str) -> list[str]:
        """The command line of a run."""
        places = {"SOUNDS": self.work / "sounds", "LABELLED": self.work / "labelled", "OUT": out}
        return [*(str(places.get(word, word)) for word in KINDS[kind].split()), "--save-minutes", save_minutes]

    def run(self, number: int, kills: int) -> Run:
        """One run, killed so many times and then let to its end."""
        rng = random.Random(f"{self.seed} {number}")
        kind, out = rng.choice(list(KINDS)), self.work / f"broken-{number}"
        words = self.words(kind, out, rng.choice(["0", "0", "60"]))
        clocks, run = rng.random() < 0.25, Run(Counter(), [])
        story = [f"run {number} ({kind}, {'jumping clocks, ' if clocks else ''}save-minutes {words[-1]})"]
        for _ in range(kills):
            name = rng.choice(SIGNALS)
            ended, how = self._killed(rng, words, kind, name, clocks)
            result = "ended" if ended.code == 0 else "stopped" if ended.code == 130 else "killed"
            run.counts[kind, name.name, result] += 1
            story.append(f"{name.name} {how}: {ended.code}")
            if ended.code not in (0, 130, -name) or "Traceback" in ended.err:
                run.wrong.append("; ".join([*story, ended.err[-1500:]]))
        ended = in_process(words, lambda: None)
        if ended.code or "Traceback" in ended.err or "ssamba: warning: " in ended.err:
            run.wrong.append("; ".join([*story, f"then exit code {ended.code}", ended.err[-1500:]]))
        found, whole = leaves(out), self.whole[kind]
        differing = sorted(name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name))
        if differing:
            run.wrong.append("; ".join([*story, f"differs in {', '.join(differing)}"]))
        shutil.rmtree(out, ignore_errors=True)
        return run

    def _killed(
        self, rng: random.Random, words: list[str], kind: str, name: signal.Signals, clocks: bool
    ) -> tuple[Ended, str]:
        seed, calls = rng.randrange(1 << 30), rng.randint(1, 200 if words[-1] == "0" else 40)
        patch = kill_at_call(calls, name) if (by_call := rng.random() < 0.6) else lambda: None
        delay = rng.uniform(0, self.seconds[kind])

        def before() -> None:
            if clocks:
                jump_clocks(seed)
            patch()

        def after(pid: int) -> None:
            if not by_call:
                time.sleep(delay)
                os.kill(pid, name)  # one that has ended is still there until it is waited for

        how = f"at call {calls}" if by_call else f"after {delay:.2f} s"
        return in_process(words, before, after), how


@dataclass
class Run:
    """Kills of a run by kind of command, signal and how it ended, and a line for each thing that went wrong."""

    counts: Counter[tuple[str, str, str]]
    wrong: list[str]


@contextlib.contextmanager
def prepared(seed: int) -> Iterator[Torture]:
    """Data and undisturbed runs in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ssamba-torture-") as work:
        state = Torture(Path(work), seed)
        state.prepare()
        yield state


def in_jobs(call: Callable[[Task], Result], tasks: Iterable[Task], jobs: int) -> Iterator[Result]:
    """Results of calls in so many copies of this process, as they come."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for future in as_completed([pool.submit(call, task) for task in tasks]):
            yield future.result()


def torture(state: Torture, rounds: int, jobs: int, say: Callable[[str], None] = lambda line: None) -> Run:
    """So many kills; what came of them."""
    tasks, left = [], rounds
    while left:
        kills = min(left, random.Random(f"{state.seed} {len(tasks)} kills").randint(1, 5))
        tasks.append((len(tasks), kills))
        left -= kills
    total = Run(Counter(), [])
    for done, run in enumerate(in_jobs(_Task(state), tasks, jobs), 1):
        total.counts.update(run.counts)
        total.wrong += run.wrong
        say(f"{total.counts.total()} of {rounds} kills, {done} of {len(tasks)} runs, {len(total.wrong)} wrong")
    return total


@dataclass
class _Task:
    """A run as a call that another process can be given."""

    state: Torture

    def __call__(self, task: tuple[int, int]) -> Run:
        return self.state.run(*task)


def options(what: str, doc: str | None) -> argparse.Namespace:
    """The command line: how many of ``what``, seed and jobs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{what}", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: the cores)")
    return parser.parse_args()


def main() -> int:
    """The command line."""
    given, begin = options("rounds", __doc__), time.monotonic()
    with prepared(given.seed) as state:
        print(f"seed {given.seed}, prepared in {time.monotonic() - begin:.0f} s", flush=True)
        total = torture(state, given.rounds, given.jobs, lambda line: print(line, flush=True))
    for (kind, name, result), count in sorted(total.counts.items()):
        print(f"| {kind} | {name} | {result} | {count} |")
    for line in total.wrong:
        print(line)
    took = time.monotonic() - begin
    print(f"{total.counts.total()} kills, {len(total.wrong)} wrong, {took:.0f} s with {given.jobs} jobs")
    return 1 if total.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
