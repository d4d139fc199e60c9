"""Encoded audio that is not on disk under a name: bytes and open binary files, read by the way of files."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from ssamba.utils.errors import AudioError
from ssamba.utils.files import read_stream
from ssamba.utils.terminal import printable

ENCODED_LIMIT = 1 << 30
"""Most bytes that are read of a file object: 1 GiB, 2.6 h of 16-bit stereo at 44.1 kHz. Paths have no bound."""


class Encoded(os.PathLike[str]):
    """An encoded recording in memory, to be given where a path is: its name is what messages call it.

    Attributes:
        name: the file object's, or "bytes".
        content: the whole encoded file.
    """

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content = name, content

    def __fspath__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        """A file object over the content."""
        return io.BytesIO(self.content)


def is_encoded(item: object) -> bool:
    """Whether something names or holds an encoded recording, where samples could be given as well.

    Such are paths, bytes (as bytearray and memoryview, too) and objects with a method ``read``.
    """
    if isinstance(item, memoryview):
        return item.format == "B" and item.ndim == 1
    return isinstance(item, (str, os.PathLike, bytes, bytearray)) or callable(getattr(item, "read", None))


def as_source(item: Any) -> str | os.PathLike[str]:
    """What the functions of ``ssamba.audio.decode`` take for something that ``is_encoded``.

    A file object is read from its position to its end, where it stays, open. Raises ``AudioError`` for one that has
    nothing left, gives text, or more than ``ENCODED_LIMIT`` bytes.
    """
    if isinstance(item, (bytes, bytearray, memoryview)):
        return Encoded("bytes", bytes(item))
    if isinstance(item, (str, os.PathLike)) and not hasattr(item, "read"):
        # The few objects that are both, such as temporary files, are read: their names may be gone.
        return item
    name = getattr(item, "name", None)
    name = printable(name) if isinstance(name, str) and name else "file object"
    try:
        content = read_stream(item, ENCODED_LIMIT)
    except ValueError as problem:
        raise AudioError(name, str(problem)) from None
    if not content:
        raise AudioError(name, f"holds no bytes from its position{_position(item)} on: seek(0) goes to its beginning")
    return Encoded(name, content)


def _position(item: Any) -> str:
    try:
        return f" {item.tell():,}"
    except (AttributeError, OSError, ValueError):
        return ""
