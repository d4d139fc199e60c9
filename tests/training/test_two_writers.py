"""Two commands that write to one place: the second is refused in one line, and the first is not disturbed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import layout_trees as trees
import pytest
from pretrain_runs import command, log_of, step_of

from ssamba.utils.lock import lock_folder, lock_output


def ssamba(*words: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "ssamba", *words]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)


def test_two_runs_in_one_folder(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    out = tmp_path / "run"
    first = subprocess.Popen(command(sounds, out, small | {"steps": 400}), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while step_of(out) < 2 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        second = subprocess.run(
            command(sounds, out, small | {"lr": 0.01}), capture_output=True, text=True, timeout=300, check=False
        )
        assert first.poll() is None, "the first run ended too early"
        assert second.returncode == 2
        assert f"process {first.pid} on " in second.stderr
        assert len(second.stderr.splitlines()) == 1
    finally:
        first.terminate()
        assert first.wait(60) == 130
    assert len(log_of(out)) >= 1
    assert not (out / ".ssamba.lock").exists()


@pytest.mark.parametrize("what", ["finetune", "probe", "embed", "predict", "convert"])
def test_other_commands(sounds: Path, tmp_path: Path, official_path: Path, what: str) -> None:
    data, out = trees.custom_table(tmp_path / "data"), tmp_path / "out"
    sound = str(next(p for p in sounds.rglob("*") if p.suffix == ".flac"))
    if what == "finetune":
        words, place = ["finetune", "custom", "--data", str(data), "--out", str(out)], lock_folder(out)
    elif what == "probe":
        words, place = ["probe", "custom", "--data", str(data), "--out", str(out)], lock_folder(out)
    elif what == "convert":
        words, place = ["convert", str(official_path), str(out)], lock_output(out)
    else:
        name = tmp_path / ("out.npz" if what == "embed" else "out.csv")
        words, place = [what, sound, "--out", str(name)], lock_output(name)
        if what == "predict":
            model = tmp_path / "model"
            made = "finetune custom --epochs 1 --width 32 --depth 2 --frames 32 --stride 16 --from none --device cpu"
            assert ssamba(*made.split(), "--data", str(data), "--out", str(model)).returncode == 0
            words += ["--model", str(model)]
    with place:
        done = ssamba(*words)
    assert done.returncode == 2, done.stderr
    assert "another process writes there (process " in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
