"""Writing files so that nothing is lost or half-written: to a temporary name first, then renamed over the target.

Content, name and new folders are flushed to disk before a writer goes on: what was reported as written is there after a
loss of power, too, as far as the disk keeps its promise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ssamba.utils.errors import ConfigError, SsambaError, WriteError, nearest
from ssamba.utils.files import read_bytes

LEFTOVER = re.compile(r"\.ssamba-[0-9a-f]{8}(\.\w+)?|\..+\.[0-9a-f]{8}(\.\w+)?")
"""Names of temporary files, and those of earlier versions."""
NAME_LIMIT = 255
SUFFIX_LIMIT = 16
"""Longest suffix, in bytes, that a temporary name takes over from its target."""
_ADVICE = {
    errno.ENOSPC: "free some space (or inodes: df -i), or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EACCES: "choose a place where you may write",
    errno.EPERM: "choose a place where you may write",
    errno.EROFS: "choose a place where you may write",
    errno.EISDIR: "remove the folder of that name, or choose another place",
    errno.ENOTDIR: "remove the file that is in the place of a folder, or choose another place",
    errno.EEXIST: "remove the file that is in the place of a folder, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_DEFAULT_ADVICE = "choose another place or free some space"


def explain(error: OSError, path: Path) -> WriteError:
    """One line for a file that cannot be written: its name, the cause and what helps."""
    advice = _ADVICE.get(error.errno or 0, _DEFAULT_ADVICE)
    return WriteError(f"{path}: cannot be written ({error.strerror or error}); {advice}")


def check_output_name(out: Path, suffixes: Sequence[str]) -> None:
    """Refuse before hours of work: a folder, a name that ends in none of ``suffixes``, one that is too long.

    Raises ``ConfigError``.
    """
    check_name_length(out)
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; give a file name that ends in {' or '.join(suffixes)}")
    if out.suffix not in suffixes:
        hint = nearest(out.suffix, list(suffixes)) or ", give one of " + ", ".join(suffixes)
        raise ConfigError(f"{out}: unknown ending '{out.suffix}'{hint}")


def check_name_length(path: Path) -> None:
    """Refuse a path with a part that is longer than file systems take. Raises ``ConfigError``."""
    for part in path.parts:
        if len(os.fsencode(part)) > NAME_LIMIT:
            raise ConfigError(
                f"{part[:20]}...: a name of {len(os.fsencode(part))} bytes, file systems take {NAME_LIMIT}; give a "
                "shorter one"
            )


def missing_parents(path: Path) -> list[Path]:
    """Parents of a path that do not exist, the innermost first."""
    return [parent for parent in path.parents if not os.path.lexists(parent)]


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises ``WriteError`` when that cannot be done."""
    check_name_length(path)
    made = missing_parents(path / "x")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path) from None
    for folder in made:
        sync_folder(folder.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk: new files and names in it. Does nothing where the system cannot."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_file(path: Path) -> None:
    """Flush a file's content to disk. Raises ``OSError``."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def temporary_name(path: Path) -> Path:
    """A new short name next to ``path``, which ends in its suffix: some writers choose their format by it."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= SUFFIX_LIMIT else ""
    return path.with_name(f".ssamba-{secrets.token_hex(4)}{suffix}")


@contextlib.contextmanager
def atomic_write(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A temporary path in the same folder; when the block ends well it is flushed to disk and renamed to ``path``.

    The file is there and empty when the block begins, so that a place that cannot be written to is found, with its
    cause, before the block's own writer meets it. When the block fails, ``path`` stays as it was. ``OSError`` (full
    disk, no permission) becomes ``WriteError``. ``mode``: its permissions, by default those of any new file.
    """
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        sync_file(temporary)
        # Some writers create private files; a result gets the permissions of any new file.
        os.chmod(temporary, 0o666 & ~_umask() if mode is None else mode)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_file(path: Path) -> None:
    """Remove a file that may be missing. Raises ``WriteError``."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, path) from None


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in ``folder``; nobody else may be writing there.

    Raises ``WriteError``.
    """
    for path in folder.glob(".*"):
        if LEFTOVER.fullmatch(path.name) and path.is_file():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise explain(error, folder) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, as UTF-8; one that holds the text already stays as it is.

    Bytes of file names that are no UTF-8 stay as they are.
    """
    content = text.encode("utf-8", "surrogateescape")
    with contextlib.suppress(SsambaError):
        if read_bytes(path) == content:
            return
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


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
