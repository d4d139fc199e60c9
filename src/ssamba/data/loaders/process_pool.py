"""Decoding in several processes, for machines on which threads wait for the interpreter lock.

The processes are plain interpreters that run ``ssamba.data.loaders.decode_worker``, started as programs and not by
multiprocessing: the caller's main module is not run again in them, CUDA and torch are not there, and no semaphores or
named memory can be left behind. Requests are datagrams on one socket pair, so the next free process takes the next.
Waveforms come back in shared memory. However the caller ends, its end of the pair closes and the processes
end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from ssamba.audio.decode import Waveform
from ssamba.data.loaders.audio_cache import AudioCache, CacheSlot, SharedBlock
from ssamba.data.loaders.decode_worker import FAILED, MAX_MESSAGE_BYTES, Request
from ssamba.utils.errors import SsambaError

__all__ = ["DecodingProcesses", "processes_available"]

_CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ssamba.data.loaders.decode_worker import serve
serve(*map(int, sys.argv[2:]))"""
_NOT_NOW = (BlockingIOError, BrokenPipeError, ConnectionResetError)
"""The socket would block, or the peer has closed it, which ``_look`` finds out."""
_LOOK_SECONDS = 0.5


def processes_available() -> bool:
    """Whether this system has sockets that keep messages apart: Linux does, macOS and Windows do not."""
    return sys.platform == "linux"


class DecodingProcesses:
    """Processes that decode what is asked for; to be used as a context, which ends them.

    Args:
        count: processes.
        rows: waveforms that may be under way or held at a time.
        samples: longest waveform.
        sample_rate: of the waveforms, Hz.
        cache: that the requests' slots belong to.
    """

    def __init__(self, count: int, rows: int, samples: int, sample_rate: int, cache: AudioCache | None = None) -> None:
        self._cache = cache
        self._block = SharedBlock(4 * rows * samples)
        self._rows = self._block.array(np.float32, (rows, samples))
        self._free = list(range(rows))
        self._backlog: deque[tuple[int, Request]] = deque()
        self._row_of: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._tickets = 0
        self._line, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setblocking(False)
        self._poll = select.poll()
        block, size = (-1, 0) if cache is None else (cache.block.fd, cache.block.size)
        numbers = [os.getpid(), other.fileno(), self._block.fd, rows, samples, block, size, sample_rate]
        with other:
            self._processes = _start(count, numbers, [n for n in (other.fileno(), self._block.fd, block) if n >= 0])
        self._looked = time.monotonic()

    def __enter__(self) -> DecodingProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        for process in self._processes:  # they hold nothing that could be lost
            process.kill()
        for process in self._processes:
            process.wait()

    def submit(self, request: Request) -> int:
        """Ask for a waveform; the ticket is for :meth:`result`."""
        self._tickets += 1
        self._backlog.append((self._tickets, request))
        self._exchange()
        return self._tickets

    def result(self, ticket: int) -> Waveform | None:
        """Wait for a waveform: (samples,), valid until :meth:`release`. None: it could not be made there.

        Raises:
            SsambaError: a process has ended.
        """
        while ticket not in self._lengths:
            self._poll.register(self._line, select.POLLIN | (select.POLLOUT if self._backlog and self._free else 0))
            self._poll.poll(1000 * _LOOK_SECONDS)
            self._exchange()
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._look()
        length = self._lengths[ticket]
        return None if length == FAILED else self._rows[self._row_of[ticket], :length]  # type: ignore[return-value]

    def release(self, ticket: int) -> None:
        """Give the memory of a result back."""
        del self._lengths[ticket]
        self._free.append(self._row_of.pop(ticket))

    def _exchange(self) -> None:
        """Send what can be sent and take what has come, without waiting."""
        with contextlib.suppress(*_NOT_NOW):
            while self._backlog and self._free:
                ticket, request = self._backlog[0]
                message = request.encode(ticket, self._free[-1])
                if len(message) < MAX_MESSAGE_BYTES:
                    self._line.send(message)
                else:
                    self._lengths[ticket] = FAILED
                self._row_of[ticket] = self._free.pop()
                self._backlog.popleft()
        with contextlib.suppress(*_NOT_NOW):
            while message := self._line.recv(MAX_MESSAGE_BYTES):
                ticket, length, stored = json.loads(message)
                self._lengths[ticket] = length
                if self._cache is not None and stored:
                    self._cache.note({path: CacheSlot(*slot) for path, slot in stored.items()})

    def _look(self) -> None:
        self._looked = time.monotonic()
        for process in self._processes:
            code = process.poll()
            if code is not None:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
                short = " (too little memory?)" if code == -signal.SIGKILL else ""
                raise SsambaError(f"a decoding process {how}{short}; start again, or with fewer --workers")


def _start(count: int, numbers: list[int], descriptors: list[int]) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", _CODE, json.dumps(sys.path), *map(str, numbers)]
    # One thread each: the libraries' thread pools would compete for the cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with _held_back():
        return [
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, pass_fds=descriptors
            )
            for _ in range(count)
        ]


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP to the whole group are for the caller, which decides when the processes end.

    A signal that is blocked here stays blocked in programs started meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
