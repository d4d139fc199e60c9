"""What the bytes of an audio file say about its length, and views of a file with such statements put right.

Nothing is decoded here. A file is read through a view where its own header would make the decoder stop early: bytes of
the header replaced, a header put in front, or one of several joined streams alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

Piece = bytes | tuple[int, int]
"""Bytes, or the range [begin, end) of the file."""


@dataclass(frozen=True)
class Layout:
    """How a file is to be opened.

    Attributes:
        streams: the views to decode one after the other; none: the file as it is.
        frames: samples per channel that were counted; None: what the decoder says.
        uncertain: the length is what decoding gives.
        truncated: samples that the header promises seem to be missing; decoding says where.
        problem: why it cannot be used (it is truncated, say); "" when it can.
    """

    streams: tuple[tuple[Piece, ...], ...] = ()
    frames: int | None = None
    uncertain: bool = False
    truncated: bool = False
    problem: str = ""


AS_IT_IS = Layout()


LARGEST_POSITION = 1 << 62
"""No file is longer."""


def patched(size: int, patches: Sequence[tuple[int, bytes]]) -> tuple[Piece, ...]:
    """The pieces of a file of that size with bytes replaced: (position, bytes) in order."""
    pieces: list[Piece] = []
    begin = 0
    for position, replacement in patches:
        pieces += [(begin, position), replacement]
        begin = position + len(replacement)
    return (*pieces, (begin, size))


def read_at(raw: BinaryIO, position: int, count: int) -> bytes:
    """Up to `count` bytes from `position` on; fewer at the end of the file."""
    if position > LARGEST_POSITION:  # of a header that claims it
        return b""
    raw.seek(position)
    return raw.read(count)


class PieceFile:
    """Pieces of a file as one file that can be read and sought, by soundfile for one."""

    def __init__(self, raw: BinaryIO, pieces: Sequence[Piece]) -> None:
        self._raw = raw
        self._pieces: list[tuple[int, int, Piece]] = []
        self._size = self._position = 0
        for piece in pieces:
            length = len(piece) if isinstance(piece, bytes) else max(0, piece[1] - piece[0])
            if length:
                self._pieces.append((self._size, self._size + length, piece))
                self._size += length

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file; positions before the beginning become the beginning."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes."""
        left = self._size - self._position if count < 0 else count
        parts = []
        for begin, end, piece in self._pieces:
            if left <= 0 or end <= self._position:
                continue
            first, take = self._position - begin, min(left, end - self._position)
            part = self._part(piece, first, take)
            parts.append(part)
            self._position += len(part)
            left -= len(part)
            if len(part) < take:  # the file has become shorter meanwhile
                break
        return b"".join(parts)

    def _part(self, piece: Piece, first: int, count: int) -> bytes:
        if isinstance(piece, bytes):
            return piece[first : first + count]
        return read_at(self._raw, piece[0] + first, count)
