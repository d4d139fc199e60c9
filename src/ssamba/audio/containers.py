"""Where the samples lie in files that hold them one after the other, and whether all of them are there.

WAV (RIFF, RIFX, RF64), W64, AIFF and AIFC, AU and CAF. A header whose length is a placeholder, as recorders and pipes
write it before they know, means the end of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from ssamba.audio.layout import AS_IT_IS, Layout, patched, read_at

_MAX_CHUNKS = 4096
_UNSIZED_32 = 0xFFFFFFFF
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
_REST_FRAMES = 1000


class _Data(NamedTuple):
    """The samples of a file: from byte `begin` on `declared` bytes (None: to the end), `frame` bytes for each time.

    `patches` make a decoder read to the end that would not; `order` is that of the chunks behind, "" without chunks.
    """

    begin: int
    declared: int | None
    frame: int
    patches: tuple[tuple[int, bytes], ...] = ()
    order: str = ""


def examine_container(raw: BinaryIO, size: int, head: bytes) -> Layout | None:
    """The layout of a file with these first 16 bytes; None when it is of none of these formats."""
    finder = _FINDERS.get(head[:4])
    data = None if finder is None else finder(raw, size, head)
    if finder is None:
        return None
    if data is None:
        return AS_IT_IS  # the decoder says what is wrong
    present = max(0, size - data.begin)
    frame = max(1, data.frame)
    if data.declared == 0 and present >= frame and not _is_explained(raw, size, data.begin, data):
        data = data._replace(declared=None)
    if data.declared is None:
        return Layout(streams=(patched(size, data.patches),)) if data.patches and present >= frame else AS_IT_IS
    missing = data.declared - present
    if missing >= frame:
        return Layout(problem=f"is truncated: {missing} bytes of samples that the header promises are missing")
    rest = -missing
    if (
        data.declared
        and rest >= _REST_FRAMES * frame
        and not _is_explained(raw, size, data.begin + data.declared, data)
    ):
        return Layout(
            problem=f"states {data.declared // frame} samples, but {rest} bytes that are no chunk follow them: was the "
            "header never finished? Write the file again (ffmpeg -i OLD NEW)"
        )
    return AS_IT_IS


def _is_explained(raw: BinaryIO, size: int, position: int, data: _Data) -> bool:
    """Whether what follows the samples is something else than samples: chunks, tags, or zeros."""
    for _ in range(_MAX_CHUNKS):
        if size - position < 8:
            return True
        head = read_at(raw, position, 16)
        if head.startswith(_TAGS) or head[1:].startswith(_TAGS):
            return True
        if not data.order:
            break
        position += data.declared is not None and data.declared % 2 == 1 and head[:1] == b"\0"
        head = read_at(raw, position, 8)
        length = int.from_bytes(head[4:8], "little" if data.order == "<" else "big")
        if len(head) < 8 or not all(32 <= byte < 127 for byte in head[:4]) or position + 8 + length > size + 1:
            break
        position += 8 + length + length % 2
    return not any(read_at(raw, position, 4096))


def _chunks(raw: BinaryIO, size: int, position: int, form: str) -> list[tuple[bytes, int, int]]:
    """(id, position of the content, length) of the chunks from `position` up to the first that holds samples."""
    found: list[tuple[bytes, int, int]] = []
    header = struct.Struct(form)
    while position + header.size <= size and len(found) < _MAX_CHUNKS:
        name, length = header.unpack(read_at(raw, position, header.size))
        found.append((name, position + header.size, length))
        if name in (b"data", b"SSND"):
            break
        pad = 0 if form.endswith("q") else length % 2
        position += header.size + max(0, length) + pad
    return found


def _riff(raw: BinaryIO, size: int, head: bytes) -> _Data | None:
    order = ">" if head[:4] == b"RIFX" else "<"
    frame, wide = 1, None
    for name, begin, length in _chunks(raw, size, 12, order + "4sI"):
        if name == b"fmt ":
            frame = int.from_bytes(read_at(raw, begin + 12, 2), "big" if order == ">" else "little")
        elif name == b"ds64" and head[:4] == b"RF64":
            wide = int.from_bytes(read_at(raw, begin + 8, 8), "little")
        elif name == b"data":
            unsized = struct.pack(order + "I", _UNSIZED_32)
            if head[:4] == b"RF64":
                declared = length if length != _UNSIZED_32 else wide
                if declared in (0, _UNSIZED_32) or (declared or 0) >= 1 << 62:
                    declared = None
                return _Data(begin, declared, frame, ((0, b"RIFF"), (begin - 4, unsized)), order)
            patches = ((begin - 4, unsized),) if length == 0 else ()
            return _Data(begin, None if _is_placeholder(length) else length, frame, patches, order)
    return None


def _is_placeholder(length: int) -> bool:
    """Whether a 32-bit length is one that a writer to a pipe puts: about 2^31 or 2^32 bytes."""
    return 0x7FFF0000 <= length <= 0x80000000 or length >= 0xFFFF0000


def _w64(raw: BinaryIO, size: int, head: bytes) -> _Data | None:
    position, frame = 40, 1
    for _ in range(_MAX_CHUNKS):
        header = read_at(raw, position, 24)
        if len(header) < 24:
            return None
        length = int.from_bytes(header[16:], "little", signed=True) - 24
        if header[:4] == b"fmt ":
            frame = int.from_bytes(read_at(raw, position + 36, 2), "little")
        elif header[:4] == b"data":
            unsized = length <= 0 or length + 24 == _UNSIZED_32 or length >= 1 << 62
            return _Data(position + 24, None if unsized else length, frame, order="")
        position += 24 + max(0, (length + 7) // 8 * 8)
    return None


def _aiff(raw: BinaryIO, size: int, head: bytes) -> _Data | None:
    frame, frames = 1, 0
    for name, begin, length in _chunks(raw, size, 12, ">4sI"):
        if name == b"COMM":
            comm = read_at(raw, begin, 22)
            if len(comm) < 18:
                return None
            channels, frames, bits = struct.unpack(">hIh", comm[:8])
            plain = head[8:12] == b"AIFF" or comm[18:22].lower() in (b"none", b"sowt", b"twos", b"fl32", b"fl64")
            frame = max(1, channels * ((bits + 7) // 8)) if plain else 1
            frames = frames if plain else 0
        elif name == b"SSND":
            offset = int.from_bytes(read_at(raw, begin, 4), "big")
            declared: int | None = length - 8 - offset
            if length < 8 + offset or _is_placeholder(length):
                declared = frames * frame or None
            return _Data(begin + 8 + offset, declared, frame, order=">")
    return None


def _au(raw: BinaryIO, size: int, head: bytes) -> _Data | None:
    header = read_at(raw, 0, 24)
    if len(header) < 24:
        return None
    order = ">" if head[:4] == b".snd" else "<"
    _, begin, length, encoding, _, channels = struct.unpack(order + "4sIIIII", header)
    width = {3: 2, 4: 3, 5: 4, 6: 4, 7: 8}.get(encoding, 1)
    unsized = length == _UNSIZED_32
    patches = ((8, struct.pack(order + "I", _UNSIZED_32)),)
    return _Data(begin, None if unsized else length, width * min(channels, 1 << 16), () if unsized else patches)


def _caf(raw: BinaryIO, size: int, head: bytes) -> _Data | None:
    frame = 1
    for name, begin, length in _chunks(raw, size, 8, ">4sq"):
        if name == b"desc":
            frame = int.from_bytes(read_at(raw, begin + 16, 4), "big")
        elif name == b"data":
            unsized = length <= 4 or length == _UNSIZED_32
            patches = ((begin - 8, struct.pack(">q", size - begin)),)
            return _Data(begin + 4, None if unsized else length - 4, frame, patches if unsized else (), order="")
    return None


_FINDERS: dict[bytes, Callable[[BinaryIO, int, bytes], _Data | None]] = {
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"riff": _w64,
    b"FORM": _aiff,
    b".snd": _au,
    b"dns.": _au,
    b"caff": _caf,
}
