"""A decoding process: serves requests for waveforms until its parent process ends.

It imports no torch, and so is ready in a fifth of a second. ``ssamba.data.loaders.process_pool`` starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any, NamedTuple

import numpy as np

from ssamba.audio.decode import Waveform
from ssamba.data.examples import Example, Part
from ssamba.data.loaders.audio_cache import CacheReader, CacheSlot, SharedBlock
from ssamba.data.loaders.read_example import mix, read_window

__all__ = ["FAILED", "Request", "WindowRequest", "serve"]

FAILED = -1
"""Instead of a number of samples: the caller repeats the work and gets the error."""
MAX_MESSAGE_BYTES = 1 << 18


class WindowRequest(NamedTuple):
    """A stretch of an example; the arguments of :func:`ssamba.data.loaders.read_example.read_window`."""

    example: Example
    position: float
    start: float | None
    seconds: float | None


class Request(NamedTuple):
    """A request for a waveform: one window, or two mixed with the first one's ``share``.

    ``slots`` are those of its files in the cache, ``exact`` is for the others as in ``read_audio``.
    """

    windows: tuple[WindowRequest, ...]
    share: float = 1.0
    slots: dict[str, CacheSlot] = {}  # noqa: RUF012 (never written to)
    exact: bool = True

    def encode(self, ticket: int, row: int) -> bytes:
        """One message; the waveform goes to the row of that number."""
        windows = [
            [
                [[p.path, p.start, p.seconds, p.at] for p in w.example.parts],
                None if w.example.per_second is None else len(w.example.per_second),
                w.position,
                w.start,
                w.seconds,
            ]
            for w in self.windows
        ]
        return json.dumps([ticket, row, windows, self.share, self.slots, self.exact]).encode()


def _decode(message: bytes) -> tuple[int, int, Request]:
    ticket, row, windows, share, slots, exact = json.loads(message)
    return (
        ticket,
        row,
        Request(
            tuple(
                WindowRequest(Example("", tuple(Part(*p) for p in parts), (), None if n is None else (0,) * n), *rest)
                for parts, n, *rest in windows
            ),
            share,
            {path: CacheSlot(*slot) for path, slot in slots.items()},
            exact,
        ),
    )


def _perform(request: Request, reader: CacheReader) -> Waveform:
    waveforms = [read_window(*window, reader, reader.sample_rate) for window in request.windows]
    return waveforms[0] if len(waveforms) == 1 else mix(waveforms[0], waveforms[1], request.share)


def serve(
    parent: int, channel: int, block: int, count: int, samples: int, cache: int, cache_bytes: int, sample_rate: int
) -> None:
    """Work until the other end of the channel is closed.

    Args:
        parent: the caller's process number; requests that it left behind are not answered.
        channel: descriptor of a socket with message boundaries; all workers read requests from it and write answers.
        block: descriptor of the block of (count, samples) float32 for the waveforms.
        cache: descriptor of the cache's block, -1 for none, of ``cache_bytes``.
        sample_rate: of the waveforms and of the cache, Hz.
    """
    rows: Any = SharedBlock(4 * count * samples, block).array(np.float32, (count, samples))
    cached: Any = None
    if cache >= 0:
        cached = SharedBlock(cache_bytes, cache).array(np.int16, (cache_bytes // 2,))
    with socket.socket(fileno=channel) as line, contextlib.suppress(ConnectionError):  # the caller may go at any time
        while message := line.recv(MAX_MESSAGE_BYTES):
            if os.getppid() != parent:
                return
            ticket, row, request = _decode(message)
            reader = CacheReader(cached, request.slots, request.exact, sample_rate)
            try:
                waveform = _perform(request, reader)
                length = len(waveform) if len(waveform) <= samples else FAILED
                rows[row, : max(0, length)] = waveform[: max(0, length)]
            except Exception:  # the caller repeats the work and reports the same problem
                length = FAILED
            line.send(json.dumps([ticket, length, reader.stored]).encode())
