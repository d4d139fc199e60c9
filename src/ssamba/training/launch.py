"""Starts a command in several processes on this machine and sees that they end together. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from ssamba.training.resume.signals import stop_signals
from ssamba.utils.errors import ConfigError, SsambaError
from ssamba.utils.terminal import printable_lines

EXIT_LOST = 75
"""A process ends with this code when another one has gone: it is not the one to report."""
LAUNCHER_PIPE = "SSAMBA_LAUNCHER_PIPE"
"""Variable with the descriptor of a pipe whose other end the launcher holds."""
LAUNCHER_DONE = "SSAMBA_LAUNCHER_DONE"
"""Variable with the descriptor of a pipe to the launcher into which a process writes its rank when its work is done."""
RANK_BYTES = 4
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.05


def launch(words: Sequence[str], count: int) -> int:
    """Run ``ssamba`` with these words, but ``--devices``, in ``count`` processes, and return their exit code.

    The first process has the terminal. The errors of another are printed only when the first has none of its own.
    Raises ``SsambaError`` when a process was killed.
    """
    if "WORLD_SIZE" in os.environ:
        raise ConfigError("devices: torchrun has started this process already; leave --devices out")
    words = _without_devices(words)
    here, there = os.pipe()
    done, done_there = os.pipe()
    os.set_blocking(done, False)
    with socket.socket() as probe, contextlib.ExitStack() as stack:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        errors: list[IO[bytes]] = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        processes = []
        for rank in range(count):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            pipes = {LAUNCHER_PIPE: here, LAUNCHER_DONE: done_there}
            streams: dict[str, Any] = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": errors[rank]}
            environment = {**os.environ, **{k: str(v) for k, v in {**ranks, **rendezvous, **pipes}.items()}}
            command = [sys.executable, "-m", "ssamba", *words]
            # In a session of its own: Ctrl-C in the terminal reaches it once, from here.
            processes.append(
                subprocess.Popen(
                    command, env=environment, pass_fds=tuple(pipes.values()), start_new_session=True, **streams
                )
            )
        os.close(here)
        os.close(done_there)
        try:
            with _signals_forwarded(processes):
                return _wait_for_all(processes, errors, done)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            os.close(there)
            os.close(done)


def _without_devices(words: Sequence[str]) -> list[str]:
    kept = [word for word in words if not word.startswith("--devices=")]
    while "--devices" in kept:
        place = kept.index("--devices")
        del kept[place : place + 2]
    return kept


@contextlib.contextmanager
def _signals_forwarded(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP go to the processes, which save their state; a second one ends them at once."""

    def forward(number: int, _: Any) -> None:
        for process in processes:
            with contextlib.suppress(OSError):
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_all(processes: Sequence[subprocess.Popen[bytes]], errors: Sequence[IO[bytes]], done: int) -> int:
    """The exit code: 0, or that of the process that failed first.

    Processes but the first wait when their work is done, so that no connection closes while another one works; how they
    end then says nothing.
    """
    failed: list[int] = []
    finished: set[int] = set()
    deadline = None
    while any(process.poll() is None and i not in finished for i, process in enumerate(processes)):
        finished |= {rank for rank in _ranks_done(done) if rank > 0}
        failed += [i for i, process in enumerate(processes) if i not in {*failed, *finished} and process.poll()]
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    codes = [0 if i in finished else process.poll() for i, process in enumerate(processes)]
    failed_ranks = sorted((i for i, code in enumerate(codes) if code not in (0, None, EXIT_LOST)), key=_order(failed))
    if not failed_ranks:
        return 0 if not any(codes) else EXIT_LOST
    rank, code = failed_ranks[0], codes[failed_ranks[0]]
    assert code is not None
    if code < 0:
        errors[rank].seek(0)
        sys.stderr.write(printable_lines(errors[rank].read().decode(errors="replace")))
        why = " (too little memory?)" if code == -signal.SIGKILL else ""
        raise SsambaError(
            f"process {rank} of {len(codes)} was ended by signal {-code}{why}; the same command goes on from the last "
            "saved state"
        )
    if codes[0] in (0, None, EXIT_LOST):  # the first process has reported nothing
        errors[rank].seek(0)
        sys.stderr.write(printable_lines(errors[rank].read().decode(errors="replace")))
    return code


def _ranks_done(done: int) -> list[int]:
    try:
        data = os.read(done, 4096)
    except BlockingIOError:
        return []
    return [int.from_bytes(data[i : i + RANK_BYTES], "little") for i in range(0, len(data), RANK_BYTES)]


def _order(failed: Sequence[int]) -> Any:
    return lambda rank: failed.index(rank) if rank in failed else len(failed)
