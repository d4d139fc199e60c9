"""Reading JSON with bounds: size, depth, digits, no key twice; one line for each fault."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import Any

from ssamba.utils.errors import ConfigError, SsambaError
from ssamba.utils.files import read_text
from ssamba.utils.terminal import printable, shorten

SIZE_LIMIT = 16 << 20
"""Most bytes of a JSON file that settings are read from."""
DEPTH_LIMIT = 32
"""Deepest nesting."""
DIGIT_LIMIT = 400
"""Most characters of a number."""


def read_json(path: str | os.PathLike[str], error: type[SsambaError] = ConfigError) -> dict[str, Any]:
    """A JSON object from a file. Raises ``error`` that names the file."""
    return parse_json(read_text(path, SIZE_LIMIT, error, "utf-8-sig"), os.fspath(path), error)


def parse_json(text: str, source: str, error: type[SsambaError] = ConfigError) -> dict[str, Any]:
    """A JSON object from text; ``source`` names it in an error. NaN and infinite numbers are refused."""
    try:
        value = json.loads(
            text,
            parse_int=_whole,
            parse_float=_fraction,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_doubles,
        )
        _check_depth(value)
    except RecursionError:
        raise error(f"{source}: is nested more than {DEPTH_LIMIT} deep") from None
    except ValueError as problem:
        raise error(f"{source}: is not JSON ({printable(str(problem))})") from None
    if not isinstance(value, dict):
        raise error(f"{source}: holds a {type(value).__name__}, expected a JSON object")
    return value


def dump_json(value: Any, indent: int | None = None) -> str:
    """JSON text in which everything stays readable but lone surrogates, the bytes of a name that are no UTF-8: these
    become ``\\udce9``, which every reader of JSON turns back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _whole(digits: str) -> int:
    if len(digits) > DIGIT_LIMIT:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _fraction(digits: str) -> float:
    if len(digits) > DIGIT_LIMIT:
        raise ValueError(f"a number of {len(digits)} characters")
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits} is out of range")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shorten(twice)} stands twice")
    return values


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH_LIMIT + 1):
        level = [
            part
            for outer in level
            for part in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise RecursionError
