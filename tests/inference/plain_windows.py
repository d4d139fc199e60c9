"""The rule for windows of long recordings, in its plain form."""

from __future__ import annotations


def window_starts(n_columns: int, window: int) -> list[int]:
    """First columns of half-overlapping windows that cover ``n_columns``; the last one ends with the recording."""
    if n_columns <= window:
        return [0]
    last, hop = n_columns - window, max(window // 2, 1)
    return [*range(0, last, hop), last]
