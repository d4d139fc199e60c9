"""Ctrl-C at every operation of a main thread that shares work with other threads: nothing hangs, nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.inference.model import make_encoder
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.threads import InterruptsHeld, ThreadPool

TESTS = Path(__file__).parents[1]

EVERY = """
import gc, signal, sys, threading, time
sys.path.insert(0, {tests!r})
from interrupted_run import Interruption
from ssamba.data.loaders.prefetch import prepare_ahead
from ssamba.utils.threads import ThreadPool
signal.signal(signal.SIGINT, signal.default_int_handler)

def pool():
    with ThreadPool(2, "tried") as pool:
        jobs = [pool.submit(abs, -i) for i in range(3)]
        return [job.result() for job in jobs] + list(pool.map(abs, [-3, -4]))

def ahead():
    return list(prepare_ahead(range(5), abs, 2))

def still():
    return [t.name for t in threading.enumerate() if t.name.startswith(("tried", "ssamba-prepare"))]

counted = Interruption(0)
assert counted.run({work}) == [0, 1, 2, 3, 4]
for place in range(1, 4 * counted.count // 3):
    interruption = Interruption(place)
    try:
        found = interruption.run({work})
    except KeyboardInterrupt:
        found = "interrupted"
    ended = interruption.count < place
    del interruption  # it is in a cycle with frames, and these hold the pool
    gc.collect()
    assert found == ([0, 1, 2, 3, 4] if ended else "interrupted"), (place, found)
    if {work} is pool:  # interrupted as it closes, it ends once it is collected
        end = time.monotonic() + 10
        while still() and time.monotonic() < end:
            time.sleep(0.001)
        assert not still(), (place, still())
print(counted.count)
"""


@pytest.mark.parametrize("work", ["pool", "ahead"])
def test_ctrl_c_at_every_operation(work: str) -> None:
    script = EVERY.format(tests=str(TESTS), work=work)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background, and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_wait_for_a_thread_ends_at_once(ctrl_c: None) -> None:
    release = threading.Event()
    threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,)).start()
    begin = time.monotonic()
    with ThreadPool(1) as pool:
        job = pool.submit(release.wait, 60)
        never = pool.submit(print, "not called")
        with pytest.raises(KeyboardInterrupt):
            job.result()
        assert time.monotonic() - begin < 5
        assert not pool.closing
        release.set()
    assert job.result() is True
    assert pool.closing
    with contextlib.suppress(CancelledError):
        assert never.result() is None  # the thread was quicker than the pool's end


def test_errors_of_calls_are_raised_and_threads_need_no_handler() -> None:
    def fail() -> None:
        raise TimeoutError("of the call itself")

    found: list[BaseException | int] = []

    def elsewhere() -> None:
        with ThreadPool(0) as pool, InterruptsHeld() as held:
            found.append(pool.submit(abs, -1).result())
            assert not held.asked

    with ThreadPool(1) as pool, pytest.raises(TimeoutError, match="of the call itself"):
        pool.submit(fail).result()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [1]


def test_held_interrupts_are_nested_and_raised_once(ctrl_c: None) -> None:
    steps = []
    inner, outer = InterruptsHeld(), InterruptsHeld()

    def nested() -> None:
        with outer:
            with inner:
                signal.raise_signal(signal.SIGINT)
                steps.append("inner")
            steps.append("outer")

    with pytest.raises(KeyboardInterrupt):
        nested()
    assert (steps, inner.asked, outer.asked) == (["inner", "outer"], True, True)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with InterruptsHeld() as after:
        pass
    assert not after.asked


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_no_handler_of_python_stays_as_it_is(ctrl_c: None, handler: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)
    with InterruptsHeld():
        assert signal.getsignal(signal.SIGINT) is handler
    assert signal.getsignal(signal.SIGINT) is handler


def embedding(folder: Path, place: int) -> subprocess.CompletedProcess[str]:
    words = ["embed", "data", "--model", "model", "--device", "cpu", "--out", f"{place}.npz"]
    return subprocess.run(
        [sys.executable, TESTS / "interrupted_run.py", str(place), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_ctrl_c_at_operations_of_a_command(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        t = np.arange(16000 * 65) / 16000
        soundfile.write(tmp_path / f"data/{number}.flac", 0.3 * np.sin(1000 * t + number), 16000)
    save_model(tmp_path / "model", make_encoder(Config(width=32, depth=2, frames=64)))
    count = int(embedding(tmp_path, 0).stdout.splitlines()[-1])
    assert count > 500
    for place in np.random.default_rng(count).integers(1, count * 3 // 4, 16).tolist():
        done = embedding(tmp_path, place)
        over = f"{place}.npz" in done.stdout  # written before, or shorter than the run that was counted
        assert done.returncode in ((0, 130) if over else (130,)), (place, done)
        assert done.stderr == ("ssamba: error: interrupted\n" if done.returncode else ""), (place, done)
        assert not list(tmp_path.glob(f".{place}.npz*")), place
