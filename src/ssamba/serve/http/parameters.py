"""The query of a request as typed values, each mistake in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from ssamba.utils.errors import ConfigError, nearest
from ssamba.utils.terminal import shorten

MAX_QUERY_FIELDS = 200
COMMON: Mapping[str, type] = {"name": str}
"""What every upload may have."""
EMBED: Mapping[str, type] = {**COMMON, "frames": bool}
PREDICT: Mapping[str, type] = {
    **COMMON,
    "top": int,
    "every": float,
    "window": float,
    "reject": bool,
    "threshold": float,
    "events": bool,
    "low": float,
    "min_seconds": float,
    "merge_gap": float,
    "without": list,
    "format": str,
}
SEARCH: Mapping[str, type] = {**COMMON, "top": int, "start": float, "seconds": float, "fast": bool}
STRETCH: Mapping[str, type] = {"start": float, "seconds": float}
LABELS: Mapping[str, type] = {"format": str}


def read_query(query: bytes, known: Mapping[str, type]) -> dict[str, Any]:
    """The parameters of a query that are given. Raises ``ConfigError`` for unknown ones and values of another type."""
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise ConfigError(f"more than {MAX_QUERY_FIELDS} parameters") from None
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name not in known:
            raise ConfigError(f"unknown parameter {shorten(name)}{nearest(name, known)}: give {', '.join(known)}")
        if known[name] is list:
            values.setdefault(name, []).append(text)
        elif name in values:
            raise ConfigError(f"{name} is given twice")
        else:
            values[name] = _value(name, text, known[name])
    return values


def _value(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("0", "1", "false", "true", ""):
            raise ConfigError(f"{name} is {shorten(text)}: give 1 or 0")
        return text.lower() in ("1", "true", "")
    try:
        number = kind(text) if len(text) <= 40 else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name} is {shorten(text)}: give a {'whole ' if kind is int else ''}number")
    return number


def require_count(values: Mapping[str, Any], name: str, default: int | None) -> int | None:
    """A whole number above 0. Raises ``ConfigError``."""
    value = values.get(name, default)
    if value is not None and value < 1:
        raise ConfigError(f"{name} is {value}: give a whole number above 0")
    return None if value is None else int(value)
