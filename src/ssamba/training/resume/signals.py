"""Signals that ask a run to stop: the first lets it end its step and save, the second ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from ssamba.utils.threads import start_thread

EXIT_STOPPED = 130
"""Exit code of a run that was asked to stop."""
SAME_REQUEST_SECONDS = 2.0
"""Another signal within this time is the same request: a service manager sends SIGTERM and SIGHUP together."""
REPEAT_SECONDS = 0.1
"""The same signal within this time is the same request, too: a group of processes and its leader were sent it."""
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def stop_signals() -> tuple[int, ...]:
    """The signals that ask a run to stop: Ctrl-C, SIGTERM and, where it is not ignored (``nohup``), SIGHUP."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    return tuple(n for n in numbers if n != hangup or signal.getsignal(n) is not signal.SIG_IGN)


class StopSignals:
    """A context in which signals that ask to stop set ``asked`` and are answered on stderr.

    The answer comes from a thread of its own: the main thread may be in the middle of a long operation. A second
    signal, unless it is a repetition of the first (``REPEAT_SECONDS``, ``SAME_REQUEST_SECONDS``), ends the process with
    exit code 130 without any further work; files are written so that this is safe. Outside of the main thread it does
    nothing.

    Args:
        speak: whether to answer; of several processes of a run one does.
    """

    def __init__(self, speak: bool = True) -> None:
        self.asked = False
        self._speak = speak
        self._seen: dict[int, float] = {}
        self._before: dict[int, Any] = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._wakeup = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        here, there = self._sockets = socket.socketpair()
        there.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._ask) for number in stop_signals()}
        start_thread(lambda: self._answer(here), "ssamba-signals")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sockets is None:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._sockets[1].close()  # the thread reads the end, and closes the other
        self._sockets = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """The handler proper: the flag is set before the main thread goes on."""
        self.asked = True

    def _answer(self, line: socket.socket) -> None:
        with line:
            while numbers := line.recv(64):
                for number in numbers:
                    if number in self._before:
                        self._take(number)

    def _take(self, number: int) -> None:
        now, first = time.monotonic(), not self._seen
        wait = REPEAT_SECONDS if number in self._seen else SAME_REQUEST_SECONDS
        again = not first and now - self._seen.get(number, min(self._seen.values())) > wait
        self._seen.setdefault(number, now)
        self.asked = True
        name = signal.Signals(number).name
        if again:
            self._write(f"\nssamba: {name} again: ended at once; the last saved state is safe\n")
            os._exit(EXIT_STOPPED)
        if first:
            self._write(f"\nssamba: {name}: the run saves its state after this step and ends; again ends it at once\n")

    def _write(self, text: str) -> None:
        """Past Python's stream, which another thread may be in. A terminal that has gone takes nothing."""
        if self._speak:
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
