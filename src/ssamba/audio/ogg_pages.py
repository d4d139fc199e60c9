"""Ogg files that hold several streams, one after the other (chained, as internet radio and joined files are)."""

from __future__ import annotations

from typing import BinaryIO

from ssamba.audio.layout import AS_IT_IS, Layout, read_at

_FIRST_PAGE = b"OggS\x00\x02"
"""Marker, version and the flag of a page that begins a stream."""
_BLOCK = 1 << 20
_MAX_LINKS = 4096


def examine_ogg(raw: BinaryIO, size: int) -> Layout:
    """The layout of an Ogg file: its streams, where one begins after the end of another.

    Streams that begin together (the tracks of a film) are one link, which is left to the decoder.
    """
    starts = [0]
    position = _behind_first_pages(raw, 0)
    while (start := _find(raw, position, size)) is not None:
        starts.append(start)
        if len(starts) > _MAX_LINKS:
            return Layout(problem=f"joins more than {_MAX_LINKS} Ogg streams: split the file")
        position = _behind_first_pages(raw, start)
    if len(starts) == 1:
        return AS_IT_IS
    return Layout(streams=tuple(((begin, end),) for begin, end in zip(starts, [*starts[1:], size], strict=True)))


def _behind_first_pages(raw: BinaryIO, position: int) -> int:
    """Position after the pages that begin streams, from `position` on."""
    while (head := read_at(raw, position, 282)).startswith(_FIRST_PAGE) and len(head) > 27:
        position += 27 + head[26] + sum(head[27 : 27 + head[26]])
    return position


def _find(raw: BinaryIO, position: int, size: int) -> int | None:
    """Where the next stream begins."""
    overlap = len(_FIRST_PAGE) - 1
    while position < size:
        block = read_at(raw, position, min(_BLOCK, size - position))
        at = block.find(_FIRST_PAGE)
        if at >= 0:
            return position + at
        if len(block) <= overlap:
            return None
        position += len(block) - overlap
    return None
