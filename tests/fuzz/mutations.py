"""Damaging bytes and texts: a pure function of (seed input, random generator), so that every case can be made again."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

MOST_BYTES = 1 << 20
WORDS = (
    *[
        "NaN",
        "nan",
        ".nan",
        "inf",
        "-inf",
        ".inf",
        "Infinity",
        "1e999",
        "-1",
        "0",
        "-0",
        "1e308",
        "1e-320",
        "1e6",
        "1000000",
        "99999999999999999999",
        "0x10",
        "1_000",
    ],
    *[
        "1:2:3",
        "true",
        "false",
        "null",
        "~",
        "None",
        "yes",
        "[]",
        "{}",
        "[[[[",
        "]]]]",
        "{{{{",
        "&a",
        "*a",
        "<<",
        "!!python/name:os.system",
        "!!binary",
        "!!set",
    ],
    *[
        "?",
        ":",
        "-",
        "|",
        ">",
        "%",
        "@",
        "`",
        "'",
        '"',
        ",",
        ";",
        "../../etc/passwd",
        "/dev/zero",
        ".",
        "..",
        "con",
        "nul",
        "a\\b",
        "path",
        "label",
        "seconds",
        "split",
        "fold",
    ],
    *["targets", "__metadata__", "sha256", "dtype", "shape", "data_offsets"],
    *("\t", "\n", "\r", "\r\n", "\x00", "\x1b[31m", "\ufeff", "\u202e", "\ud800", "caf\u00e9", "\u97f3"),
)
EDGES = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    127,
    128,
    255,
    256,
    4095,
    4096,
    32767,
    32768,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
)
EDGES += (2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64 - 1)

Change = Callable[[random.Random, bytearray], bytearray]


def mutate(content: bytes, others: Sequence[bytes], draw: random.Random, text: bool) -> bytes:
    """One to eight changes of ``content``; ``others`` are inputs that pieces may be taken from."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        changes = TEXT_CHANGES if text and draw.random() < 0.7 else BYTE_CHANGES
        if draw.random() < 0.05 and others:
            changed = _splice(draw, changed, draw.choice(others))
        else:
            changed = draw.choice(changes)(draw, changed)
        del changed[MOST_BYTES:]
    return bytes(changed)


def _place(draw: random.Random, content: bytearray) -> int:
    """Half of all changes hit the first 256 bytes, where headers are."""
    end = len(content) if draw.random() < 0.5 else min(len(content), 256)
    return draw.randrange(end) if end else 0


def _span(draw: random.Random, content: bytearray) -> tuple[int, int]:
    begin = _place(draw, content)
    return begin, min(len(content), begin + draw.choice((1, 2, 4, 8, 16, 64, 512, 4096)))


def _flip(draw: random.Random, content: bytearray) -> bytearray:
    if content:
        content[_place(draw, content)] ^= 1 << draw.randrange(8)
    return content


def _set_byte(draw: random.Random, content: bytearray) -> bytearray:
    if content:
        content[_place(draw, content)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    return content


def _set_number(draw: random.Random, content: bytearray) -> bytearray:
    size = draw.choice((2, 4, 8))
    place = _place(draw, content)
    number = draw.choice(EDGES) % (1 << 8 * size)
    if draw.random() < 0.3:
        old = int.from_bytes(content[place : place + size], "little")
        number = (old + draw.choice((-1, 1, -256, 256, old))) % (1 << 8 * size)
    content[place : place + size] = number.to_bytes(size, draw.choice(("little", "big")))
    return content


def _remove(draw: random.Random, content: bytearray) -> bytearray:
    begin, end = _span(draw, content)
    del content[begin:end]
    return content


def _repeat(draw: random.Random, content: bytearray) -> bytearray:
    begin, end = _span(draw, content)
    content[begin:begin] = content[begin:end] * draw.choice((1, 1, 2, 16, 300))
    return content


def _noise(draw: random.Random, content: bytearray) -> bytearray:
    begin, end = _span(draw, content)
    content[begin:end] = draw.randbytes(end - begin)
    return content


def _cut(draw: random.Random, content: bytearray) -> bytearray:
    del content[_place(draw, content) :]
    return content


def _extend(draw: random.Random, content: bytearray) -> bytearray:
    return content + draw.choice((bytes(64), b"\xff" * 64, draw.randbytes(200), bytes(content[:512])))


def _move(draw: random.Random, content: bytearray) -> bytearray:
    begin, end = _span(draw, content)
    piece = content[begin:end]
    del content[begin:end]
    place = _place(draw, content)
    content[place:place] = piece
    return content


def _splice(draw: random.Random, content: bytearray, other: bytes) -> bytearray:
    cut, start = _place(draw, content), draw.randrange(len(other)) if other else 0
    return content[:cut] + other[start:]


def _word(draw: random.Random, content: bytearray) -> bytearray:
    place = _place(draw, content)
    word = draw.choice(WORDS).encode("utf-8", "surrogatepass")
    content[place : place + draw.choice((0, 0, len(word)))] = word
    return content


def _token(draw: random.Random, content: bytearray) -> bytearray:
    """Another value in the place of a number or a quoted text."""
    tokens = list(re.finditer(rb'-?[0-9][0-9.eE+-]*|"[^"\n]{0,80}"|[A-Za-z_]{2,40}', bytes(content[:65536])))
    if not tokens:
        return content
    found = draw.choice(tokens)
    numbers = [
        str(draw.choice(EDGES)),
        str(-draw.choice(EDGES)),
        repr(draw.uniform(-2, 2)),
        "9" * draw.choice((20, 400, 5000)),
    ]
    value = draw.choice([*numbers, draw.choice(WORDS), draw.choice(tokens)[0].decode("latin-1"), '"' + "x" * 300 + '"'])
    content[found.start() : found.end()] = value.encode("utf-8", "surrogatepass")
    return content


def _line(draw: random.Random, content: bytearray) -> bytearray:
    lines = bytes(content).split(b"\n")
    place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    action = draw.randrange(3)
    if action == 0:
        del lines[place]
    elif action == 1:
        lines.insert(place, lines[other])
    else:
        lines[place], lines[other] = lines[other], lines[place]
    return bytearray(b"\n".join(lines))


def _nest(draw: random.Random, content: bytearray) -> bytearray:
    place = _place(draw, content)
    content[place:place] = draw.choice((b"[", b"{", b'{"a":', b"- ", b"a: ", b'"', b"(")) * draw.choice(
        (1, 3, 40, 3000)
    )
    return content


BYTE_CHANGES: tuple[Change, ...] = (
    _flip,
    _flip,
    _set_byte,
    _set_number,
    _set_number,
    _remove,
    _repeat,
    _noise,
    _cut,
    _extend,
    _move,
)
TEXT_CHANGES: tuple[Change, ...] = (_word, _token, _token, _line, _nest)
