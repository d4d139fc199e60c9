"""The known word nearest to a mistyped one."""

from __future__ import annotations

import difflib


def nearest(word: str, known: list[str]) -> str:
    """``", did you mean 'x'?"`` for the closest of the known words, or an empty string."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""
