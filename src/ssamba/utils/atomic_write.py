"""Writing so that nothing is lost or half-written: beside the target first, then renamed over it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from ssamba.utils.errors import SsambaError


def explain(error: OSError, path: Path) -> SsambaError:
    """One line for a file that cannot be written."""
    return SsambaError(
        f"{path}: cannot be written ({error.strerror or error}); choose another place or free some space"
    )


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises ``SsambaError`` when that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path) from None
    return path


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder; when the block ends well it is flushed to disk and renamed to ``path``.

    When the block fails, ``path`` stays as it was. ``OSError`` (full disk, no permission) becomes ``SsambaError``.
    """
    make_folder(path.parent)
    # The suffix stays last: some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        # Some writers create private files; a result gets the permissions of any new file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in ``folder``; nobody else may be writing there."""
    for path in folder.glob(".*.*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}(\.\w+)?", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    """The process's mask for new files; the system can only tell it by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
