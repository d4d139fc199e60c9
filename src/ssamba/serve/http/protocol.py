"""HTTP/1.1 as uvicorn speaks it, with bounds on connections that send their head slowly or do not read."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Seconds in which the head of a request must be complete, from the connection or its first byte on."""
READ_SECONDS = 30.0
"""Seconds in which a client must read some of an answer."""
MAX_CONNECTIONS = 1000
"""Open connections; further ones are closed at once."""
LARGEST_HEAD = 16384


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that they begin has to be complete soon."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._watch_head()
        elif self.conn.their_state is not h11.IDLE:
            self._head_timer = _cancelled(self._head_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._head_timer, self._read_timer = _cancelled(self._head_timer), _cancelled(self._read_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slowly."""
        super().pause_writing()
        self._read_timer = self._read_timer or self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        self._read_timer = _cancelled(self._read_timer)
        super().resume_writing()

    def _watch_head(self) -> None:
        self._head_timer = self._head_timer or self.loop.call_later(HEAD_SECONDS, self._head_late)

    def _head_late(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
