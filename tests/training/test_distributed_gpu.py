"""A run over two GPUs is the run on one: real processes over NCCL, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from pretrain_runs import command, log_of
from test_distributed import close, distance, ranks_of, run, wait_for_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def on_gpus(sounds: Path, out: Path, values: dict[str, object], devices: int) -> list[str]:
    return [*command(sounds, out, values, "cuda"), "--devices", str(devices)]


@pytest.fixture
def tiny(tiny: dict[str, object]) -> dict[str, object]:
    return tiny | {"precision": "fp32"}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"mix": 0.7, "gain_db": 3.0, "ema": 0.9, "latent": 0.5},
        {"mix": 0.7, "speed": 1.3, "reverb": 0.5, "short_clips": "repeat"},
    ],
)
def test_two_gpus_train_as_one(sounds: Path, tmp_path: Path, tiny: dict[str, object], extra: dict[str, object]) -> None:
    for devices in (1, 2):
        result = run(on_gpus(sounds, tmp_path / str(devices), tiny | extra, devices))
        assert result.returncode == 0, result.stderr
        assert "without CUDA graphs" not in result.stderr
    close(tmp_path / "1", tmp_path / "2", 1e-4)


def test_in_bf16_the_losses_are_near(sounds: Path, tmp_path: Path, tiny: dict[str, object]) -> None:
    for devices in (1, 2):
        result = run(on_gpus(sounds, tmp_path / str(devices), tiny | {"precision": "bf16"}, devices))
        assert result.returncode == 0, result.stderr
    for row, other in zip(log_of(tmp_path / "1"), log_of(tmp_path / "2"), strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-2)
    assert distance(tmp_path / "1", tmp_path / "2") < 1e-2


def test_a_killed_process_ends_both_and_one_gpu_goes_on(sounds: Path, tmp_path: Path, tiny: dict[str, object]) -> None:
    assert run(on_gpus(sounds, tmp_path / "1", tiny, 1)).returncode == 0
    out = tmp_path / "2"
    words = on_gpus(sounds, out, tiny | {"save_minutes": 0.0}, 2)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for_step(process, out, 3)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "ssamba: error: process 1 of 2 was ended by signal 9" in errors
    assert run(on_gpus(sounds, out, tiny | {"save_minutes": 0.0}, 1)).returncode == 0
    close(tmp_path / "1", out, 1e-4)
