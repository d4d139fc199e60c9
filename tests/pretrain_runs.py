"""Pretraining runs in processes of their own, killed without warning, and compared."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def log_of(out: Path) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


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
