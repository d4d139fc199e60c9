"""The description of the API (OpenAPI 3.1), written by hand: what is in it is what the tests send and get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssamba import __version__
from ssamba.data.labels.formats import LABEL_FORMATS
from ssamba.serve.http import parameters
from ssamba.serve.options import ServeOptions
from ssamba.utils.device import DTYPES

_KINDS: Mapping[type, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer", "minimum": 1},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    list: {"type": "array", "items": {"type": "string"}},
}
_MEANINGS: Mapping[str, str] = {
    "name": "what messages and answers call the recording; no file is opened by it",
    "frames": "add the embeddings in time",
    "top": "most classes, or recordings, in an answer",
    "every": "scores in time: a row for each stretch of this many seconds",
    "window": "with every: seconds of audio around each stretch's middle",
    "reject": "name no class where a sound is unlike the training sounds",
    "threshold": "name no class with a lower score; events: score with which one begins",
    "events": "stretches with a start and an end instead of scores",
    "low": "events: score down to which one goes on",
    "min_seconds": "events: drop shorter ones",
    "merge_gap": "events: join those of a class so far apart",
    "without": "events: leave out this class",
    "format": f"of labels: {', '.join(LABEL_FORMATS)}",
    "start": "second at which the stretch begins",
    "seconds": "length of the stretch",
    "fast": "match in time only where the vectors of pieces are near",
}
_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_NUMBERS = {"type": "array", "items": _NUMBER}


def _object(properties: Mapping[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def _list(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(item)}


_SCORES = _list(_object({"class": _TEXT, "score": _NUMBER}))
_EVENTS = _list(_object({"start": _NUMBER, "end": _NUMBER, "label": _TEXT, "score": _NUMBER}, ("score",)))
_PLACE = {"path": _TEXT, "seconds": _NUMBER}
_ROW = {"start": _NUMBER, "end": _NUMBER, "unlike": _NUMBER, "scores": _SCORES}
_MATCH = {"recording": {"type": "integer"}, "path": _TEXT, "score": _NUMBER, "offset": _NUMBER}


def _or_null(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], **more}


SCHEMAS: Mapping[str, Any] = {
    "Error": _object({"error": _TEXT}),
    "Embedding": _object(
        {**_PLACE, "embedding": _NUMBERS, "times": _NUMBERS, "frames": _list(_NUMBERS)}, ("times", "frames")
    ),
    "Scores": _object({**_PLACE, "unlike": _NUMBER, "scores": _SCORES}, ("unlike",)),
    "Rows": _object({**_PLACE, "rows": _list(_object(_ROW, ("unlike",)))}),
    "Events": _object({**_PLACE, "events": _EVENTS}),
    "Matches": _object({**_PLACE, "matches": _list(_object(_MATCH))}),
    "Health": _object({"status": {"enum": ["ok", "stopping", "failed"]}}),
    "Info": _object(
        {
            "version": _TEXT,
            "model": _TEXT,
            "dtype": {"enum": list(DTYPES)},
            "sample_rate": {"type": "integer"},
            "window_seconds": _NUMBER,
            "width": {"type": "integer"},
            "classes": _or_null("array", items=_TEXT),
            "multi_label": _or_null("boolean"),
            "every": _or_null("number"),
            "recordings": _or_null("integer"),
            "max_bytes": {"type": "integer"},
            "max_seconds": _NUMBER,
        }
    ),
}
"""Name -> JSON schema of an answer."""

_REASONS: Mapping[int, str] = {
    400: "a parameter that is unknown or out of range, or a form that cannot be read",
    403: "a page of another origin asks",
    404: "there is no such thing here: an index, a classifier, a recording",
    408: "the request did not arrive in time",
    413: "more bytes, or a longer recording, than is taken here",
    415: "no audio, or a format that is not decoded here",
    421: "a Host that is no name of this server",
    422: "a recording that cannot be used: damaged, truncated, too short, empty, silent; or such labels",
    429: "too many requests of this client; Retry-After has the seconds to wait",
    503: "too much to do, or no answer within the time limit; Retry-After has the seconds to wait",
}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": dict(schema)}}


def _responses(content: Mapping[str, Any], text: str) -> dict[str, Any]:
    refused = {
        str(status): {"description": reason, "content": _json(_reference("Error"))}
        for status, reason in _REASONS.items()
    }
    return {"200": {"description": text, "content": dict(content)}, **refused}


def _parameters(known: Mapping[str, type]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "description": _MEANINGS[name], "schema": _KINDS[kind]}
        for name, kind in known.items()
    ]


def _upload(operation: str, summary: str, known: Mapping[str, type], content: Mapping[str, Any]) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"file": binary["schema"]}, "required": ["file"]}}
    body = {"audio/*": binary, "application/octet-stream": binary, "multipart/form-data": form}
    return {
        "post": {
            "operationId": operation,
            "summary": summary,
            "parameters": _parameters(known),
            "requestBody": {"required": True, "content": body},
            "responses": _responses(content, "the answer"),
        }
    }


def _get(operation: str, summary: str, content: Mapping[str, Any], known: Mapping[str, type] | None = None) -> Any:
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "parameters": _parameters(known or {}),
            "responses": _responses(content, "the answer"),
        }
    }


def description(options: ServeOptions) -> dict[str, Any]:
    """The document for a server with these limits."""
    text = {"text/plain": {"schema": _TEXT}, "text/csv": {"schema": _TEXT}}
    answers = {"oneOf": [_reference(name) for name in ("Scores", "Rows", "Events")]}
    play = _get("play", "A stretch of a recording of the index", {"audio/wav": {}}, parameters.STRETCH)
    number = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
    play["get"]["parameters"].insert(0, number)
    labels = {
        "post": {
            "operationId": "labels",
            "summary": "Labels as a label file",
            "parameters": _parameters(parameters.LABELS),
            "requestBody": {"required": True, "content": _json(_reference("Events"))},
            "responses": _responses({**_json({"type": "object"}), **text}, "the label file"),
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ssamba serve",
            "version": __version__,
            "description": f"Up to {options.max_bytes:,} bytes and {options.max_seconds:g} s of audio in a request.",
        },
        "paths": {
            "/embed": _upload("embed", "Embed a recording", parameters.EMBED, _json(_reference("Embedding"))),
            "/predict": _upload("predict", "Classify a recording", parameters.PREDICT, {**_json(answers), **text}),
            "/search": _upload("search", "Find like recordings", parameters.SEARCH, _json(_reference("Matches"))),
            "/labels": labels,
            "/recordings/{number}": play,
            "/info": _get("info", "What this server has", _json(_reference("Info"))),
            "/healthz": _get("health", "Whether requests are taken", _json(_reference("Health"))),
            "/metrics": _get("metrics", "Counters for Prometheus", {"text/plain": {"schema": _TEXT}}),
            "/openapi.json": _get("description", "This document", _json({"type": "object"})),
        },
        "components": {"schemas": dict(SCHEMAS)},
    }
