"""Writing files so that nothing is lost or half-written: to a temporary name first, then renamed over the target."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ssamba.utils.errors import ConfigError, SsambaError
from ssamba.utils.suggest import nearest


def explain(error: OSError, path: Path) -> SsambaError:
    """One line for a file that cannot be written."""
    return SsambaError(
        f"{path}: cannot be written ({error.strerror or error}); choose another place or free some space"
    )


def check_output_name(out: Path, suffixes: Sequence[str]) -> None:
    """Refuse a folder, and a name that ends in none of ``suffixes``, before hours of work. Raises ``ConfigError``."""
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; give a file name that ends in {' or '.join(suffixes)}")
    if out.suffix not in suffixes:
        hint = nearest(out.suffix, list(suffixes)) or ", give one of " + ", ".join(suffixes)
        raise ConfigError(f"{out}: unknown ending '{out.suffix}'{hint}")


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises ``SsambaError`` when that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path) from None
    return path


@contextlib.contextmanager
def atomic_write(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A temporary path in the same folder; when the block ends well it is flushed to disk and renamed to ``path``.

    When the block fails, ``path`` stays as it was. ``OSError`` (full disk, no permission) becomes ``SsambaError``.
    ``mode``: its permissions, by default those of any new file.
    """
    make_folder(path.parent)
    # The suffix stays last: some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        # Some writers create private files; a result gets the permissions of any new file.
        os.chmod(temporary, 0o666 & ~_umask() if mode is None else mode)
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
    """Write a text file whole or not at all, as UTF-8; bytes of names that are none stay as they are."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def refuse_input(out: Path, inputs: Iterable[str]) -> None:
    """Refuse an output that is one of the inputs, which it would replace. Raises ``ConfigError``."""
    if not out.exists():
        return
    for path in inputs:
        with contextlib.suppress(OSError):
            if os.path.samefile(out, path):
                raise ConfigError(f"{out}: is an input of this command, which it would replace; choose another --out")
