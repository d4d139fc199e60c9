"""A run in several processes is the run of one: real processes, over gloo, killed and resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from pretrain_runs import command, log_of, step_of
from safetensors.torch import load_file

from ssamba.training.launch import _wait_for_all
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.run import pretrain
from ssamba.utils.errors import SsambaError

WITH_VIEWS: dict[str, object] = {
    "ema": 0.9,
    "latent": 0.5,
    "views": 2,
    "latent_clip": 1e-9,
    "mix": 0.5,
    "clean_targets": True,
    "batch": 12,
}


def close(one: Path, other: Path, relative: float = 1e-5) -> None:
    """The same logs, and weights that differ by no more than the order of sums does."""
    rows, others = log_of(one), log_of(other)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, other_row in zip(rows, others, strict=True):
        for key, value in row.items():
            if value and key != "latent_clip":  # its targets are standardised over each process's clips
                assert float(value) == pytest.approx(float(other_row[key]), rel=relative, abs=1e-7), (row["step"], key)
    assert distance(one, other) < 1e-4


def distance(one: Path, other: Path) -> float:
    """Length of the difference of two models' weights, relative to that of the weights."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    # InfoNCE hardly depends on its head's biases, so Adam follows the rounding of their gradients.
    names = [name for name in weights if not re.fullmatch(r"heads.discriminative.\d.bias", name)]
    values, other_values = (torch.cat([w[name].flatten().double() for name in names]) for w in (weights, others))
    return float((values - other_values).norm() / values.norm())


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300)


def ranks_of(launcher: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def ended(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while step_of(out) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None


@pytest.mark.parametrize(
    "extra",
    [
        {"mix": 0.7, "gain_db": 3.0, "response_db": 2.0, "ema": 0.9, "latent": 0.5},
        *(
            pytest.param(values, marks=pytest.mark.slow)
            for values in (
                {},
                {"objective": "joint", "passes": 2, "clip_norm": 0.5},
                {"ema": 0.9, "latent": 0.5, "decoder_depth": 2, "masks_per_clip": 3},
                WITH_VIEWS,
                {"speed": 1.3, "reverb": 0.5, "mix": 0.5},
                {"speed": 1.3, "reverb": 0.5},
            )
        ),
    ],
    ids=",".join,
)
def test_two_processes_train_as_one(
    sounds: Path, tmp_path: Path, tiny: dict[str, object], extra: dict[str, object]
) -> None:
    tiny |= extra
    pretrain([str(sounds)], tmp_path / "one", make_recipe(None, tiny), device="cpu")
    result = run([*command(sounds, tmp_path / "two", tiny), "--devices", "2"])
    assert result.returncode == 0, result.stderr
    close(tmp_path / "one", tmp_path / "two")
    assert not list((tmp_path / "two").glob("skipped*"))


def test_views_of_a_recording_stay_together(sounds: Path, tmp_path: Path, tiny: dict[str, object]) -> None:
    tiny |= {"batch": 6, "views": 2, "contrast": 1.0, "ema": 0.9}
    result = run([*command(sounds, tmp_path / "two", tiny), "--devices", "2"])
    assert result.returncode == 2
    assert "6 clips for 2 processes; with 2 views of each, give a multiple of 4" in result.stderr


@pytest.mark.slow
def test_torchrun_starts_the_same_run(sounds: Path, tmp_path: Path, tiny: dict[str, object]) -> None:
    arguments = command(sounds, tmp_path / "two", tiny)[1:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = run([*launcher, *arguments])
    assert result.returncode == 0, result.stderr
    pretrain([str(sounds)], tmp_path / "one", make_recipe(None, tiny), device="cpu")
    close(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_goes_on_with_another_number(
    sounds: Path, tmp_path: Path, tiny: dict[str, object]
) -> None:
    tiny["save_minutes"] = 0.0
    pretrain([str(sounds)], tmp_path / "one", make_recipe(None, tiny), device="cpu")
    out = tmp_path / "two"
    arguments = command(sounds, out, tiny)
    for killed, step in ((1, 3), (0, 7)):
        process = subprocess.Popen([*arguments, "--devices", "2"], stderr=subprocess.PIPE, text=True)
        wait_for_step(process, out, step)
        ranks = ranks_of(process.pid)
        assert len(ranks) == 2
        os.kill(ranks[killed], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert errors.count("ssamba: error") == 1
        assert f"ssamba: error: process {killed} of 2 was ended by signal 9" in errors
        assert "Traceback" not in errors
        assert ended(ranks)
        assert step <= step_of(out) < 16
    pretrain([str(sounds)], out, make_recipe(None, tiny), device="cpu")  # by one process alone
    close(tmp_path / "one", out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_the_launcher_saves_and_ends_all(
    sounds: Path, tmp_path: Path, tiny: dict[str, object], number: int
) -> None:
    tiny |= {"steps": 4000, "validate_every": 4000}
    out = tmp_path / "run"
    process = subprocess.Popen([*command(sounds, out, tiny), "--devices", "2"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not ((out / "log.csv").exists() and len(log_of(out)) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = ranks_of(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert ended(ranks)
    assert step_of(out) >= 6
    assert process.returncode == (130 if number != signal.SIGKILL else -9)
    assert errors.count("the same command goes on from there") == 1
    assert "Traceback" not in errors


ENDS = {"abort": "os.abort()", "abort when done": "os.write(done, (1).to_bytes(4, 'little')); os.abort()"}


@pytest.mark.parametrize("end", ENDS)
def test_how_a_process_ends_after_its_work_says_nothing(end: str) -> None:
    """Gloo aborts a process whose peer's connection is reset, also when both are done."""
    done, there = os.pipe()
    os.set_blocking(done, False)
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"])
    script = f"import os; done = {there}; {ENDS[end]}"
    other = subprocess.Popen([sys.executable, "-c", script], pass_fds=(there,), stderr=subprocess.DEVNULL)
    os.close(there)
    with tempfile.TemporaryFile() as errors:
        if end == "abort":
            with pytest.raises(SsambaError, match="process 1 of 2 was ended by signal 6"):
                _wait_for_all([first, other], [errors, errors], done)
        else:
            assert _wait_for_all([first, other], [errors, errors], done) == 0
    os.close(done)
    first.wait()


def test_bad_input_is_told_once(sounds: Path, tmp_path: Path, tiny: dict[str, object]) -> None:
    for values, said in (({"batch": 1}, "batch: 1 clips for 2 processes"), ({"mask": 999}, "mask: 999 patches")):
        result = run([*command(sounds, tmp_path / "run", tiny | values), "--devices=2"])
        assert result.returncode == 2
        assert result.stderr.count("ssamba: error") == 1
        assert said in result.stderr
        assert "Traceback" not in result.stderr
