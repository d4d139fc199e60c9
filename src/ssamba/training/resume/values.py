"""A checked reader for values that a run has stored: one line for what is missing or of another kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ssamba.utils.errors import CheckpointError
from ssamba.utils.terminal import shorten

LARGEST_VALUE = 1e300
"""Largest number of a state: what is larger no run has written."""


class StoredValues:
    """Values of a JSON object, by key. Every reader raises ``CheckpointError`` that names file, key and value.

    Args:
        values: the object.
        source: the file that holds it.
    """

    def __init__(self, values: Any, source: str) -> None:
        self.source = source
        self.values: Mapping[str, Any] = values if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            raise self._bad("it holds", values, "an object")

    def whole(self, key: str, at_least: int = 0) -> int:
        """A whole number."""
        value = self._get(key)
        if type(value) is not int or value < at_least:
            raise self._bad(key, value, f"a whole number from {at_least} on")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_VALUE:
            raise self._bad(key, value, "a number")
        return value

    def number_or_nan(self, key: str) -> float:
        """A finite number, or NaN for null."""
        return math.nan if self._get(key) is None else self.number(key)

    def numbers(self, key: str) -> dict[str, float]:
        """Named finite numbers."""
        inner = self.inside(key)
        return {name: inner.number(name) for name in inner.values}

    def inside(self, key: str) -> StoredValues:
        """The object of that key."""
        value = self._get(key)
        if not isinstance(value, dict):
            raise self._bad(key, value, "an object")
        return StoredValues(value, self.source)

    def _get(self, key: str) -> Any:
        if key not in self.values:
            raise CheckpointError(
                f"{self.source}: is damaged (it holds no {key}); restore it from a copy or choose another --out"
            )
        return self.values[key]

    def _bad(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: is damaged ({key} {shorten(value)}, expected {wanted}); restore it from a copy or choose "
            "another --out"
        )
