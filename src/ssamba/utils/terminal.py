"""Text that others wrote (names of files, labels, values), made fit for a terminal and for one line."""

from __future__ import annotations

import logging
import re
import unicodedata

_ESCAPED_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
SHORT = 80
"""Most characters of a foreign value in an error message."""


def printable(text: str) -> str:
    """``text`` with every character escaped that could move the cursor, hide or reorder text, or not be encoded.

    Control and format characters (ESC, BEL, direction marks), line separators and lone surrogates (bytes of a file name
    that are not UTF-8) become ``\\x1b``, ``\\u202e``, ``\\udce9``. Everything else stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _ESCAPED_CATEGORIES else c for c in text)


def printable_lines(text: str) -> str:
    """:func:`printable`, but line ends and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def one_line(text: str) -> str:
    """``text`` as one printable line: a line end, with the blanks around it, becomes one blank."""
    return printable(re.sub(r"\s*[\r\n]+\s*", " ", text).strip())


def note(line: str) -> None:
    """A line for the user about something that went on: a warning of the logger ``ssamba``."""
    logging.getLogger("ssamba").warning("%s", printable(line))


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: ``90 s``, ``10 min``, ``2.2 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def shorten(value: object, limit: int = SHORT) -> str:
    """``repr`` of a foreign value in at most ``limit`` characters, without writing out a huge one first."""
    if isinstance(value, str):
        text = repr(value[: limit + 1])
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        text = f"a number of about {value.bit_length() * 3 // 10} digits"
    elif isinstance(value, (list, tuple, set, dict)):
        text = f"{type(value).__name__} of {len(value)}" if _is_large(value, limit) else repr(value)
    else:
        text = repr(value)
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _is_large(value: object, budget: int) -> bool:
    """Whether a nested value has more than ``budget`` parts; stops counting there."""
    pending, seen = [value], 0
    while pending:
        part = pending.pop()
        seen += 1
        if seen > budget or (isinstance(part, int) and part.bit_length() > 256):
            return True
        if isinstance(part, dict):
            pending += [*part.keys(), *part.values()][: budget + 1]
        elif isinstance(part, (list, tuple, set)):
            pending += list(part)[: budget + 1]
    return False


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
