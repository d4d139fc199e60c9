"""Measure how far four everyday calls travel through the source: files, functions, changes of file.

    PYTHONPATH=src python dev/journeys.py [--write docs/architecture.md]

Each journey runs in a separate process, once to fill the caches of compiled kernels and once under a profiler. Counted
are the package's functions in the order of their first call, in all threads; what runs while a module is imported is
left out, and so are lambdas and comprehensions. A change of file ("hop") is a function whose file is not that of the
function before. Threads take turns as they like, so hops vary by a few. ``--write`` puts the table and the lists of
files between the marks of a document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np
import soundfile

BEFORE = {"embed": (26, 141, 80), "python": (19, 93, 48), "pretrain": (48, 296, 162), "finetune": (62, 381, 223)}
"""Files, functions and hops at version 0.1.0."""
MARKS = ("<!-- journeys -->", "<!-- end of journeys -->")
"""Between these, --write renews a document."""
TITLES = {
    "embed": "`ssamba embed FILE` (2 s)",
    "python": "`model.embed(array)` (2 x 25 s)",
    "pretrain": "`ssamba pretrain DIR` (3 steps)",
    "finetune": "`ssamba finetune custom` (2 folds, 1 epoch)",
}


class Measured(NamedTuple):
    """Files in the order of their first call, number of functions, number of changes of file."""

    files: list[str]
    functions: int
    hops: int


class Tracer:
    """Notes each function of the package at its first call."""

    def __init__(self, root: Path):
        self.root = f"{root}{os.sep}"
        self.order: list[CodeType] = []
        self.known: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """What ``sys.setprofile`` calls."""
        code = frame.f_code
        if event != "call" or code in self.known or not code.co_filename.startswith(self.root):
            return
        if code.co_name.startswith("<") or self.importing(frame):
            return
        self.known.add(code)
        self.order.append(code)

    def importing(self, frame: FrameType | None) -> bool:
        """Whether a module of the package is being loaded further up."""
        while frame is not None:
            if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(self.root):
                return True
            frame = frame.f_back
        return False

    def measured(self) -> Measured:
        names = [code.co_filename.removeprefix(self.root).replace(os.sep, "/") for code in self.order]
        hops = sum(one != other for one, other in itertools.pairwise(names))
        return Measured(list(dict.fromkeys(names)), len(names), hops)


def noise(path: Path, seconds: float, seed: int) -> Path:
    """A WAV file of quiet noise."""
    values = np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, values, 16000)
    return path


def command_line(folder: Path, journey: str) -> list[str]:
    """The words of a journey on the command line, and the files that it needs."""
    if journey == "embed":
        return ["embed", str(noise(folder / "clip.wav", 2, 0)), "--out", str(folder / "out.npz")]
    if journey == "pretrain":
        for i in range(8):
            noise(folder / "sounds" / f"{i}.wav", 2.5, i)
        size = ["--width", "16", "--depth", "2", "--frames", "64", "--batch", "4", "--mask", "8", "--workers", "1"]
        return [
            "pretrain",
            str(folder / "sounds"),
            "--out",
            str(folder / "run"),
            *size,
            "--steps",
            "3",
            "--device",
            "cpu",
        ]
    rows = ["path,label,fold"]
    for i in range(8):
        rows.append(f"{noise(folder / f'{i}.wav', 1, i)},{'ab'[i % 2]},{1 + i // 4}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    data = ["--data", str(folder / "labels.csv"), "--out", str(folder / "run"), "--from", "none", "--encoder", "ssamba"]
    size = ["--width", "16", "--depth", "2", "--frames", "96", "--stride", "16", "--epochs", "1", "--batch", "4"]
    return ["finetune", "custom", *data, *size, "--choose", "last", "--workers", "1", "--device", "cpu"]


def traced(journey: str, folder: Path) -> Measured:
    """Go one journey in this process, under the profiler."""
    import ssamba

    tracer = Tracer(Path(ssamba.__file__).parent)
    if journey == "python":
        model = ssamba.load(device="cpu")
        audio = np.random.default_rng(0).normal(0, 0.1, (2, 25 * 16000)).astype(np.float32)

        def go() -> object:
            return model.embed(audio, 16000)
    else:
        words = command_line(folder, journey)
        main = entry()

        def go() -> object:
            return main(words)

    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        code = go()
    finally:
        sys.setprofile(None)
    assert code == 0 or journey == "python", f"{journey}: exit code {code}"
    return tracer.measured()


def entry() -> Any:
    """The function behind the command ``ssamba``."""
    from importlib import metadata

    (point,) = (p for p in metadata.entry_points(group="console_scripts") if p.name == "ssamba")
    try:
        return point.load()
    except (ImportError, AttributeError):  # installed from another tree than the one that is measured
        from ssamba.cli.main import main

        return main


def measure(journey: str) -> Measured:
    """Go one journey twice, in processes of their own, and measure the second."""
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", journey, "--folder", folder]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise SystemExit(f"{journey}: {result.stderr.strip()[-1000:]}")
    return Measured(**json.loads(result.stdout.splitlines()[-1]))


def listed(files: list[str]) -> str:
    """The files in their order as a numbered list, a line for each stretch in one folder of the package."""
    lines = []
    stretches = itertools.groupby(files, key=lambda name: name.partition("/")[0])
    for number, (folder, names) in enumerate(stretches, start=1):
        inside = [name.removeprefix(f"{folder}/").removesuffix(".py") for name in names]
        lines.append(f"{number}. **{folder.removesuffix('.py')}**: {', '.join(inside)}")
    return "\n".join(lines)


def text_of(found: dict[str, Measured]) -> str:
    """The table, and a list for each journey."""
    rows = ["| call | files | functions | changes of file | at 0.1.0 |", "|---|---|---|---|---|"]
    parts = []
    for journey, measured in found.items():
        before = ", ".join(map(str, BEFORE[journey]))
        title = TITLES[journey]
        rows.append(f"| {title} | {len(measured.files)} | {measured.functions} | {measured.hops} | {before} |")
        parts.append(f"{title}:\n\n{listed(measured.files)}")
    return "\n\n".join(["\n".join(rows), *parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a document to renew between its marks")
    parser.add_argument("--only", choices=TITLES, nargs="+", default=list(TITLES), help="these journeys")
    parser.add_argument("--one", choices=TITLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(traced(arguments.one, arguments.folder)._asdict()))
        return
    text = text_of({journey: measure(journey) for journey in arguments.only})
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        first, last = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
        arguments.write.write_text(f"{page[:first]}\n{text}\n{page[last:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
