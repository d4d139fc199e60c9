"""Answers as what JSON holds, in the layout of the files that the commands write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.data.labels.event import Event, RecordingEvents
from ssamba.data.labels.event_json import read_event_json
from ssamba.data.labels.formats import LABEL_FORMATS
from ssamba.inference.outputs.score_writers import DIGITS, json_row
from ssamba.inference.predict import Prediction
from ssamba.inference.search.query import Match
from ssamba.serve.engine import Embedded
from ssamba.serve.http.body import plain_name
from ssamba.utils.errors import ConfigError, DataError, nearest
from ssamba.utils.json_text import parse_json

DEFAULT_FORMAT = "json"
TEXT_TYPES: Mapping[str, str] = {"json": "application/json", "jams": "application/json", "csv": "text/csv"}
"""Content types of label files, text/plain where there is none."""


def embedding_answer(name: str, seconds: float, embeddings: Embedded, frames: bool) -> dict[str, Any]:
    """The clip embedding; with ``frames`` also those in time and the second at the centre of each."""
    answer: dict[str, Any] = {"path": name, "seconds": round(seconds, DIGITS)}
    answer["embedding"] = shortest(embeddings.clip.float().numpy())
    if frames:
        answer["times"] = [round(second, DIGITS) for second in embeddings.times.double().tolist()]
        answer["frames"] = shortest(embeddings.frames.float().numpy())
    return answer


def shortest(values: np.ndarray) -> Any:
    """float32 values as the shortest decimals that give them back, in lists."""
    return values.astype(np.float32).astype("U32").astype(np.float64).tolist()


def prediction_answer(name: str, prediction: Prediction, in_time: bool) -> dict[str, Any]:
    """Scores of the whole recording, or rows of them in time."""
    answer: dict[str, Any] = {"path": name, "seconds": round(prediction.seconds, DIGITS)}
    rows = [json_row(prediction, row) for row in range(len(prediction.scores))]
    if not in_time:
        return answer | rows[0]
    spans = [(round(start, DIGITS), round(end, DIGITS)) for start, end in prediction.spans.tolist()]
    return answer | {"rows": [{"start": s, "end": e, **row} for (s, e), row in zip(spans, rows, strict=True)]}


def event_answer(name: str, prediction: Prediction, events: Sequence[Event]) -> dict[str, Any]:
    """Events of a recording."""
    found = [
        {
            "start": round(e.start, DIGITS),
            "end": round(e.end, DIGITS),
            "label": e.label,
            "score": round(e.score, DIGITS),
        }
        for e in events
        if e.score is not None
    ]
    return {"path": name, "seconds": round(prediction.seconds, DIGITS), "events": found}


def match_answer(name: str, seconds: float, found: Sequence[Match], numbers: Mapping[str, int], top: str) -> Any:
    """Recordings of the index, by number, with their paths below the folder ``top`` that holds all of them."""
    matches = [
        {
            "recording": numbers[match.path],
            "path": below(match.path, top),
            "score": round(match.score, DIGITS),
            "offset": round(match.offset, DIGITS) + 0.0,
        }
        for match in found
    ]
    return {"path": name, "seconds": round(seconds, DIGITS), "matches": matches}


def below(path: str, top: str) -> str:
    """A path from the folder ``top`` on; bytes that are no UTF-8 become U+FFFD."""
    inner = path[len(top) :].lstrip("/\\") if path.startswith(top) else path
    return inner.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def label_format(name: str) -> str:
    """A name of ``LABEL_FORMATS``. Raises ``ConfigError`` for another."""
    if name not in LABEL_FORMATS:
        raise ConfigError(f"format is '{name}'{nearest(name, LABEL_FORMATS)}: give {', '.join(LABEL_FORMATS)}")
    return name


def label_text(recording: RecordingEvents, format: str) -> str:
    """A label file's text."""
    return LABEL_FORMATS[label_format(format)].write([recording])


def label_type(format: str) -> str:
    """Its content type."""
    return f"{TEXT_TYPES.get(format, 'text/plain')}; charset=utf-8"


def read_labels(body: bytes, highest_hz: float) -> RecordingEvents:
    """Labels that a client sends, as ``{"path": P, "seconds": S, "events": [{"start", "end", "label", "score"?}]}``.

    Raises ``DataError`` that names the place for another layout and for what can be no label.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError("labels: are not UTF-8") from None
    values = parse_json(text, "labels", DataError)
    seconds = values.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
        raise DataError('labels: "seconds" is missing or no length: give that of the recording')
    rows = read_event_json(Path("labels"), {"files": [values]})
    name = plain_name(values["path"])
    late = next((row for row in rows if row.event.end > seconds + 1e-3), None)
    if late is not None:
        raise DataError(f"labels: {late.where} ends at {late.event.end:g} s, after the recording's {seconds:g} s")
    events = tuple(sorted((row.event for row in rows), key=lambda event: (event.start, event.end)))
    return RecordingEvents(name, float(seconds), events, highest_hz)
