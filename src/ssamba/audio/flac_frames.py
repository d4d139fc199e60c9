"""Whether the length that a FLAC file states agrees with the number of its last frame."""

from __future__ import annotations

from typing import BinaryIO

from ssamba.audio.layout import AS_IT_IS, Layout, patched, read_at

_TAIL_BYTES = (1 << 12, 1 << 17)
_CODED_SIZES = {1: 192, **{n: 576 << (n - 2) for n in range(2, 6)}, **{n: 256 << (n - 8) for n in range(8, 16)}}


def _crc8_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value << 1) ^ (0x107 if value & 0x80 else 0)
        table.append(value)
    return table


_CRC8 = _crc8_table()


def examine_flac(raw: BinaryIO, size: int, begin: int = 0) -> Layout:
    """The layout of a FLAC file whose marker lies at byte `begin`.

    Where the last frame does not end with the sample that STREAMINFO states, decoding decides: a longer stream is read
    through a view that states no length.
    """
    info = read_at(raw, begin, 42)
    if len(info) < 42 or info[4] & 0x7F != 0:
        return AS_IT_IS
    stated = int.from_bytes(info[21:26], "big") & 0xFFFFFFFFF
    if stated == 0:
        return AS_IT_IS
    end = _last_sample(raw, size, info)
    if end == stated:
        return AS_IT_IS
    if end is not None and end < stated:
        return Layout(truncated=True)  # decoding stops early and says where
    unstated = (begin + 21, bytes([info[21] & 0xF0, 0, 0, 0, 0]))
    return Layout(streams=(patched(size, [unstated]),), uncertain=True)


def _last_sample(raw: BinaryIO, size: int, info: bytes) -> int | None:
    """Number of samples up to the end of the last frame; None when there is no frame in the file's last stretch."""
    largest = int.from_bytes(info[15:18], "big")
    fixed_size = int.from_bytes(info[8:10], "big")
    for spare in _TAIL_BYTES:
        reach = spare + min(largest, 1 << 20)
        tail = read_at(raw, max(0, size - reach), reach)
        at = len(tail)
        while (at := tail.rfind(b"\xff", 0, at)) >= 0:
            end = _frame_end(tail[at : at + 16], fixed_size)
            if end is not None:
                return end
    return None


def _frame_end(head: bytes, fixed_size: int) -> int | None:
    """One more than the number of the last sample of a frame with this header; None: it is no frame's."""
    if len(head) < 6 or head[1] not in (0xF8, 0xF9) or head[3] & 1:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    if size_code == 0 or rate_code == 15 or head[3] >> 4 > 10:
        return None
    number, length = _coded_number(head[4:])
    position = 4 + length
    if not length:
        return None
    samples = _CODED_SIZES.get(size_code, 0)
    if size_code in (6, 7):
        width = size_code - 5
        samples = int.from_bytes(head[position : position + width], "big") + 1
        position += width
    position += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if position >= len(head):
        return None
    crc = 0
    for byte in head[:position]:
        crc = _CRC8[crc ^ byte]
    if crc != head[position]:
        return None
    return (number if head[1] == 0xF9 else number * fixed_size) + samples


def _coded_number(data: bytes) -> tuple[int, int]:
    """A number coded as in UTF-8, with up to seven bytes, and its length; length 0 when it is none."""
    first = data[0]
    if first < 0x80:
        return first, 1
    length = 8 - (first ^ 0xFF).bit_length() if first != 0xFF else 8
    if not 2 <= length <= 7 or len(data) < length:
        return 0, 0
    number = first & (0x7F >> length)
    for byte in data[1:length]:
        if byte & 0xC0 != 0x80:
            return 0, 0
        number = number << 6 | byte & 0x3F
    return number, length
