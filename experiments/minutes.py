"""Draw dev/RESULTS-LOG.md's tables of probed and fine-tuned models: accuracy against GPU minutes of pretraining.

    python experiments/minutes.py dev/RESULTS-LOG.md docs/images/minutes.png

Reads every table with a column "steps, GPU minutes"; each stands for one way of pretraining, named by its heading.
SSAMBA are filled circles, SSAST open squares; axes that do not begin at 0 are marked as broken. Rows without minutes
(random weights, log-mel) are left out.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from ssamba.utils.plots import COLOURS, GRID, broken_axis, figure_file

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


def draw_minutes(page: Path, out: Path) -> None:
    """Draw the tables of ``page``: a row for each model under its table's heading, a panel for each measure."""
    found = rows(page.read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{page}: has no table with a column '{MINUTES}'")
    names, headings = list(found[0].values), list(dict.fromkeys(row.heading for row in found))
    places, ticks, y = [], [], 0.0
    for heading in headings:
        ticks.append((y, heading[:1].upper() + heading[1:], True))
        for row in (row for row in found if row.heading == heading):
            y += 1
            places.append((y, row))
            ticks.append((y, f"{row.model}, {row.minutes:g} min", False))
        y += 1.4
    with figure_file(out, 4.2 + 2.1 * len(names), 0.8 + 0.27 * y) as figure:
        panels = figure.subplots(1, len(names), sharey=True)
        for panel, name in zip(panels, names, strict=True):
            for at, row in places:
                value, ours = row.values[name], not row.model.startswith("SSAST")
                if value is not None:
                    look = {"color": COLOURS[0], "mfc": COLOURS[0] if ours else "white"}
                    panel.plot(value, at, "o" if ours else "s", ms=7, **look)
            panel.set_title(name)
            panel.set_xlabel("accuracy (%)")
            panel.grid(True, **GRID)
            panel.set_axisbelow(True)
            panel.margins(x=0.14)
            low, high = panel.get_xlim()
            inside = MaxNLocator(5, integer=True, min_n_ticks=3).tick_values(low, high)
            panel.set_xticks([tick for tick in inside if low + 0.13 * (high - low) < tick < high])  # right of the break
            panel.set_xlim(low, high)
            broken_axis(panel)
        panels[0].set_yticks([at for at, _, _ in ticks], [text for _, text, _ in ticks], fontsize=9.5)
        for label, (_, _, is_heading) in zip(panels[0].get_yticklabels(), ticks, strict=True):
            label.set_fontweight("bold" if is_heading else "normal")
        panels[0].set_ylim(y - 0.8, -0.7)
        for panel in panels:
            panel.tick_params(axis="y", length=0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    draw_minutes(arguments.page, arguments.out)


if __name__ == "__main__":
    main()
