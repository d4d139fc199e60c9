"""Compiled kernels kept on disk, one file each in the folder of ``environment.cache_dir``.

A file is a magic line, the sha256 of key and code, and the code: a GPU's (``cubin``) or the CPU's (``object``). It
runs with the user's rights, so only files and folders count that belong to the user and that nobody else may write. The
cache never makes a call fail: a damaged file is as none, a folder that cannot be used costs the compilation of each
process, which a warning says of a GPU's code. The CPU's has Numba's cache too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import warnings
from pathlib import Path

from ssamba.ops import environment
from ssamba.utils.atomic_write import atomic_write
from ssamba.utils.errors import SsambaError

CUBIN, OBJECT = "cubin", "object"
_log = logging.getLogger(__name__)
_unusable: set[Path] = set()
"""Folders that this process has given up on, after one message for each."""


class _Untrusted(Exception):
    """Another user may have written it."""


def load(key: str, kind: str = CUBIN) -> bytes | None:
    """The code stored under ``key``, a sha256 in hexadecimal; None when there is none that can be trusted."""
    folder = _folder()
    if folder is None:
        return None
    try:
        _check_owner(os.stat(folder), folder)
        content = _read(folder / f"{key}.{kind}")
    except FileNotFoundError:
        return None
    except _Untrusted as error:
        _refuse(folder, error, kind)
        return None
    except OSError as error:
        _give_up(folder, error)
        return None
    magic = _magic(kind)
    head = len(magic) + hashlib.sha256().digest_size
    if not content.startswith(magic) or content[len(magic) : head] != _digest(key, content[head:]):
        _log.debug("%s: damaged, so it is compiled again", folder / f"{key}.{kind}")
        return None
    return content[head:]


def store(key: str, code: bytes, kind: str = CUBIN) -> None:
    """Keeps ``code`` under ``key`` for later processes, whole or not at all."""
    folder = _folder()
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(os.stat(folder), folder)
        with atomic_write(folder / f"{key}.{kind}", mode=0o600) as temporary:
            temporary.write_bytes(_magic(kind) + _digest(key, code) + code)
    except _Untrusted as error:
        _refuse(folder, error, kind)
    except (OSError, SsambaError) as error:
        _give_up(folder, error)


def _folder() -> Path | None:
    """The folder to use, or None when this process has given it up or the home folder is unknown."""
    try:
        folder = environment.cache_dir()
    except RuntimeError:
        return None
    return None if folder in _unusable else folder


def _read(path: Path) -> bytes:
    # A link would be followed to a file that the check of this folder says nothing about.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb") as file:
        _check_owner(os.fstat(descriptor), path)
        return file.read()


def _check_owner(status: os.stat_result, path: Path) -> None:
    """Raises ``_Untrusted`` when others may write there. Windows has access lists in place of owner and mode."""
    if not hasattr(os, "getuid"):
        return
    if status.st_uid != os.getuid():
        raise _Untrusted(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Untrusted(f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})")


def _magic(kind: str) -> bytes:
    return f"ssamba {kind} 1\n".encode()


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def _refuse(folder: Path, error: _Untrusted, kind: str) -> None:
    if kind == OBJECT:
        _log.debug("%s: machine code is not kept", error)
    elif folder not in _unusable:
        _unusable.add(folder)
        advice = "take the permission away (chmod go-w), or name another folder in SSAMBA_CACHE_DIR"
        warnings.warn(f"{error}: compiled kernels are not cached; {advice}", RuntimeWarning, stacklevel=3)


def _give_up(folder: Path, error: Exception) -> None:
    if folder not in _unusable:
        _unusable.add(folder)
        _log.debug("%s: compiled kernels are not cached: %s", folder, error)
