"""Exclusive locks: one process at a time writes a run folder or an output.

A lock is the system's (``flock``) on a small file in the folder, which names its holder for others to read. The system
takes it from a process that ends, however it ends; a lock file that a killed process left behind locks nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssamba.utils.atomic_write import explain, make_folder, missing_parents
from ssamba.utils.errors import SsambaError
from ssamba.utils.terminal import note, printable

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FOLDER_LOCK = ".ssamba.lock"
"""Name of the lock of a whole folder, in that folder."""
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
HOLDER_LIMIT = 4096
_FAR = 1 << 30
"""On Windows a locked byte cannot be read by others: one far behind the text is locked."""


@contextlib.contextmanager
def lock_folder(folder: Path, active: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is missing, and removed again when nothing was put into it.

    ``active`` False does nothing: of several processes of one run the first holds the lock for all. Raises
    ``SsambaError`` that names the process that holds it, and when the folder cannot be made.
    """
    with _locked(folder, FOLDER_LOCK, folder) if active else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def lock_output(path: Path | None) -> Iterator[None]:
    """Hold the lock of an output, a file or a folder that is made in one piece; None is no output.

    Raises as ``lock_folder``.
    """
    if path is None:
        yield
        return
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=4).hexdigest()
    with _locked(path.absolute().parent, f".ssamba-{digest}-output.lock", path):
        yield


@contextlib.contextmanager
def _locked(folder: Path, name: str, what: Path) -> Iterator[None]:
    made = missing_parents(folder / name)
    make_folder(folder)
    handle = None
    try:
        handle = _acquire(folder / name, what)
        yield
    finally:
        if handle is not None:
            _release(folder / name, handle)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _acquire(path: Path, what: Path) -> int | None:
    """The descriptor of the locked file; None where the place can have no lock."""
    while True:
        handle = _open(path, what)
        if handle is None:
            return None
        try:
            _take(handle)
        except OSError as error:
            holder = _holder(handle)
            os.close(handle)
            if error.errno in HELD:
                raise SsambaError(
                    f"{what}: another process writes there{holder}; wait for its end, or choose another --out"
                ) from None
            note(f"{what}: this file system has no locks ({error.strerror}); see that no other process writes there")
            return None
        if _same_file(handle, path):  # the holder before may have removed it after it was opened here
            _write_holder(handle)
            return handle
        os.close(handle)


def _open(path: Path, what: Path) -> int | None:
    """The lock file's descriptor. None where it cannot be made: who cannot write there needs no lock."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if error.errno not in NO_ACCESS:
            raise explain(error, what) from None
    try:
        return os.open(path, os.O_RDONLY | flags)  # another user's: enough to see that it is locked
    except OSError:
        return None


def _take(handle: int) -> None:
    if sys.platform == "win32":
        os.lseek(handle, _FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release(path: Path, handle: int) -> None:
    """Remove the file while it is locked, so that nobody takes one that is about to go."""
    with contextlib.suppress(OSError):
        if sys.platform != "win32" and _same_file(handle, path):
            path.unlink()
    os.close(handle)
    if sys.platform == "win32":  # an open file cannot be removed there
        with contextlib.suppress(OSError):
            path.unlink()


def _same_file(handle: int, path: Path) -> bool:
    try:
        here, there = os.fstat(handle), os.stat(path)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _write_holder(handle: int) -> None:
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    values = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    with contextlib.suppress(OSError):  # a full disk: the lock holds, only its holder has no name
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(values).encode())


def _holder(handle: int) -> str:
    """Who holds the lock, in parentheses; empty where the file does not say it."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        values: dict[str, Any] = json.loads(os.read(handle, HOLDER_LIMIT))
        pid, host, since = int(values["pid"]), str(values["host"]), str(values["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (process {pid} on {printable(host)}, since {printable(since)})"
