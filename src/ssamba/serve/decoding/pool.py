"""Decoding processes from the server's side: a few plain interpreters, each replaced when it dies or takes too long.

They are started as programs that run ``ssamba.serve.decoding.child``: a damaged file that crashes a decoder, or fills
its memory, ends one of them and no request but its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssamba.audio.decode import Waveform
from ssamba.serve.decoding.child import TOO_LONG, UNKNOWN_FORMAT, Message, read_message
from ssamba.serve.http.problems import TooLongError
from ssamba.utils.errors import AudioError, UnknownFormatError

_CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ssamba.serve.decoding.child import serve_decoding
serve_decoding(int(sys.argv[2]))"""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class DecodingPool:
    """``workers`` processes that decode recordings of up to ``max_seconds``, each within ``time_limit`` seconds.

    Its methods block, and may be called from any number of threads.

    Attributes:
        restarts: processes that had to be replaced.
    """

    def __init__(self, workers: int, max_bytes: int, max_seconds: float, time_limit: float) -> None:
        self._max_bytes, self._max_seconds, self._time_limit = max_bytes, max_seconds, time_limit
        self._lock = threading.Lock()
        self._closed = False
        self.restarts = 0
        self._all = {self._start() for _ in range(workers)}
        self._free: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()
        for process in self._all:
            self._free.put(process)

    def decode(self, name: str, content: bytes, rate: int) -> Waveform:
        """The waveform (samples,) at ``rate`` Hz of an encoded recording, which messages call ``name``.

        Raises ``AudioError``: what ``read_audio`` raises, and for a recording that is too long, takes too much time or
        memory, or crashes the decoder.
        """
        head = {"name": name, "rate": rate, "seconds": self._max_seconds}
        return self._ask(name, Message(head, content))

    def stretch(self, path: str, rate: int, start: float, seconds: float) -> Waveform:
        """A stretch of a file at ``rate`` Hz. Raises ``AudioError``."""
        return self._ask(path, Message({"path": path, "rate": rate, "start": start, "seconds": seconds}))

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            processes = list(self._all)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            _close_pipes(process)

    def _ask(self, name: str, message: Message) -> Waveform:
        reply, late = self._reply(message)
        if reply is None and not late:  # the process may have ended before it got this message
            reply, late = self._reply(message)
        if reply is None:
            why = f"takes more than {self._time_limit:g} s to decode" if late else "ends the decoding process"
            raise AudioError(name, f"{why}: is it damaged?")
        return self._waveform(name, reply)

    def _reply(self, message: Message) -> tuple[Message | None, bool]:
        """What a process says, None where it has ended; whether that was because it took too long."""
        with self._process() as process:
            late: list[bool] = []

            def end() -> None:
                late.append(True)
                process.kill()

            watch = threading.Timer(self._time_limit, end)
            watch.daemon = True
            watch.start()
            reply = None
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(OSError):  # it has ended: there is no reply
                    message.write(process.stdin)  # type: ignore[arg-type]
                    reply = read_message(process.stdout)  # type: ignore[arg-type]
            finally:
                watch.cancel()
                if reply is None:
                    process.kill()
                    process.wait()
            return reply, bool(late)

    def _waveform(self, name: str, reply: Message) -> Waveform:
        head = reply.head
        if "samples" in head:
            return np.frombuffer(reply.content, "<f4").astype(np.float32)
        if head["problem"] == TOO_LONG:
            raise TooLongError(name, f"lasts more than {self._max_seconds:g} s, the limit here: send a part of it")
        kind = UnknownFormatError if head["problem"] == UNKNOWN_FORMAT else AudioError
        raise kind(name, head["reason"])

    @contextlib.contextmanager
    def _process(self) -> Iterator[subprocess.Popen[bytes]]:
        """A free process, replaced afterwards if it has ended."""
        process = self._free.get()
        try:
            if process.poll() is not None:
                process = self._replace(process)
            yield process
        finally:
            self._free.put(process)

    def _replace(self, ended: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        _close_pipes(ended)
        with self._lock:
            if self._closed:
                return ended
            self._all.discard(ended)
            process = self._start()
            self._all.add(process)
            self.restarts += 1
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _CODE, json.dumps(sys.path), str(self._max_bytes)]
        # In a session of its own: Ctrl-C is for the server, which decides when its processes end.
        settings: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
        environment = {**os.environ, **_ONE_THREAD}
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            **settings,
        )


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
