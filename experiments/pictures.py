"""The pictures of the documents, each drawn anew from what is in the repository, in the package's one style.

    python experiments/pictures.py NAME ... [--out docs/images] [--scores X.csv]

bench       bench-time.png, bench-memory.png, from docs/benchmarks/h100-inference.csv
forms       forms.png, from dev/logs, the logs of pretraining of dev/RESULTS-LOG.md, "Four forms"
minutes     minutes.png, from the tables of dev/RESULTS-LOG.md
similarity  similarity.png, from the file that ``experiments/similarity.py measure ESC10 --scores X.csv`` writes
views       augmented-views.png, from two sounds that ``ssamba.data.synthetic`` makes
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from augmented_views import draw_views
from minutes import draw_minutes

from ssamba.data.synthetic.generate import synthesise
from ssamba.data.synthetic.sounds import RATE
from ssamba.evaluation.speed.report import NAMES
from ssamba.utils.plots import COLOURS, GRID, BenchLine, bench_picture, figure_file

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "docs" / "benchmarks" / "h100-inference.csv"
LOG = ROOT / "dev" / "RESULTS-LOG.md"
LOGS = ROOT / "dev" / "logs"
FORMS = {
    "tied-alternating-19000": ("tied, alternating: tiny", "-", (6.0, 79.5)),
    "free-alternating-19000": ("free, alternating", "-", (8.2, 72.5)),
    "free-both-11400": ("free, both directions", "-", (6.3, 65.5)),
    "tied-alternating-11400": ("tied, alternating, fewer steps", "--", (1.1, 76.5)),
    "ssast-compiled-12317": ("SSAST, compiled", "-", (3.3, 55.0)),
}
"""Logs of pretraining: what the run is called, its line, and where its name stands (minutes, per cent)."""


def rows(path: Path) -> list[dict[str, str]]:
    """A table with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def bench(out: Path, _: Path | None) -> None:
    """Time and memory of a pass against the number of tokens."""
    table = rows(BENCH)
    first = table[0]
    title = f"Inference, batch {first['batch']}, {first['dtype']}, {first['device']}"
    for name, column, label in (
        ("bench-time", "milliseconds", "milliseconds"),
        ("bench-memory", "mebibytes", "MiB beyond weights and input"),
    ):
        lines: dict[str, list[BenchLine]] = {}
        for size in dict.fromkeys(row["size"] for row in table):
            for model in dict.fromkeys(row["model"] for row in table):
                ours = [row for row in table if (row["size"], row["model"]) == (size, model)]
                points = [(int(row["tokens"]), float(row[column])) for row in ours if row[column]]
                failed = [(int(row["tokens"]), row["status"]) for row in ours if row["status"]]
                line = BenchLine(NAMES[model], points, failed[0] if failed else None)
                lines.setdefault(size, []).append(line)
        bench_picture(lines, out / f"{name}.png", title, label)


def similarity(out: Path, scores: Path | None) -> None:
    """How scores of degraded copies and of other recordings are distributed."""
    if scores is None:
        raise SystemExit("similarity: give --scores X.csv")
    table = rows(scores)
    left = np.array([float(row["from"]) for row in table])
    width = float(table[0]["to"]) - left[0]
    with figure_file(out / "similarity.png", 8, 4) as figure:
        panel = figure.subplots()
        for column, name, colour, at in (
            ("other_recordings", "clips of other recordings", COLOURS[0], (0.02, 6)),
            ("copies", "degraded copies", COLOURS[3], (0.985, 45)),
        ):
            counts = np.array([float(row[column]) for row in table])
            shares = 100 * counts / counts.sum()
            panel.stairs(shares, [*left, left[-1] + width], fill=True, alpha=0.6, color=colour)
            align = "left" if at[0] < 0.5 else "right"
            panel.text(*at, name, color=colour, ha=align, va="bottom", fontsize=11)
        panel.set(xlabel="score of the best alignment", ylabel="share of the pairs in % (log scale)", yscale="log")
        panel.set(xlim=(-0.05, 1), ylim=(5e-5, 200))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(True, axis="y", **GRID)
        panel.set_axisbelow(True)
        panel.set_title("ESC-10: each copy against its clip, and against the clips of other recordings")


def views(out: Path, _: Path | None) -> None:
    """What the changes of pretraining make of a made-up siren, a made-up vowel mixed in last."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{label}.wav" for label in ("siren", "vowel")]
        for path in paths:
            soundfile.write(path, synthesise(path.stem, 2.8, seed=3), RATE)
        draw_views(*paths, out / "augmented-views.png")


def minutes(out: Path, _: Path | None) -> None:
    """Accuracy of the compared models of the log."""
    draw_minutes(LOG, out / "minutes.png")


def forms(out: Path, _: Path | None) -> None:
    """Masked patches of held-out files identified during pretraining, against minutes of one GPU."""
    with figure_file(out / "forms.png", 8, 4.5) as figure:
        panel = figure.subplots()
        for (name, (label, line, at)), colour in zip(FORMS.items(), COLOURS, strict=False):
            known = [row for row in rows(LOGS / f"{name}.csv") if row["val_accuracy"]]
            points = [(float(row["seconds"]) / 60, 100 * float(row["val_accuracy"])) for row in known]
            panel.plot(*zip(*points, strict=True), line, color=colour, marker=".")
            panel.text(*at, label, color=colour, fontsize=11)
        panel.set(xlabel="minutes of one H200, one run each", ylabel="masked patches identified in %, held-out files")
        panel.set(xlim=(0, 10), ylim=(0, 85))
        panel.grid(True, **GRID)
        panel.set_axisbelow(True)
        panel.set_title("Pretraining of tiny in its forms and of SSAST, with the same audio and options")


PICTURES: dict[str, Callable[[Path, Path | None], None]] = {
    "bench": bench,
    "forms": forms,
    "minutes": minutes,
    "similarity": similarity,
    "views": views,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", choices=PICTURES)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--scores", type=Path, metavar="X.csv", help="of similarity: the distribution of scores")
    given = parser.parse_args()
    for name in given.names:
        PICTURES[name](given.out, given.scores)


if __name__ == "__main__":
    main()
