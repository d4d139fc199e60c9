"""Signals to real runs: the first saves and ends, the second ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pretrain_runs import command, end_at, step_of

from ssamba.training.resume.signals import StopSignals
from ssamba.utils.tensor_file import verify_tensors

LONG = {"save_minutes": 60.0, "steps": 4000, "validate_every": 4000}


def test_a_closed_terminal_is_as_sigterm(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    done = end_at(command(sounds, tmp_path / "run", small | LONG), "row", 6, signal.SIGHUP)
    assert done.returncode == 130
    assert "SIGHUP: the run saves its state after this step" in done.stderr
    assert step_of(tmp_path / "run") == 6


def test_nohup_is_respected(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    code = "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    arguments = command(sounds, tmp_path / "run", small | {"steps": 9})
    script = str(Path(__file__).parents[1] / "ended_run.py")
    words = [arguments[0], script, "row", "6", str(int(signal.SIGHUP)), *arguments[3:]]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert step_of(tmp_path / "run") == 9


SLOW = """
import os, sys, time
from ssamba.training.resume.signals import StopSignals
with StopSignals() as signals:
    print("ready", flush=True)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        {work}
        if signals.asked and sys.argv[1] == "once":
            print("asked", flush=True)
            sys.exit(3)
"""


def started(work: str, mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(work=work), mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_answer_within_a_second(number: signal.Signals) -> None:
    """Though the main thread is in one call of C for three."""
    process = started("time.sleep(3)", "once")
    assert process.stderr is not None
    begin = time.monotonic()
    process.send_signal(number)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith(f"ssamba: {number.name}: the run saves its state after this step")
    assert time.monotonic() - begin < 1
    assert process.wait(20) == 3


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ends_at_once(second: signal.Signals) -> None:
    process = started("time.sleep(30)", "never")
    process.send_signal(signal.SIGINT)
    time.sleep(2.5)
    begin = time.monotonic()
    process.send_signal(second)
    assert process.wait(20) == 130
    assert time.monotonic() - begin < 2
    assert "ended at once; the last saved state is safe" in process.communicate()[1]


def test_one_request_that_comes_twice() -> None:
    """As a service manager sends it, or a terminal to a group: not a second request."""
    process = started("time.sleep(0.5)", "once")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    assert process.wait(20) == 3


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with StopSignals(speak=False) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_processes_of_one_run_get_it_once(
    sounds: Path, tmp_path: Path, small: dict[str, object], number: signal.Signals
) -> None:
    """To the whole group, as from a terminal: the launcher passes it on, and all end with a state."""
    out = tmp_path / "run"
    arguments = [*command(sounds, out, small | {"steps": 4000}), "--devices", "2"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 200
    while step_of(out) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "at once" not in err.replace("ends it at once", "")
    assert "the same command goes on from there" in err
    verify_tensors(out / "state.safetensors")


def test_a_stopped_process_goes_on(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(sounds, out, small), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while step_of(out) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    assert process.wait(120) == 0
    assert step_of(out) == 24
