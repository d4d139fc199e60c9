"""How an output names the recordings that its rows are of: as given, by absolute paths, or from its own folder on."""

from __future__ import annotations

import os
from pathlib import Path

from ssamba.utils.errors import ConfigError

PATHS = ("given", "relative", "absolute")


def name_in_output(file: str, out: Path | None, paths: str) -> str:
    """The name of ``file`` in the output ``out`` by one of ``PATHS``; None: it is printed.

    Raises ``ConfigError`` where there is no relative path, or no output.
    """
    if paths == "given":
        return file
    if paths == "absolute":
        return os.path.abspath(file)
    if out is None:
        raise ConfigError("paths from the output's folder on need an output: give --out as well")
    try:
        # Folders without symbolic links, of which ".." would not lead back; a file's name stays as it is.
        folder, name = os.path.split(os.path.abspath(file))
        return os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(out.absolute().parent))
    except ValueError:  # Windows: another drive
        raise ConfigError(f"{file}: has no path relative to {out}, on another drive; write it there") from None
