"""The length of MPEG audio files (MP3) that do not state it, or state another than they have.

Decoders estimate the length from the first frame's bit rate and the file's size, which is wrong for variable and
average bit rates. Here the headers of all frames are counted; nothing is decoded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import BinaryIO, NamedTuple

from ssamba.audio.layout import AS_IT_IS, Layout, read_at

_FIRST_BYTES, _SEARCH_BYTES = 1 << 12, 1 << 16
_BLOCK = 1 << 20
_SPARE_FRAMES = 1000
_DECODER_DELAY = 529
_RATES = (44100, 48000, 32000)
_BITRATES = {  # kbit/s by (MPEG 1 or not, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class _Kind(NamedTuple):
    """What all frames of a stream have in common."""

    sync: int  # of the second byte, without the bit of the checksum
    rate_code: int
    samples: int
    layer: int
    side_bytes: int
    lengths: tuple[int, ...]  # of a frame by its third byte; 0: no such frame


class _Scan(NamedTuple):
    """Frames counted, whether nothing but tags lay between and behind them, and where the last one ends."""

    frames: int
    regular: bool
    end: int


def examine_mpeg(raw: BinaryIO, size: int, begin: int) -> Layout:
    """The layout of a file with an MPEG frame within 64 KiB behind byte `begin`, which lies behind its tags."""
    first = _first_frame(raw, begin)
    if first is None:
        return AS_IT_IS
    as_it_is = AS_IT_IS if first[0] == begin else Layout((((first[0], size),),))  # without what lies in front
    begin, kind = first
    head = read_at(raw, begin, 256)
    length = kind.lengths[head[2]]
    stated, ends = _xing(head, kind)
    if stated and ends is not None and begin + ends <= size and not _goes_on(raw, begin + ends, kind):
        return as_it_is
    if head[36:40] == b"VBRI" or stated is not None:
        begin += length
    scan = _scan(raw, size, begin, kind)
    if stated and scan.frames == stated:
        return as_it_is
    if stated and scan.frames < stated:
        return Layout(as_it_is.streams, truncated=True)  # decoding stops early and says where
    if kind.layer != 3 or not scan.frames:
        return as_it_is
    if not scan.regular:  # the decoder may find other frames between what is none: it goes on as long as it does
        return Layout(((_stating(head, kind, 2 * scan.frames + _SPARE_FRAMES), (begin, size)),), uncertain=True)
    view = (_stating(head, kind, scan.frames), (begin, size))
    return Layout((view,), frames=None if as_it_is.streams else scan.frames * kind.samples)


def _kind(head: bytes) -> _Kind | None:
    """The kind of a frame with this header; None when it is none, or of free format."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate_code = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3
    if version == 1 or layer == 4 or rate_code == 3:
        return None
    kind = _make_kind(version, layer, rate_code, head[3] >> 6 == 3)
    return kind if kind.lengths[head[2]] else None


@lru_cache(maxsize=64)
def _make_kind(version: int, layer: int, rate_code: int, mono: bool) -> _Kind:
    """By the codes of a header: version 3 is MPEG 1, 2 MPEG 2, 0 MPEG 2.5."""
    rate = _RATES[rate_code] >> {3: 0, 2: 1, 0: 2}[version]
    mpeg1 = version == 3
    samples = {1: 384, 2: 1152, 3: 1152 if mpeg1 else 576}[layer]
    lengths = []
    for third in range(256):
        code, padding = third >> 4, third >> 1 & 1
        bits = 0 if code == 15 or third >> 2 & 3 != rate_code else _BITRATES[mpeg1, layer][code] * 1000
        if layer == 1:
            lengths.append((12 * bits // rate + padding) * 4 if bits else 0)
        else:
            lengths.append(samples // 8 * bits // rate + padding if bits else 0)
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return _Kind(0xE0 | version << 3 | 4 - layer << 1, rate_code, samples, layer, side, tuple(lengths))


def _is_frame(head: bytes, kind: _Kind) -> bool:
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xFE == kind.sync and kind.lengths[head[2]] > 0


def _goes_on(raw: BinaryIO, position: int, kind: _Kind) -> bool:
    """Whether more frames follow at a position where the stream should end, behind tags of a joined file or at once."""
    return _is_frame(read_at(raw, _behind_id3(raw, position), 4), kind)


def _behind_id3(raw: BinaryIO, position: int) -> int:
    """Position behind the ID3v2 tags that begin at `position`."""
    for _ in range(16):
        head = read_at(raw, position, 10)
        if len(head) < 10 or head[:3] != b"ID3" or max(head[6:]) > 127:
            return position
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        position += 10 + length + (10 if head[5] & 16 else 0)
    return position


def skip_tags(raw: BinaryIO) -> int:
    """Position behind the tags at the beginning of a file; 0 without any."""
    return _behind_id3(raw, 0)


def _first_frame(raw: BinaryIO, begin: int) -> tuple[int, _Kind] | None:
    """Position and kind of the first of two frames that follow each other."""
    block = read_at(raw, begin, _FIRST_BYTES)
    kind = _kind(block[:4])
    if kind is not None and _is_frame(block[kind.lengths[block[2]] :][:4], kind):
        return begin, kind
    block = read_at(raw, begin, _SEARCH_BYTES)
    at = -1
    while (at := block.find(b"\xff", at + 1)) >= 0:
        kind = _kind(block[at : at + 4])
        if kind is None:
            continue
        follows = at + kind.lengths[block[at + 2]]
        if follows >= len(block) or _is_frame(block[follows : follows + 4], kind):
            return begin + at, kind
    return None


def _xing(head: bytes, kind: _Kind) -> tuple[int | None, int | None]:
    """The frames (0: not stated) and the bytes that a Xing or Info header states; None: without it."""
    at = 4 + kind.side_bytes
    if kind.layer != 3 or head[at : at + 4] not in (b"Xing", b"Info"):
        return None, None
    flags = int.from_bytes(head[at + 4 : at + 8], "big")
    at += 8
    frames = int.from_bytes(head[at : at + 4], "big") if flags & 1 else 0
    at += 4 if flags & 1 else 0
    return frames, int.from_bytes(head[at : at + 4], "big") if flags & 2 else None


def _scan(raw: BinaryIO, size: int, begin: int, kind: _Kind) -> _Scan:
    """Count the whole frames from `begin` to the end of the file."""
    frames, regular, position = 0, True, begin
    lengths, sync = kind.lengths, kind.sync
    while position < size:
        block = read_at(raw, position, min(_BLOCK, size - position))
        at, last = 0, len(block) - 4
        while at <= last and block[at] == 0xFF and block[at + 1] & 0xFE == sync and (n := lengths[block[at + 2]]):
            at += n
            frames += 1
        position += at
        if at > last:
            if position >= size - 3:
                break
            continue
        rest = block[at : at + 16]
        if rest.startswith((b"TAG", b"APETAGEX", b"LYRICSBEGIN")) and size - position < _BLOCK:
            return _Scan(frames, regular, position)
        behind = _behind_id3(raw, position)
        if behind == position:
            found = _first_frame(raw, position)
            if found is not None and found[0] == position:  # a frame of another kind than the stream's: behind it
                found = _first_frame(raw, position + 1)
            regular = False
            if found is None:
                return _Scan(frames, not any(block[at:]) and frames > 0, position)
            behind = found[0]
        position = behind
    if position > size and frames:  # the last frame is cut off
        frames -= 1
    return _Scan(frames, regular, min(position, size))


def _stating(head: bytes, kind: _Kind, frames: int) -> bytes:
    """Two frames without sound, the first with a Xing header that states that number of frames behind them.

    A decoder that finds such a header takes its own delay from the beginning. The encoder's delay is not known here and
    nothing must be lost, so the header states a delay with which exactly the second frame is cut off.
    """
    least = 4 + kind.side_bytes + 12 + 36
    third = next(n for n in range(256) if not n & 1 and kind.lengths[n] >= least)
    empty = bytes([0xFF, head[1] | 1, third, head[3]]) + bytes(kind.side_bytes)
    delays = (kind.samples - _DECODER_DELAY) << 12 | _DECODER_DELAY
    xing = b"Xing" + (1).to_bytes(4, "big") + min(frames + 1, 0xFFFFFFFF).to_bytes(4, "big")
    xing += b"LAME".ljust(21, b"\0") + delays.to_bytes(3, "big")
    return (empty + xing).ljust(kind.lengths[third], b"\0") + empty.ljust(kind.lengths[third], b"\0")
