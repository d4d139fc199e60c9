"""User-facing errors: one line each, with the fix.

Everything derived from :class:`SsambaError` carries a message that names the file, the offending value and the fix.
The command line prints ``str(error)`` and exits with code 2; a traceback is kept for what is our own mistake.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from ssamba.utils.terminal import printable

LONGEST_MESSAGE = 900
"""Most characters of a message; of a longer one, which quotes a long name or value, the middle is left out."""


class SsambaError(Exception):
    """A problem with what the user gave: one clear line that says what is wrong and how to fix it.

    Whatever foreign text the message quotes, it stays one line of bounded length that any terminal can print.
    """

    def __str__(self) -> str:
        line = printable(super().__str__())
        if len(line) <= LONGEST_MESSAGE:
            return line
        half = LONGEST_MESSAGE // 2 - 2
        return f"{line[:half]}...{line[-half:]}"


class AudioError(SsambaError):
    """Audio that cannot be used: missing, unreadable, truncated, too short, or holding NaN.

    Attributes:
        path: the file, or None for audio given in memory.
        reason: the problem alone, without the path.
    """

    def __init__(self, path: str | os.PathLike[str] | None, reason: str) -> None:
        self.path = None if path is None else os.fspath(path)
        self.reason = " ".join(reason.split())
        super().__init__(f"{'audio' if self.path is None else self.path}: {self.reason}")

    def __reduce__(self) -> tuple[type[AudioError], tuple[str | None, str]]:
        # Exceptions cross a process boundary as .args, which here hold the joined message and not what __init__ takes.
        return type(self), (self.path, self.reason)


class UnknownFormatError(AudioError):
    """A file that is no audio, or audio in a format that is not decoded here."""


class DataError(SsambaError):
    """A data set that cannot be used: a manifest without its columns, an empty folder, too many unreadable clips."""


class ConfigError(SsambaError):
    """A setting out of its range, unknown, or at odds with another."""


class CheckpointError(SsambaError):
    """A checkpoint that is missing, damaged, or of another model."""


class WriteError(SsambaError):
    """A file that cannot be written: no space, no permission, or a name that the system does not take."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the closest of the known words, whatever their case, or an empty string."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)
    return f", did you mean '{folded[close[0]]}'?" if close else ""
