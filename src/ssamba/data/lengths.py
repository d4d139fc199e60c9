"""Lengths of recordings kept on disk for the next start, so that a hundred thousand headers are read once.

One SQLite file in the user's cache folder. An entry belongs to a file's path, size and time of change, and to the
version of this package and of the decoder library. Several processes may read and write at a time, and a process that
is killed leaves the file whole: SQLite sees to both. The cache never makes a call fail: what cannot be used is as not
there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import soundfile

from ssamba import __version__
from ssamba.audio.decode import AudioInfo

__all__ = ["FileVersion", "LengthStore", "open_lengths"]

FileVersion = tuple[str, int, int]
"""Path, bytes, and time of change in ns."""
LARGEST_LENGTH = 512 << 20
"""Bytes from which the file is begun anew: some five million recordings."""
SETTLED_NS = 2_000_000_000
"""A file changed less long ago is not kept: another change could leave size and time as they are."""
_ASKED = 500
_COLUMNS = "key BLOB PRIMARY KEY, size INTEGER, changed INTEGER, frames INTEGER, rate INTEGER, channels INTEGER"


@contextlib.contextmanager
def open_lengths() -> Iterator[LengthStore | None]:
    """The store of this user, or None where there can be none."""
    connection = _connect()
    if connection is None:
        yield None
        return
    try:
        yield LengthStore(connection)
    finally:
        connection.close()


class LengthStore:
    """What earlier scans found. Not for several threads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: sqlite3.Connection | None = connection
        self._salt = f"{__version__} {soundfile.__libsndfile_version__}".encode()[:64]

    def recall(self, files: Sequence[FileVersion]) -> dict[FileVersion, AudioInfo]:
        """What is known of these files as they are now."""
        known: dict[FileVersion, AudioInfo] = {}
        for first in range(0, len(files), _ASKED):
            asked = {self._key(file): file for file in files[first : first + _ASKED]}
            for key, size, changed, frames, rate, channels in self._rows(list(asked)):
                file = asked[key]
                if (size, changed) == file[1:] and frames > 0 and rate > 0:
                    known[file] = AudioInfo(frames, rate, channels, frames / rate)
        return known

    def keep(self, found: Iterable[tuple[FileVersion, AudioInfo]]) -> None:
        """Add what was read; all of it, or none."""
        latest = time.time_ns() - SETTLED_NS
        rows = [
            (self._key(file), file[1], file[2], info.frames, info.sample_rate, info.channels)
            for file, info in found
            if file[2] < latest
        ]
        if self._connection is None or not rows:
            return
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO lengths VALUES (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error:
            self._give_up()

    def _rows(self, keys: list[bytes]) -> list[tuple[bytes, int, int, int, int, int]]:
        if self._connection is None:
            return []
        try:
            marks = ",".join("?" * len(keys))
            return self._connection.execute(f"SELECT * FROM lengths WHERE key IN ({marks})", keys).fetchall()
        except sqlite3.Error:
            self._give_up()
            return []

    def _key(self, file: FileVersion) -> bytes:
        return hashlib.blake2b(os.fsencode(os.path.abspath(file[0])), digest_size=16, key=self._salt).digest()

    def _give_up(self) -> None:
        self._connection = None


def _connect() -> sqlite3.Connection | None:
    from ssamba.ops import environment  # imports torch, which processes that only decode do without

    try:
        path = environment.lengths_dir() / "lengths.sqlite3"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path.parent)
        if path.exists():
            _check_owner(path)
            if path.stat().st_size > LARGEST_LENGTH:
                path.unlink()
        return _opened(path)
    except (OSError, RuntimeError, sqlite3.Error):
        return None


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0)
    try:
        connection.execute(f"CREATE TABLE IF NOT EXISTS lengths ({_COLUMNS}) WITHOUT ROWID")
        if [row[1] for row in connection.execute("PRAGMA table_info(lengths)")] != [
            column.split()[0] for column in _COLUMNS.split(", ")
        ]:
            raise sqlite3.DatabaseError("another table")
        return connection
    except sqlite3.OperationalError:  # locked for long, read-only, full
        connection.close()
        raise
    except sqlite3.DatabaseError:  # damaged: the next start begins anew
        connection.close()
        path.unlink(missing_ok=True)
        raise


def _check_owner(path: Path) -> None:
    """Raises ``PermissionError`` when others may write there, as for compiled kernels."""
    if hasattr(os, "getuid"):
        status = os.stat(path)
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{path} can be written by others")
