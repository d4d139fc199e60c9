"""Pretraining with tied decays and other scans, and SSAST through ``torch.compile``: real runs, exact resume."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from pretrain_runs import command, killed_at, log_of, same_results, step_of

from ssamba.models.pretrained.model_dir import read_config, read_model
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.run import pretrain
from ssamba.utils.errors import ConfigError


@pytest.mark.parametrize(("decay", "scan"), [("tied", "both"), ("free", "alternating"), ("tied", "alternating")])
def test_a_killed_run_ends_as_an_unbroken_one(
    decay: str, scan: str, sounds: Path, tmp_path: Path, small: dict[str, object]
) -> None:
    values = small | {"decay": decay, "scan": scan, "steps": 12}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain([str(sounds)], whole, make_recipe(None, values), device="cpu")
    killed_at(command(sounds, broken, values), "state", 8)
    assert step_of(broken) == 8
    pretrain([str(sounds)], broken, make_recipe(None, values), device="cpu")
    same_results(whole, broken)
    config = read_config(whole).config
    assert (config.decay, config.scan, config.directions) == (decay, scan, 1 if scan == "alternating" else 2)
    _, tensors = read_model(whole)
    rates = tensors["pairs.0.A_log_RKEN"]
    assert rates.shape[-1] == (1 if decay == "tied" else config.state_size)
    new = torch.arange(1.0, rates.shape[-1] + 1).log()
    assert not torch.equal(rates, new.expand_as(rates))  # they are trained
    with pytest.raises(ConfigError, match=f"the run there has scan {scan}"):
        pretrain([str(sounds)], whole, make_recipe(None, values | {"scan": "forward"}), device="cpu")


def test_a_recipe_of_one_direction_is_a_forward_scan(small: dict[str, object]) -> None:
    assert make_recipe(None, small | {"directions": 1}).config().scan == "forward"
    assert make_recipe(None, small | {"scan": "alternating"}).config().directions == 1


def test_only_ssast_is_compiled(small: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="compile: ssamba has compiled kernels of its own; leave it out"):
        make_recipe(None, small | {"compile": True})


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_ssast_takes_the_same_steps(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    values = small | {"encoder": "ssast", "depth": 2, "steps": 6, "residual_scale": 2}
    for name, compiled in (("plain", False), ("compiled", True)):
        pretrain([str(sounds)], tmp_path / name, make_recipe(None, values | {"compile": compiled}), device="cpu")
    plain, fast = (log_of(tmp_path / name) for name in ("plain", "compiled"))
    assert [row["step"] for row in plain] == [row["step"] for row in fast]
    for one, other in zip(plain, fast, strict=True):
        assert {name for name in one if one[name]} == {name for name in other if other[name]}
        for name in ("loss", "nce", "mse"):
            assert float(other[name]) == pytest.approx(float(one[name]), rel=1e-3)


def test_compile_where_it_cannot_work(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    values = small | {"encoder": "ssast", "depth": 2, "steps": 2}
    missing = {"CXX": "/does/not/exist", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    arguments = [*command(sounds, tmp_path / "run", values), "--compile"]
    done = subprocess.run(arguments, env={**os.environ, **missing}, capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.rstrip().splitlines()[-1]
    assert re.search(r"compile: torch.compile does not work here \(.*\); leave it out", last)
