"""Pretraining runs in processes of their own, killed without warning, and compared."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

SMALL: dict[str, object] = {
    "width": 32,
    "depth": 2,
    "frames": 64,
    "mask": 16,
    "validation_mask": 16,
    "batch": 4,
    "steps": 24,
    "lr": 1e-3,
    "warmup_steps": 4,
    "warmup_every": 1,
    "validate_every": 8,
    "validation": 0.1,
    "log_every": 3,
    "save_minutes": 0.0,
}
"""A run of seconds: one pair of blocks on 8 x 4 patches."""


TIMES = ("seconds", "clips_per_second")


def command(sounds: Path, out: Path, values: dict[str, object], device: str = "cpu") -> list[str]:
    options = []
    for key, value in values.items():
        name = f"--{key.replace('_', '-')}"
        options += [name] if value is True else [name, str(value)]
    return [sys.executable, "-m", "ssamba", "pretrain", str(sounds), "--out", str(out), "--device", device, *options]


def step_of(out: Path) -> int:
    try:
        return int(json.loads((out / "state.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def states_of_every_step() -> Iterator[list[dict[str, Tensor]]]:
    """The trained model's weights of every step of runs in this process that save each (``save_minutes`` 0)."""
    found: dict[int, dict[str, Tensor]] = {}
    plain = os.replace

    def replace(source: Path, target: Path) -> None:
        plain(source, target)
        if Path(target).name == "state.json":
            state = load_file(Path(target).with_name("state.safetensors"))
            found[step_of(Path(target).parent)] = {
                key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")
            }

    weights: list[dict[str, Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        yield weights
    weights.extend(found[step] for step in sorted(found))


def log_of(out: Path) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def end_at(
    arguments: list[str], where: str, step: int, number: int = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ssamba ...`` so that it ends itself with a signal; see ended_run.py for ``where``."""
    assert arguments[1:3] == ["-m", "ssamba"]
    script = str(Path(__file__).with_name("ended_run.py"))
    command = [arguments[0], script, where, str(step), str(int(number)), *arguments[3:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def killed_at(arguments: list[str], where: str, step: int) -> None:
    """The same with SIGKILL, which the run must not outlive."""
    done = end_at(arguments, where, step)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def kill_at(arguments: list[str], out: Path, step: int) -> None:
    """Start the command and kill it without warning once the run has reached a step."""
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while step_of(out) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def same_results(one: Path, other: Path) -> None:
    assert log_of(one) == log_of(other)
    for name in ("model.safetensors", "state.safetensors", "config.json", "state.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
