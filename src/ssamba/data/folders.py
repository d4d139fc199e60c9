"""Files of a folder and below it, and what of it cannot be searched."""

from __future__ import annotations

import os
from collections.abc import Callable

from ssamba.utils.files import stored_name

__all__ = ["Problems", "find_files"]

Problems = list[tuple[str, str]]
"""(path, reason) of folders and links that could not be followed."""


def find_files(
    folder: str, chosen: Callable[[str], bool], other: Callable[[str], None] | None = None
) -> tuple[list[tuple[str, str]], Problems]:
    """Files in ``folder`` and below whose lower-case name is ``chosen``: (path, key), sorted by key, and the problems.

    The key is the name inside the folder with forward slashes, the same in every locale. ``other`` gets the path of
    each other file. Hidden files and folders are skipped, links are followed, and no folder is entered twice. A folder
    below that may not be read, has gone or lies too deep is a problem, and so is a link that leads nowhere where it
    could lead to a folder.

    Raises ``OSError`` when ``folder`` itself cannot be read.
    """
    found: list[tuple[str, str]] = []
    problems: Problems = []
    seen: set[tuple[int, int]] = set()
    pending = [(folder, "")]
    while pending:
        root, prefix = pending.pop()
        try:
            status = os.stat(root)
            if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above: do not go round in circles
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root) as entries:
                listed = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if root == folder:
                raise
            problems.append((root, f"the folder cannot be searched ({error.strerror or error})"))
            continue
        below = []
        for entry in listed:
            key = prefix + stored_name(entry.name)
            if _is_folder(entry):
                below.append((entry.path, key + "/"))
            elif chosen(entry.name.lower()):
                found.append((entry.path, key))
            elif "." not in entry.name and _leads_nowhere(entry):
                problems.append((entry.path, "the link leads nowhere"))
            elif other is not None:
                other(entry.path)
        pending += sorted(below, reverse=True)
    found.sort(key=lambda pair: pair[1])
    return found, problems


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and not os.path.exists(entry.path)
    except OSError:
        return True
