"""The known word nearest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the closest of the known words, whatever their case, or an empty string."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)
    return f", did you mean '{folded[close[0]]}'?" if close else ""
