"""Files that look like audio but are not read: noted where folders are searched, named in one line at the end."""

from __future__ import annotations

import os

UNREAD_ENDINGS = (
    *(".m4a", ".m4b", ".m4p", ".mp4", ".m4v", ".mov", ".3gp", ".3gpp", ".aac", ".ac3", ".wma", ".wmv", ".asf", ".amr"),
    *(".webm", ".weba", ".mka", ".mkv", ".avi", ".mpg", ".mpeg", ".ape", ".wv", ".tta", ".alac", ".dsf", ".dff"),
    *(".spx", ".ra", ".rm", ".mpc"),
)
"""Sound and film in containers that the decoder library does not know."""
NAMED = 5
"""Most files that the line names."""

_found: dict[str, None] = {}


def note_unread(path: str) -> None:
    """Remember a file of a searched folder, where its ending is one of ``UNREAD_ENDINGS``."""
    if path.lower().endswith(UNREAD_ENDINGS):
        _found[os.path.abspath(path)] = None


def take_unread() -> list[str]:
    """The files noted since the last call, sorted."""
    found = sorted(_found)
    _found.clear()
    return found


def unread_line(paths: list[str]) -> str:
    """``2 files with endings that are not read: a.m4a, b.wma; ...``, or nothing without files."""
    if not paths:
        return ""
    names = [os.path.basename(path) for path in paths[:NAMED]]
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    files = "1 file with an ending that is" if len(paths) == 1 else f"{len(paths)} files with endings that are"
    return f"{files} not read: {', '.join(names)}{more}; convert them, e.g. to .flac"
