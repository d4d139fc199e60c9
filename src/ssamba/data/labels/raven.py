"""Raven's selection tables: tab-separated, with the columns ``Begin Time (s)``, ``End Time (s)`` and a name of yours.

A selection stands in a line for each view (waveform, spectrogram); they are read once. Where several files were open
together, ``Begin Time (s)`` counts over all of them and ``File Offset (s)`` within the file that ``Begin File`` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from ssamba.data.labels.event import Event, LabelRow, RecordingEvents, checked_event
from ssamba.data.labels.text import LabelTable, parse_number, single_line
from ssamba.utils.errors import DataError

RAVEN_START, RAVEN_END = "Begin Time (s)", "End Time (s)"
RAVEN_LABEL = "Annotation"
_LABELS = (
    *(RAVEN_LABEL, "Annotations", "Label", "Labels", "Species", "Common Name", "Species Code", "Class", "Category"),
    *("Tag", "Type", "Call Type", "Call", "Sound", "Sound Type", "Event", "Name", "ID", "Comment", "Comments"),
)
_FILES = ("Begin File", "Begin Path", "File", "Filename")
_SCORES = ("Score", "Confidence")
_HEADER = ("Selection", "View", "Channel", RAVEN_START, RAVEN_END, "Low Freq (Hz)", "High Freq (Hz)", "Begin File")
_OF_RAVEN = (
    *_HEADER,
    *_FILES,
    *_SCORES,
    "File Offset (s)",
    "Delta Time (s)",
    "Delta Freq (Hz)",
    "End File",
    "Begin Clock Time",
)


def is_raven(table: LabelTable) -> bool:
    """Whether a table has Raven's column of begin times."""
    return table.column([RAVEN_START]) is not None


def read_raven(table: LabelTable) -> list[LabelRow]:
    """The selections of a table. Raises ``DataError`` with file and line number for what cannot be read."""
    begin, end, label = table.column([RAVEN_START]), table.column([RAVEN_END]), _label_column(table)
    if begin is None or end is None:
        raise DataError(
            f"{table.path}: has no column {RAVEN_START if begin is None else RAVEN_END}; save the table with it"
        )
    low, high = table.column(["Low Freq (Hz)"]), table.column(["High Freq (Hz)"])
    offset, file, score = table.column(["File Offset (s)"]), table.column(_FILES), table.column(_SCORES)
    rows: dict[tuple[Event, str | None], LabelRow] = {}
    for line, values in table.rows:
        where = f"{table.path}: line {line}"
        start, stop = parse_number(values[begin], where, RAVEN_START), parse_number(values[end], where, RAVEN_END)
        if offset is not None and values[offset]:
            within = parse_number(values[offset], where, "File Offset (s)")
            start, stop = within, within + (stop - start)
        numbers = (
            parse_number(values[column], where, table.columns[column])
            if column is not None and values[column]
            else None
            for column in (score, low, high)
        )
        recording = None
        if file is not None and values[file]:
            recording = PurePosixPath(values[file].replace("\\", "/")).name
        event = checked_event(Event(start, stop, values[label], *numbers), where)
        rows.setdefault((event, recording), LabelRow(event, f"line {line}", recording))
    return list(rows.values())


def _label_column(table: LabelTable) -> int:
    found = table.column(_LABELS)
    if found is not None:
        return found
    known = {name.casefold() for name in _OF_RAVEN}
    others = [i for i, name in enumerate(table.columns) if name.casefold() not in known and "(" not in name]
    if len(others) == 1:
        return others[0]
    columns = ", ".join(table.columns)
    raise DataError(f"{table.path}: has no column of labels (columns: {columns}); name it {RAVEN_LABEL}")


def write_raven(recordings: Sequence[RecordingEvents]) -> str:
    """The selection table of one recording, over all frequencies where an event has none."""
    (recording,) = recordings
    name = PurePosixPath(recording.path.replace("\\", "/")).name
    lines = ["\t".join((*_HEADER, RAVEN_LABEL, "Score"))]
    for number, event in enumerate(recording.events, start=1):
        low = 0.0 if event.low_hz is None else event.low_hz
        high = recording.highest_hz if event.high_hz is None else event.high_hz
        times = (f"{event.start:.6f}", f"{event.end:.6f}", f"{low:.1f}", f"{high:.1f}")
        score = "" if event.score is None else f"{event.score:.6f}"
        lines.append(
            "\t".join((str(number), "Spectrogram 1", "1", *times, single_line(name), single_line(event.label), score))
        )
    return "\n".join(lines) + "\n"
