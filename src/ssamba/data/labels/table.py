"""Tables of events: CSV or TSV with the columns start, end and label, and a path where several recordings share one."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from ssamba.data.labels.event import Event, LabelRow, RecordingEvents, checked_event
from ssamba.data.labels.text import LabelTable, parse_number
from ssamba.data.manifest import LABEL_COLUMNS, PATH_COLUMNS
from ssamba.utils.errors import DataError

START_COLUMNS = ("start", "start_s", "start (s)", "start_time", "begin", "begin_s", "onset")
END_COLUMNS = ("end", "end_s", "end (s)", "end_time", "stop", "offset")
_LABELS = (*LABEL_COLUMNS, "event_label", "event", "species", "name", "tag")
_PATHS = (*PATH_COLUMNS, "recording", "audio")
_SCORES = ("score", "confidence")


def is_event_table(columns: Sequence[str]) -> bool:
    """Whether a table with these columns has times: a start and an end."""
    folded = {column.strip().casefold() for column in columns}
    return bool(folded & set(START_COLUMNS) and folded & set(END_COLUMNS))


def read_event_table(table: LabelTable) -> list[LabelRow]:
    """The events of a table. Raises ``DataError`` with file and line number for what cannot be read."""
    start, end, label = table.column(START_COLUMNS), table.column(END_COLUMNS), table.column(_LABELS)
    path, score = table.column(_PATHS), table.column(_SCORES)
    for column, name in ((start, "start"), (end, "end"), (label, "label")):
        if column is None:
            raise DataError(f"{table.path}: has no column {name} (columns: {', '.join(table.columns)}); add it")
    assert start is not None
    assert end is not None
    assert label is not None
    rows = []
    for line, values in table.rows:
        where = f"{table.path}: line {line}"
        known = parse_number(values[score], where, "score") if score is not None and values[score] else None
        event = Event(
            parse_number(values[start], where, "start"), parse_number(values[end], where, "end"), values[label], known
        )
        if path is not None and not values[path]:
            raise DataError(f"{where}: the column {table.columns[path]} is empty; name the recording")
        rows.append(LabelRow(checked_event(event, where), f"line {line}", values[path] if path is not None else None))
    return rows


def write_event_table(recordings: Sequence[RecordingEvents]) -> str:
    """CSV of any number of recordings: path, start, end, label, score."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(("path", "start", "end", "label", "score"))
    for recording in recordings:
        for event in recording.events:
            score = "" if event.score is None else f"{event.score:.6f}"
            writer.writerow((recording.path, f"{event.start:.6f}", f"{event.end:.6f}", event.label, score))
    return file.getvalue()
