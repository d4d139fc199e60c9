"""Decoding in several processes, for machines on which threads wait for the interpreter lock.

The processes are plain interpreters that run ``ssamba.data.loaders.decode_worker``, started as programs and not by
multiprocessing: the caller's main module is not run again in them, CUDA and torch are not there, and no semaphores or
named memory can be left behind. Requests are datagrams on one socket pair, so the next free process takes the next.
Waveforms come back in shared memory. However the caller ends, its end of the pair closes and the processes
end.

A process that dies or is stopped takes a request with it, and nobody can say which. So all of them are replaced, on a
new pair of sockets, and get all requests again that have not been answered. A waveform depends on its request alone, so
that the results are the same.
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
from ssamba.utils.terminal import note

__all__ = ["DecodingProcesses", "processes_available"]

_CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ssamba.data.loaders.decode_worker import serve
serve(*map(int, sys.argv[2:]))"""
_NOT_NOW = (BlockingIOError, BrokenPipeError, ConnectionResetError)
"""The socket would block, or the peer has closed it, which ``_look`` finds out."""
_LOOK_SECONDS = 0.5
MAX_LOSSES = 3
"""So many times processes are replaced within ``LOSSES_FORGOTTEN`` results; the next loss ends the run."""
LOSSES_FORGOTTEN = 1000


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
        self._sent: dict[int, Request] = {}
        self._row_of: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._tickets = 0
        self._losses: list[int] = []
        self._stopped: set[int] = set()
        block, size = (-1, 0) if cache is None else (cache.block.fd, cache.block.size)
        self._count, self._numbers = count, [self._block.fd, rows, samples, block, size, sample_rate]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start()

    def _start(self) -> None:
        """Start the processes on a new pair of sockets."""
        self._line, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setblocking(False)
        descriptors = [n for n in (other.fileno(), self._numbers[0], self._numbers[3]) if n >= 0]
        with other:
            self._processes = _start(self._count, [os.getpid(), other.fileno(), *self._numbers], descriptors)
        self._looked = time.monotonic()

    def __enter__(self) -> DecodingProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
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
            SsambaError: processes have ended again and again.
        """
        self._look()
        while ticket not in self._lengths:
            poll = select.poll()
            poll.register(self._line, select.POLLIN | (select.POLLOUT if self._backlog and self._free else 0))
            poll.poll(1000 * _LOOK_SECONDS)
            self._exchange()
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
                    self._sent[ticket] = request
                else:
                    self._lengths[ticket] = FAILED
                self._row_of[ticket] = self._free.pop()
                self._backlog.popleft()
        with contextlib.suppress(*_NOT_NOW):
            self._receive()

    def _receive(self) -> None:
        """Take what has come."""
        while message := self._line.recv(MAX_MESSAGE_BYTES):
            ticket, length, stored = json.loads(message)
            self._lengths[ticket] = length
            del self._sent[ticket]
            if self._cache is not None and stored:
                self._cache.note({path: CacheSlot(*slot) for path, slot in stored.items()})

    def _look(self) -> None:
        """Now and then: are all processes alive and running? Replace them otherwise."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        stopped = {process.pid for process in self._processes if _is_stopped(process.pid)}
        # Ctrl-Z stops this process as well, and it may be the first to go on: only what stays stopped counts.
        still = stopped & self._stopped
        lost = [process for process in self._processes if process.poll() is not None or process.pid in still]
        self._stopped = stopped
        if lost:
            self._replace(_how_lost(lost[0]))

    def _replace(self, how: str) -> None:
        """Start again with new processes and the requests that were not answered; tell the user."""
        answered = self._tickets - len(self._backlog) - len(self._sent)
        self._losses = [n for n in self._losses if answered - n < LOSSES_FORGOTTEN]
        if len(self._losses) == MAX_LOSSES:
            raise SsambaError(f"a decoding process {how}, after {MAX_LOSSES} others; start again with fewer --workers")
        self._losses.append(answered)
        note(f"a decoding process {how}; all are replaced and go on")
        with contextlib.suppress(*_NOT_NOW):
            self._receive()
        self._end()
        for ticket in sorted(self._sent, reverse=True):
            self._free.append(self._row_of.pop(ticket))
            self._backlog.appendleft((ticket, self._sent.pop(ticket)))
        self._stopped = set()
        self._start()
        self._exchange()


def _is_stopped(pid: int) -> bool:
    """Whether a process has been stopped (SIGSTOP, a debugger)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"T", b"t")
    except OSError:
        return False


def _how_lost(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code is None:
        return "was stopped by a signal"
    if code >= 0:
        return f"ended with code {code}"
    return f"was ended by signal {-code}" + (" (too little memory?)" if code == -signal.SIGKILL else "")


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
