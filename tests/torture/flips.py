"""Flips single bits in the files of real runs, lets the runs go on, and counts what came of it.

    python tests/torture/flips.py --flips 200 --seed 1 --jobs 16

Runs are pretraining and fine-tuning that were stopped or have ended, and a fit that has ended. Files are drawn evenly
among all that such a run leaves, bits evenly within a file. The outcomes:

refused     exit code 2 and one line
repaired    a warning, and all that the run leaves is, bit by bit, what an undisturbed run leaves (times left out)
reported    a warning, and the run leaves something else: what was damaged, or the results of another best step
checksum    nothing reads the file, TensorBoard's events, but its checksums no longer fit, so that what does will see it
harmless    no word, and all is as in an undisturbed run
silent      anything else
"""

from __future__ import annotations

import random
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rounds import Ended, Torture, in_jobs, in_process, kill_at_call, leaves, options, prepared
from tensorboardX.record_writer import masked_crc32c

from ssamba.training.fit import run as _fit  # noqa: F401 (imported before processes are made of this one)

WARNING = "ssamba: warning: "
STOPPED = (("pretrain", 90), ("pretrain", 150), ("finetune", 60), ("finetune", 260))
"""Kind of command, and the call of ``os.replace`` or ``os.fsync`` that ended it."""


@dataclass
class Damaged:
    """A run to damage: its folder, the kind of command that goes on with it, and what that should leave."""

    folder: Path
    kind: str
    whole: dict[str, bytes]


@dataclass
class Flip:
    """What came of a flip in a file, and where it was."""

    file: str
    outcome: str
    line: str


class Flips:
    """Runs to damage."""

    def __init__(self, state: Torture) -> None:
        self.state, work = state, state.work
        self.runs: dict[str, Damaged] = {}
        for kind, calls in STOPPED:
            out = work / f"stopped-{kind}-{calls}"
            ended = in_process(self._words(kind, out), kill_at_call(calls, signal.SIGKILL))
            if ended.code != -signal.SIGKILL:
                raise SystemExit(f"{out.name}: ended by itself with exit code {ended.code}: {ended.err[-1000:]}")
            self.runs[f"{kind} stopped at call {calls}"] = Damaged(out, kind, state.whole[kind])
        for kind in ("pretrain", "finetune"):
            self.runs[f"{kind} ended"] = Damaged(work / f"whole-{kind}", kind, state.whole[kind])
        out = work / "whole-fit"
        ended = in_process(self._words("fit", out), lambda: None)
        if ended.code:
            raise SystemExit(f"fit: {ended.err[-1000:]}")
        self.runs["fit ended"] = Damaged(out, "fit", leaves(out))
        for name, run in self.runs.items():  # whole, they go on without a word
            copy = Path(shutil.copytree(run.folder, work / "copy"))
            ended = in_process(self._words(run.kind, copy), lambda: None)
            if ended.code or WARNING in ended.err or leaves(copy) != run.whole:
                raise SystemExit(f"{name}: went on with exit code {ended.code}: {ended.err[-1000:]}")
            shutil.rmtree(copy)

    def _words(self, kind: str, out: Path) -> list[str]:
        if kind != "fit":
            return self.state.words(kind, out, "0")
        data, source = self.state.work / "labelled", self.state.work / "whole-pretrain"
        places = ["--data", str(data), "--from", str(source), "--out", str(out)]
        return ["fit", *places, *["--frames", "32", "--stride", "16", "--device", "cpu"]]

    def __call__(self, number: int) -> Flip:
        """One flip."""
        rng = random.Random(f"{self.state.seed} {number}")
        name = rng.choice(list(self.runs))
        run = self.runs[name]
        out = Path(shutil.copytree(run.folder, self.state.work / f"flipped-{number}"))
        path = rng.choice([p for p in sorted(out.rglob("*")) if p.is_file() and p.stat().st_size])
        where = f"{name}: {path.relative_to(out)}, {flip(rng, path)}"
        unread = "tfevents" in path.name and not checksums_fit(path)
        ended = in_process(self._words(run.kind, out), lambda: None)
        outcome, differs = judge(ended, run.whole, out)
        if outcome == "harmless" and unread:
            outcome = "checksum"
        shutil.rmtree(out)
        more = f" (differs: {', '.join(differs)})" if differs else ""
        if outcome == "silent":
            more += f" exit code {ended.code} {ended.err[-800:]}"
        kind = "events.out.tfevents" if "tfevents" in path.name else path.name
        return Flip(kind, outcome, f"{where}: {outcome}{more}")


def judge(ended: Ended, whole: dict[str, bytes], out: Path) -> tuple[str, list[str]]:
    """The outcome, and which files differ from those of an undisturbed run."""
    if "Traceback" in ended.err or ended.code not in (0, 2):
        return "silent", []
    if ended.code == 2:
        return ("refused" if ended.err.strip() else "silent"), []
    try:
        found = leaves(out)
    except Exception as problem:  # a list of digests that cannot be read
        return ("reported" if WARNING in ended.err else "silent"), [repr(problem)]
    differs = sorted(n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n))
    if WARNING in ended.err:
        return ("reported" if differs else "repaired"), differs
    return ("silent" if differs else "harmless"), differs


def flip(rng: random.Random, path: Path) -> str:
    """Flip one bit of a file; where."""
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place:,} of {len(content):,}"


def checksums_fit(path: Path) -> bool:
    """Whether every record of TensorBoard's events has its length's and its content's checksum."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        head = content[place : place + 12]
        if len(head) < 12 or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
            return False
        length = struct.unpack("<Q", head[:8])[0]
        body, check = content[place + 12 : place + 12 + length], content[place + 12 + length : place + 16 + length]
        if len(check) < 4 or struct.unpack("<I", check)[0] != masked_crc32c(body):
            return False
        place += 16 + length
    return True


def flips(
    state: Torture, count: int, jobs: int, say: Callable[[str], None] = lambda line: None
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """So many flips: counts by file and outcome, and a line for each silent one."""
    counts: Counter[tuple[str, str]] = Counter()
    silent = []
    for done, found in enumerate(in_jobs(Flips(state), range(count), jobs), 1):
        counts[found.file, found.outcome] += 1
        if found.outcome == "silent":
            silent.append(found.line)
        say(f"{done} of {count}: {found.line}")
    return counts, silent


def main() -> int:
    """The command line."""
    given, begin = options("flips", __doc__), time.monotonic()
    with prepared(given.seed) as state:
        print(f"seed {given.seed}, prepared in {time.monotonic() - begin:.0f} s", flush=True)
        counts, silent = flips(state, given.flips, given.jobs, lambda line: print(line, flush=True))
    by = Counter[str]()
    for (name, outcome), count in sorted(counts.items()):
        print(f"| {name} | {outcome} | {count} |")
        by[outcome] += count
    for line in silent:
        print(line)
    found = ", ".join(f"{by[x]} {x}" for x in ("refused", "repaired", "reported", "checksum", "harmless", "silent"))
    print(f"{given.flips} flips: {found}; {time.monotonic() - begin:.0f} s with {given.jobs} jobs")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
