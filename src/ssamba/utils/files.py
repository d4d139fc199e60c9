"""The one way to a file's bytes: regular files only, never more than a bound that is set beforehand."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
from typing import Any

from ssamba.utils.errors import ConfigError, SsambaError

TEXT_LIMIT = 64 << 20
"""Most bytes of a text file (JSON, YAML, CSV read whole): 64 MiB."""


def open_regular(path: str | os.PathLike[str], error: type[SsambaError] = ConfigError) -> io.BufferedReader:
    """Open a regular file for reading, without waiting.

    A pipe, a socket, a device or a folder is refused: reading it could hang, or never end. Raises ``error``, which
    names the file and the reason.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise error(f"{os.fspath(path)}: is missing") from None
    except IsADirectoryError:
        raise error(f"{os.fspath(path)}: is a folder, not a file") from None
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the name
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{os.fspath(path)}: cannot be read ({reason})") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = (
            "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file; copy what it holds to a file first"
        )
        raise error(f"{os.fspath(path)}: is {kind}")
    return os.fdopen(descriptor, "rb")


def check_regular(path: str | os.PathLike[str], error: type[SsambaError] = ConfigError) -> int:
    """The size in bytes of a file that another library opens by its name. Raises as ``open_regular``."""
    with open_regular(path, error) as file:
        return os.fstat(file.fileno()).st_size


def read_bytes(path: str | os.PathLike[str], limit: int = TEXT_LIMIT, error: type[SsambaError] = ConfigError) -> bytes:
    """A whole file of at most ``limit`` bytes. Raises ``error`` for a larger one, before memory is taken."""
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{os.fspath(path)}: has {size:,} bytes, at most {limit:,} are read; is it the right file?")
        try:
            content = file.read(size + 1)
        except OSError as problem:
            raise error(f"{os.fspath(path)}: cannot be read ({problem.strerror or problem})") from None
    if len(content) > limit:
        raise error(f"{os.fspath(path)}: has more than {limit:,} bytes; is it the right file?")
    return content


def sha256_of(path: str | os.PathLike[str], error: type[SsambaError] = ConfigError) -> str:
    """SHA-256, in hexadecimal, of a regular file of any size. Raises ``error`` as ``open_regular``."""
    total = hashlib.sha256()
    with open_regular(path, error) as file:
        try:
            while block := file.read(1 << 20):
                total.update(block)
        except OSError as problem:
            raise error(f"{os.fspath(path)}: cannot be read ({problem.strerror or problem})") from None
    return total.hexdigest()


def read_text(
    path: str | os.PathLike[str],
    limit: int = TEXT_LIMIT,
    error: type[SsambaError] = ConfigError,
    encoding: str = "utf-8",
) -> str:
    """A whole text file of at most ``limit`` bytes. Raises ``error`` for other encodings, too."""
    content = read_bytes(path, limit, error)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as problem:
        raise error(
            f"{os.fspath(path)}: is not UTF-8 text (byte {content[problem.start]:#04x} at {problem.start}); save it as "
            "UTF-8"
        ) from None


def stored_name(path: str | os.PathLike[str]) -> str:
    """A file's name as text that is the same in every locale: its bytes as UTF-8, and bytes that are none as lone
    surrogates (``\\udce9``), which :func:`native_name` turns back. On Windows names are Unicode already."""
    name = os.fspath(path)
    if name.isascii() or sys.getfilesystemencoding() == "utf-8":
        return name
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def native_name(name: str) -> str:
    """The name with which this process opens what :func:`stored_name`, or a table in UTF-8, names."""
    if name.isascii() or sys.getfilesystemencoding() == "utf-8":
        return name
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def read_stream(file: Any, limit: int) -> bytes:
    """What an open binary file has left, at most ``limit`` bytes; it is not closed.

    Raises ``ValueError`` with the reason for more bytes, text, a closed file, or one that cannot be read.
    """
    parts: list[bytes] = []
    left = limit + 1
    while left > 0:
        try:
            part = file.read(min(left, 1 << 20))
        except (OSError, ValueError) as problem:
            raise ValueError(f"cannot be read ({getattr(problem, 'strerror', None) or problem})") from None
        if isinstance(part, str):
            raise ValueError("is opened as text: open it in binary mode ('rb')")
        if part is None:
            raise ValueError("has no bytes ready: open it in blocking mode")
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise ValueError(f"gives {type(part).__name__} instead of bytes: open it in binary mode ('rb')")
        if not part:
            break
        parts.append(bytes(part))
        left -= len(part)
    if left <= 0:
        raise ValueError(f"has more than {limit:,} bytes: give its path")
    return b"".join(parts)
