"""A decoding process: encoded audio in, a waveform out, until the other end of the pipe is closed.

It imports no torch. A message, in both directions, is four bytes with the length of a JSON head, the head, and as many
bytes of content as the head says.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ssamba.audio.decode import Waveform, read_audio, stream_audio
from ssamba.audio.encoded import Encoded
from ssamba.utils.errors import AudioError, UnknownFormatError

__all__ = ["MEMORY_ABOVE_START", "OTHER", "TOO_LONG", "UNKNOWN_FORMAT", "Message", "read_message", "serve_decoding"]

MEMORY_ABOVE_START = 512 << 20
"""Bytes of address space that decoding may take, in addition to three times the largest request."""
DECODED_AT_ONCE = 10.0
TOO_LONG, UNKNOWN_FORMAT, OTHER = "too long", "unknown format", "other"
"""What was wrong with a recording."""


class Message(NamedTuple):
    """A JSON head and content."""

    head: dict[str, Any]
    content: bytes = b""

    def write(self, pipe: BinaryIO) -> None:
        """Send it."""
        head = json.dumps({**self.head, "bytes": len(self.content)}).encode()
        pipe.write(struct.pack("<I", len(head)) + head)
        pipe.write(self.content)
        pipe.flush()


def read_message(pipe: BinaryIO) -> Message | None:
    """The next message, None where the other end is closed."""
    size = pipe.read(4)
    if len(size) < 4:
        return None
    head = pipe.read(struct.unpack("<I", size)[0])
    try:
        values = json.loads(head)
    except ValueError:
        return None
    content = pipe.read(values["bytes"])
    return None if len(content) < values["bytes"] else Message(values, content)


def serve_decoding(max_bytes: int) -> None:
    """Answer requests on standard input until it ends."""
    _limit_process(MEMORY_ABOVE_START + 3 * max_bytes)
    pipe, out = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(BrokenPipeError):
        while (message := read_message(pipe)) is not None:
            answer(message).write(out)


def answer(message: Message) -> Message:
    """A waveform as float32, or what is wrong with the recording."""
    waveform: Waveform | None
    try:
        if "path" in message.head:
            waveform = _stretch(message.head)
        else:
            source = Encoded(message.head["name"], message.content)
            waveform = decode_up_to(source, message.head["rate"], message.head["seconds"])
    except UnknownFormatError as error:
        return Message({"problem": UNKNOWN_FORMAT, "reason": error.reason})
    except AudioError as error:
        return Message({"problem": OTHER, "reason": error.reason})
    except MemoryError:
        return Message({"problem": OTHER, "reason": "takes more memory to decode than is allowed here"})
    if waveform is None:
        return Message({"problem": TOO_LONG, "reason": ""})
    return Message({"samples": len(waveform)}, np.ascontiguousarray(waveform, "<f4").tobytes())


def decode_up_to(source: Encoded, rate: int, seconds: float) -> Waveform | None:
    """What ``read_audio`` gives of an encoded recording, None where it lasts longer than ``seconds``.

    No more is decoded than that. Raises ``AudioError``.
    """
    parts: list[Waveform] = []
    held, limit = 0, round(seconds * rate)
    for block in stream_audio(source, DECODED_AT_ONCE, rate):
        parts.append(block)
        held += len(block)
        if held > limit:
            return None
    return np.concatenate(parts)


def _stretch(head: Mapping[str, Any]) -> Waveform:
    return read_audio(head["path"], head["rate"], head["start"], head["seconds"])


def _limit_process(memory: int) -> None:
    """Bound the address space from now on, and forbid to write files; where the system knows such limits."""
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
