"""Flips single bits in the files of real runs, lets the runs go on, and counts what came of it.

    python tests/torture/flips.py --flips 200 --seed 1

A flip is detected when the command ends with exit code 2 or says on stderr which file is damaged; harmless when all
that the run leaves is, bit by bit, what an undisturbed run leaves (times left out); else it is silent. Runs are a
pretraining that was stopped, and fine-tunings that were stopped or had ended. Files are drawn evenly, and bits evenly
within a file. Not flipped: TensorBoard's events and the picture, whose formats have checksums; and, of fine-tunings
that have ended, log.csv, state.json and config.json of the folds, which nothing covers once the states are gone.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rounds import Torture, in_process, kill_at_call, leaves

LEFT_OUT = (".png",)


def flippable(folder: Path) -> list[Path]:
    """The files of a run, in order."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    return [p for p in files if "tfevents" not in p.name and p.suffix not in LEFT_OUT and not p.name.startswith(".")]


def stopped_runs(state: Torture) -> dict[str, tuple[str, Path]]:
    """Runs to damage: kind of command and folder by name."""
    runs = {}
    for name, kind, calls in (("pretrain, stopped", "pretrain", 150), ("finetune, stopped", "finetune", 260)):
        out = state.work / name.replace(", ", "-")
        ended = in_process(state.words(kind, out, "0"), kill_at_call(calls, signal.SIGKILL))
        if ended.code != -signal.SIGKILL:
            raise SystemExit(f"{name}: ended by itself with exit code {ended.code}: {ended.err[-1000:]}")
        runs[name] = (kind, out)
    runs["finetune, ended"] = ("finetune", state.work / "whole-finetune")
    return runs


def flip(rng: random.Random, path: Path) -> str:
    """Flip one bit of a file; where."""
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place:,} of {len(content):,}"


def flips(
    count: int, seed: int, say: Callable[[str], None] = lambda line: None
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """So many flips: counts by file and outcome, and a line for each silent one."""
    counts: Counter[tuple[str, str]] = Counter()
    silent = []
    with tempfile.TemporaryDirectory(prefix="ssamba-flips-") as work:
        state = Torture(Path(work), seed)
        state.prepare()
        runs = stopped_runs(state)
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            name = rng.choice(list(runs))
            kind, source = runs[name]
            out = Path(shutil.copytree(source, state.work / "flipped"))
            files = flippable(out)
            if name == "finetune, ended":
                files = [p for p in files if p.parent == out or p.name not in ("log.csv", "state.json", "config.json")]
            path = rng.choice(files)
            where = f"{name}: {path.relative_to(out)}, {flip(rng, path)}"
            ended = in_process(state.words(kind, out, "0"), lambda: None)
            found, whole = leaves(out), state.whole[kind]
            names = sorted(n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n))
            if "Traceback" in ended.err or ended.code not in (0, 2):
                outcome = "silent"
                silent.append(f"{where}: exit code {ended.code}, {ended.err[-800:]}")
            elif ended.code == 2 or "ssamba: warning: " in ended.err:
                outcome = "detected"
            elif not names:
                outcome = "harmless"
            else:
                outcome = "silent"
                silent.append(f"{where}: differs in {', '.join(names)}")
            counts[path.name, outcome] += 1
            say(f"{number + 1}: {where}: {outcome}")
            shutil.rmtree(out)
    return counts, silent


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts, silent = flips(options.flips, options.seed, lambda line: print(line, flush=True))
    for (name, outcome), count in sorted(counts.items()):
        print(f"| {name} | {outcome} | {count} |")
    by = Counter[str]()
    for (_, outcome), count in counts.items():
        by[outcome] += count
    print(f"{options.flips} flips: {by['detected']} detected, {by['harmless']} harmless, {by['silent']} silent")
    for line in silent:
        print(line)
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
