"""The formats of label files: which there are, and which one a file is, by its content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssamba.data.labels.audacity import audacity_delimiter, read_audacity, write_audacity
from ssamba.data.labels.event import LabelRow, RecordingEvents
from ssamba.data.labels.event_json import read_event_json, write_event_json
from ssamba.data.labels.jams import read_jams, write_jams
from ssamba.data.labels.raven import is_raven, read_raven, write_raven
from ssamba.data.labels.table import is_event_table, read_event_table, write_event_table
from ssamba.data.labels.text import LabelTable, parse_table, read_label_text
from ssamba.utils.errors import DataError
from ssamba.utils.json_text import parse_json

LABEL_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jams")
"""Endings of files that may hold labels."""
SIDECAR_SUFFIX = ".provenance.json"
"""What the name of a table as text gets for the file next to it, which holds no labels: CSV has no other place."""


class LabelFormat(NamedTuple):
    """A format that events are written in.

    Attributes:
        suffix: of the file of one recording, behind the recording's name.
        write: events of recordings -> text.
        several: whether one file may hold several recordings.
    """

    suffix: str
    write: Callable[[Sequence[RecordingEvents]], str]
    several: bool = False


LABEL_FORMATS: Mapping[str, LabelFormat] = {
    "audacity": LabelFormat(".txt", write_audacity),
    "raven": LabelFormat(".selections.txt", write_raven),
    "csv": LabelFormat(".csv", write_event_table, several=True),
    "json": LabelFormat(".json", write_event_json, several=True),
    "jams": LabelFormat(".jams", write_jams),
}
"""Name -> format."""


def read_label_file(path: Path) -> list[LabelRow]:
    """The labels of a file in any of :data:`LABEL_FORMATS`, in its order; none for an empty file.

    Raises:
        DataError: none of the formats, or what its reader finds; names the file, and the line where it is one.
    """
    text = read_label_text(path)
    rows = _recognised(path, text)
    if rows is None:
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        raise DataError(
            f"{path}: begins with {first[:60]!r}, which is neither an Audacity label track, a Raven selection table, "
            "a table with the columns start, end and label, nor JSON or JAMS; export the labels in one of these"
        )
    return rows


def is_label_file(path: Path) -> bool:
    """Whether a file holds labels with times, by its content; damaged ones may pass."""
    if path.suffix.lower() not in LABEL_SUFFIXES:
        return False
    try:
        text = read_label_text(path)
        if _is_json(text):
            return _json_reader(parse_json(text, str(path), DataError)) is not None
        return audacity_delimiter(text) is not None or _table_reader(parse_table(path, text)) is not None
    except DataError:
        return False


def _recognised(path: Path, text: str) -> list[LabelRow] | None:
    if not text.strip():
        return []
    if _is_json(text):
        content = parse_json(text, str(path), DataError)
        from_json = _json_reader(content)
        return None if from_json is None else from_json(path, content)
    if audacity_delimiter(text) is not None:
        return read_audacity(path, text)
    table = parse_table(path, text)
    from_table = _table_reader(table)
    return None if from_table is None else from_table(table)


def _is_json(text: str) -> bool:
    return text.lstrip().startswith("{")


def _json_reader(content: Mapping[str, Any]) -> Callable[[Path, Mapping[str, Any]], list[LabelRow]] | None:
    if isinstance(content.get("annotations"), list):
        return read_jams
    files = content.get("files")
    of_events = isinstance(files, list) and all(isinstance(f, dict) and "events" in f for f in files)
    return read_event_json if of_events else None


def _table_reader(table: LabelTable) -> Callable[[LabelTable], list[LabelRow]] | None:
    if is_raven(table):
        return read_raven
    return read_event_table if is_event_table(table.columns) else None
