"""JAMS, the JSON annotated music specification (https://jams.readthedocs.io): one document for each recording.

Events are observations of the namespace ``tag_open``: time, duration, value and confidence, overlaps allowed. Of other
documents every annotation of a ``tag_`` or ``segment_`` namespace is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ssamba.data.labels.event import Event, LabelRow, RecordingEvents, checked_event
from ssamba.data.labels.event_json import DECIMALS, json_number
from ssamba.utils.errors import DataError

JAMS_VERSION = "0.3.4"
"""Of the schema that is written."""
NAMESPACE = "tag_open"
_NAMESPACES = ("tag_", "segment_")


def read_jams(path: Path, content: Mapping[str, Any]) -> list[LabelRow]:
    """The events of a document. Raises ``DataError`` with file and place for what is no observation."""
    rows = []
    annotations = content["annotations"]
    known = [a for a in annotations if isinstance(a, dict) and str(a.get("namespace")).startswith(_NAMESPACES)]
    if annotations and not known:
        found = ", ".join(sorted({str(a.get("namespace")) for a in annotations if isinstance(a, dict)}))
        raise DataError(f"{path}: has no annotation of a tag or segment namespace (it has: {found}); give tag_open")
    for i, annotation in enumerate(annotations):
        if annotation not in known:
            continue
        data = annotation.get("data")
        if not isinstance(data, list):
            raise DataError(f'{path}: annotations[{i}] has no list "data"; write it by the JAMS schema')
        for j, values in enumerate(data):
            place = f"annotations[{i}].data[{j}]"
            rows.append(LabelRow(_observed(values, f"{path}: {place}"), place))
    return rows


def _observed(values: Any, where: str) -> Event:
    time, duration = json_number(values, "time", where), json_number(values, "duration", where)
    if not isinstance(values.get("value"), str):
        raise DataError(f'{where}: "value" is {values.get("value")!r}; give a text')
    confidence = values.get("confidence")
    score = float(confidence) if isinstance(confidence, (int, float)) else None
    return checked_event(Event(time, time + duration, values["value"].strip(), score), where)


def write_jams(recordings: Sequence[RecordingEvents]) -> str:
    """The document of one recording, by the schema of JAMS."""
    (recording,) = recordings
    seconds = round(recording.seconds, DECIMALS)
    data = [
        {
            "time": round(e.start, DECIMALS),
            "duration": round(e.end - e.start, DECIMALS),
            "value": e.label,
            "confidence": None if e.score is None else round(e.score, DECIMALS),
        }
        for e in recording.events
    ]
    metadata = {
        "curator": {"name": "", "email": ""},
        "annotator": {},
        "version": "",
        "corpus": "",
        "annotation_tools": "ssamba",
        "annotation_rules": "",
        "validation": "",
        "data_source": "automatic" if any(e.score is not None for e in recording.events) else "",
    }
    annotation = {
        "namespace": NAMESPACE,
        "time": 0.0,
        "duration": seconds,
        "annotation_metadata": metadata,
        "data": data,
        "sandbox": dict(recording.details),  # the place for what the schema does not know
    }
    document = {
        "annotations": [annotation],
        "file_metadata": {
            "title": PurePosixPath(recording.path.replace("\\", "/")).name,
            "artist": "",
            "release": "",
            "duration": seconds,
            "identifiers": {},
            "jams_version": JAMS_VERSION,
        },
        "sandbox": {},
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
