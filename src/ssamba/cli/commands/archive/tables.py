"""Rows of paths and numbers on standard output: aligned for a reader, or CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from typing import Any

from ssamba.cli.streams import say, say_lines

SCORE_DECIMALS = 4


def print_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], kind: str) -> None:
    """Print ``rows`` under ``names``; ``kind`` is table, csv or json. Bytes that are no UTF-8 become U+FFFD."""
    cells = [[_plain(value) for value in row] for row in rows]
    if kind == "json":
        say_lines(json.dumps([dict(zip(names, row, strict=True)) for row in cells], ensure_ascii=False, indent=1))
    elif kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *cells])
        say_lines(text.getvalue())
    else:
        _print_table(names, cells)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, SCORE_DECIMALS) + 0.0  # no -0.0
    return os.fsencode(value).decode("utf-8", "replace") if isinstance(value, str) else value


def _cell(value: Any) -> str:
    return f"{round(value, 2) + 0.0:.2f}" if isinstance(value, float) else str(value)  # no -0.00


def _print_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Numbers first, so that long paths leave the columns straight."""
    order = sorted(range(len(names)), key=lambda i: bool(rows) and isinstance(rows[0][i], str))
    lines = [[names[i] for i in order]]
    lines += [[_cell(row[i]) for i in order] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(order))]
    for line in lines:
        numbers = [
            cell.ljust(width) if rows and isinstance(rows[0][i], str) else cell.rjust(width)
            for cell, width, i in zip(line, widths, order, strict=True)
        ]
        say("  ".join(numbers).rstrip())
