"""Locks: real processes, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ssamba.utils import lock
from ssamba.utils.atomic_write import clear_leftovers
from ssamba.utils.errors import SsambaError
from ssamba.utils.lock import FOLDER_LOCK, lock_folder, lock_output

HOLD = """
import sys, time
from pathlib import Path
from ssamba.utils.lock import lock_folder, lock_output
with (lock_folder if sys.argv[1] == "folder" else lock_output)(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(kind: str, path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("kind", ["folder", "output"])
def test_the_second_is_refused_and_a_killed_process_holds_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "new" / "run"
    take = lock_folder if kind == "folder" else lock_output
    holder = hold(kind, path)
    try:
        with pytest.raises(SsambaError, match=rf"another process writes there \(process {holder.pid} on .*, since 20"):
            take(path).__enter__()
    finally:
        end(holder)
    assert holder.returncode == -signal.SIGKILL
    left = list(tmp_path.rglob("*.lock"))
    assert len(left) == 1  # and locks nothing
    with take(path):
        pass
    assert not list(tmp_path.rglob("*.lock"))


def test_one_of_many_that_start_at_once_holds_it(tmp_path: Path) -> None:
    """Threads, since each opens the file by itself; holders come and go, so the file is removed and made again."""
    inside, worst, refused, taken = [0], [0], [0], [0]
    guard, rounds = threading.Lock(), [0] * 200
    start = threading.Barrier(4, timeout=60)

    def work() -> None:
        for number in range(len(rounds)):
            start.wait()
            try:
                with lock_folder(tmp_path):
                    with guard:
                        inside[0] += 1
                        taken[0] += 1
                        rounds[number] += 1
                        worst[0] = max(worst[0], inside[0])
                    with guard:
                        inside[0] -= 1
            except SsambaError:
                refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst[0] == 1
    assert taken[0] + refused[0] == 800
    assert all(rounds)  # nobody is refused where nobody holds it


def test_a_lock_leaves_nothing_where_nothing_was_written(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / FOLDER_LOCK).exists()
    assert not (tmp_path / "a").exists()
    with lock_folder(tmp_path / "a"):
        (tmp_path / "a" / "result").write_text("x")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["result"]


@pytest.mark.parametrize("content", [b"", b"\xff{", b'{"pid": []}'])
def test_a_lock_file_of_any_content_is_harmless(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FOLDER_LOCK).write_bytes(content)
    with lock_folder(tmp_path):
        pass


def test_processes_of_one_run_share_the_first_ones_lock(tmp_path: Path) -> None:
    with lock_folder(tmp_path), lock_folder(tmp_path, active=False):
        pass


def test_outputs_of_one_folder_have_locks_of_their_own(tmp_path: Path) -> None:
    refused = pytest.raises(SsambaError, match=r"a\.npz: another process writes there")
    with lock_output(tmp_path / "a.npz"), lock_output(tmp_path / "b.npz"), lock_output(None), refused:
        lock_output(tmp_path / "a.npz").__enter__()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """None is at hand here: the system's refusal stands in for one."""

    def refuse(handle: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "_take", refuse)
    with lock_folder(tmp_path):
        pass
    assert "this file system has no locks (Operation not supported)" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="switches users, which takes root")
def test_a_folder_of_another_user(tmp_path: Path) -> None:
    """Read-only: no lock is needed. With a lock file that another user holds: refused."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        "import os, sys; from pathlib import Path; from ssamba.utils.lock import lock_folder; os.setuid(65534)\n"
        "try:\n with lock_folder(Path(sys.argv[1])): print('held')\nexcept Exception as error: print(error)"
    )

    def as_nobody() -> str:
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        return done.stdout

    assert as_nobody() == "held\n"
    with lock_folder(tmp_path):
        assert "another process writes there" in as_nobody()


def test_clearing_leftovers_leaves_locks(tmp_path: Path) -> None:
    """And takes temporary files with and without a suffix, and those of earlier versions."""
    for name in (".ssamba-0123abcd", ".ssamba-0123abcd.csv", ".state.0123abcd.safetensors", ".bashrc"):
        (tmp_path / name).touch()
    with lock_folder(tmp_path), lock_output(tmp_path / "a.npz"):
        clear_leftovers(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == [".bashrc"]
        assert len(list(tmp_path.glob("*.lock")) or list(tmp_path.glob(".*.lock"))) == 2
