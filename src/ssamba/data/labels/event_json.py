"""Events as JSON, of any number of recordings (docs/prediction.md has the layout)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssamba.data.labels.event import Event, LabelRow, RecordingEvents, checked_event
from ssamba.utils.errors import DataError

DECIMALS = 6


def read_event_json(path: Path, content: Mapping[str, Any]) -> list[LabelRow]:
    """The events of ``{"files": [{"path": P, "events": [{"start": S, "end": E, "label": L}]}]}``.

    Raises:
        DataError: another layout; names file and place.
    """
    rows = []
    for i, entry in enumerate(content["files"]):
        events = entry.get("events") if isinstance(entry, dict) else None
        if not isinstance(events, list) or not isinstance(entry.get("path"), str):
            raise DataError(f'{path}: files[{i}] has no "path" and list "events"; write them with predict --events')
        for j, values in enumerate(events):
            place = f"files[{i}].events[{j}]"
            event = _event(values, f"{path}: {place}", ("start", "end"))
            rows.append(LabelRow(event, place, entry["path"]))
    return rows


def _event(values: Any, where: str, times: tuple[str, str]) -> Event:
    start, end = (json_number(values, name, where) for name in times)
    label = values.get("label")
    if not isinstance(label, str):
        raise DataError(f'{where}: "label" is {label!r}; give a text')
    score = json_number(values, "score", where) if values.get("score") is not None else None
    return checked_event(Event(start, end, label.strip(), score), where)


def json_number(values: Any, name: str, where: str) -> float:
    """A finite number of a JSON object. Raises ``DataError`` that begins with ``where``."""
    value = values.get(name) if isinstance(values, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise DataError(f'{where}: "{name}" is {value!r}; give a number')
    return float(value)


def write_event_json(recordings: Sequence[RecordingEvents]) -> str:
    """A document of any number of recordings, a line for each, with the first one's ``details`` at its top."""
    entries = []
    for recording in recordings:
        events = [
            {"start": round(e.start, DECIMALS), "end": round(e.end, DECIMALS), "label": e.label}
            | ({} if e.score is None else {"score": round(e.score, DECIMALS)})
            for e in recording.events
        ]
        entry = {"path": recording.path, "seconds": round(recording.seconds, DECIMALS), "events": events}
        entries.append(json.dumps(entry, ensure_ascii=False))
    head = dict(recordings[0].details) if recordings else {}
    first = json.dumps(head, ensure_ascii=False)[:-1]
    return first + (", " if head else "") + '"files": [\n' + ",\n".join(entries) + "\n]}\n"
