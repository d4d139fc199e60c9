r"""Audacity's label tracks: ``start <tab> end <tab> label`` in each line, without names of columns.

A line ``\ <tab> low <tab> high`` after a label gives its frequencies in Hz (-1 where none was chosen). Labels of one
point in time have equal start and end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.labels.event import Event, LabelRow, RecordingEvents, checked_event
from ssamba.data.labels.text import NUMBER, parse_number, single_line, text_lines
from ssamba.utils.errors import DataError

_LINE = {d: re.compile(rf"\s*{NUMBER}\s*{d}\s*{NUMBER}\s*(?:{d}.*)?") for d in ("\t", ";", ",")}
_COMMA_POINT = re.compile(r"\s*[-+]?\d+(?:\.\d*)?\s*,\s*[-+]?\d+(?:\.\d*)?\s*(?:,.*)?")


def audacity_delimiter(text: str) -> str | None:
    """What separates the values of a label track's first line, or None for other text."""
    first = next((line for line in text_lines(text) if line.strip()), "")
    if _LINE["\t"].fullmatch(first):
        return "\t"
    if _LINE[";"].fullmatch(first):
        return ";"
    return "," if _COMMA_POINT.fullmatch(first) else None


def read_audacity(path: Path, text: str) -> list[LabelRow]:
    """The labels of a track. Raises ``DataError`` with file and line number for a line that is none."""
    delimiter = audacity_delimiter(text) or "\t"
    rows: list[LabelRow] = []
    for number, line in enumerate(text_lines(text), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        values = line.split(delimiter, 2)
        if line.startswith("\\"):
            rows = _with_frequencies(rows, values[1:], where)
            continue
        if len(values) < 2:
            raise DataError(f"{where} is {line.strip()!r}; give start, end and label, separated by tabs")
        start, end = parse_number(values[0], where, "start"), parse_number(values[1], where, "end")
        label = values[2].strip() if len(values) > 2 else ""
        rows.append(LabelRow(checked_event(Event(start, end, label), where), f"line {number}"))
    return rows


def _with_frequencies(rows: list[LabelRow], values: Sequence[str], where: str) -> list[LabelRow]:
    if not rows or len(values) != 2:
        raise DataError(
            f"{where} begins with a backslash; give low and high Hz of the label in the line above, or remove it"
        )
    low, high = (
        parse_number(value, where, meaning) for value, meaning in zip(values, ("low Hz", "high Hz"), strict=True)
    )
    event = rows[-1].event
    known = Event(
        event.start, event.end, event.label, event.score, low if low >= 0 else None, high if high >= 0 else None
    )
    return [*rows[:-1], LabelRow(known, rows[-1].where)]


def write_audacity(recordings: Sequence[RecordingEvents]) -> str:
    """The label track of one recording; scores have no place in it."""
    (recording,) = recordings
    lines = []
    for event in recording.events:
        lines.append(f"{event.start:.6f}\t{event.end:.6f}\t{single_line(event.label)}\n")
        if event.low_hz is not None or event.high_hz is not None:
            low, high = (-1.0 if hz is None else hz for hz in (event.low_hz, event.high_hz))
            lines.append(f"\\\t{low:.6f}\t{high:.6f}\n")
    return "".join(lines)
