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

from ssamba.utils.errors import ConfigError, SsambaError

EXIT_LOST = 75
"""A process ends with this code when another one has gone: the fault is not its own."""
LIFELINE = "SSAMBA_LIFELINE"
"""Variable with the descriptor of a pipe whose other end the launcher holds."""
GRACE_SECONDS = 10.0
LOOK_SECONDS = 0.05


def launch(words: Sequence[str], count: int) -> int:
    """Run ``ssamba`` with these words, but ``--devices``, in ``count`` processes, and return their exit code.

    The first process has the terminal. Of the others one is heard only when it alone knows what went wrong. Raises
    ``SsambaError`` when a process was killed.
    """
    if "WORLD_SIZE" in os.environ:
        raise ConfigError("devices: torchrun has started this process already; leave --devices out")
    words = _without_devices(words)
    here, there = os.pipe()
    with socket.socket() as probe, contextlib.ExitStack() as stack:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        errors: list[IO[bytes]] = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        processes = []
        for rank in range(count):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LIFELINE: here}
            streams: dict[str, Any] = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": errors[rank]}
            environment = {**os.environ, **{k: str(v) for k, v in {**places, **meeting}.items()}}
            command = [sys.executable, "-m", "ssamba", *words]
            processes.append(subprocess.Popen(command, env=environment, pass_fds=(here,), **streams))
        os.close(here)
        try:
            with _passed_on(processes):
                return _wait(processes, errors)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            os.close(there)


def _without_devices(words: Sequence[str]) -> list[str]:
    kept = [word for word in words if not word.startswith("--devices=")]
    while "--devices" in kept:
        place = kept.index("--devices")
        del kept[place : place + 2]
    return kept


@contextlib.contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """SIGTERM and Ctrl-C are for the processes, which save their state."""

    def pass_on(number: int, _: Any) -> None:
        for process in processes:
            with contextlib.suppress(OSError):
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], errors: Sequence[IO[bytes]]) -> int:
    """The exit code: that of the process whose fault it was, where they end badly."""
    failed: list[int] = []
    deadline = None
    while any(process.poll() is None for process in processes):
        failed += [i for i, process in enumerate(processes) if i not in failed and process.poll()]
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(LOOK_SECONDS)
    codes = [process.poll() for process in processes]
    guilty = sorted((i for i, code in enumerate(codes) if code not in (0, None, EXIT_LOST)), key=_order(failed))
    if not guilty:
        return 0 if not any(codes) else EXIT_LOST
    rank, code = guilty[0], codes[guilty[0]]
    assert code is not None
    if code < 0:
        why = " (too little memory?)" if code == -signal.SIGKILL else ""
        raise SsambaError(
            f"process {rank} of {len(codes)} was ended by signal {-code}{why}; the same command goes on from the last "
            "saved state"
        )
    if codes[0] in (0, None, EXIT_LOST):  # the first process has not told anything
        errors[rank].seek(0)
        sys.stderr.write(errors[rank].read().decode(errors="replace"))
    return code


def _order(failed: Sequence[int]) -> Any:
    return lambda rank: failed.index(rank) if rank in failed else len(failed)
