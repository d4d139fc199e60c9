"""Draw dev/RESULTS-LOG.md's tables of probed and fine-tuned models: accuracy against GPU minutes of pretraining.

    python experiments/minutes.py dev/RESULTS-LOG.md docs/images/minutes.png

Reads every table with a column "steps, GPU minutes"; each stands for one way of pretraining, named by its heading.
SSAMBA are circles, SSAST squares; rows without minutes (random weights, log-mel) are left out.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt

from ssamba.utils.plots import COLOURS

MINUTES = "steps, GPU minutes"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Row(NamedTuple):
    """A model of a table: its heading, its name, minutes, and percent by column (None where there is none)."""

    heading: str
    model: str
    minutes: float
    values: dict[str, float | None]


def rows(text: str) -> list[Row]:
    """The tables' rows that have minutes, in the page's order."""
    found, heading, columns = [], "", []
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip()
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if MINUTES in cells:
            columns = cells
        elif not cells:
            columns = []
        elif columns and (minutes := re.match(r"[\d,]+, (\d+(?:\.\d+)?)", cells[1])):
            values = {
                name: float(m[0]) if (m := NUMBER.match(cell)) else None
                for name, cell in zip(columns, cells, strict=True)
            }
            found.append(Row(heading, cells[0], float(minutes[1]), {name: values[name] for name in columns[2:]}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    found = rows(arguments.page.read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{arguments.page}: has no table with a column '{MINUTES}'")
    names, headings = list(found[0].values), list(dict.fromkeys(row.heading for row in found))
    figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 3.8), layout="constrained")
    for ax, name in zip(axes, names, strict=True):
        for row in found:
            value, colour = row.values[name], COLOURS[headings.index(row.heading) % len(COLOURS)]
            if value is not None:
                mark = "s" if row.model.startswith("SSAST") else "o"
                ax.plot(row.minutes, value, mark, ms=7, color=colour, mfc=colour if mark == "o" else "white")
        ax.set_title(name, loc="left", fontsize=10)
        ax.set(xlabel="GPU minutes", xlim=(0, None))
        ax.grid(alpha=0.3)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[0].set_ylabel("accuracy, %")
    marks = [plt.Line2D([], [], ls="", marker="o", ms=7, color=COLOURS[i % len(COLOURS)]) for i in range(len(headings))]
    kinds = [plt.Line2D([], [], ls="", marker=m, ms=7, color="grey", mfc=f) for m, f in (("o", "grey"), ("s", "white"))]
    labels = [heading[:1].upper() + heading[1:] for heading in headings]
    figure.legend(
        [*marks, *kinds], [*labels, "SSAMBA", "SSAST"], loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
