"""Exact resume, with real processes and real SIGKILLs."""

import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from pretrain_runs import command, end_at, kill_at, killed_at, log_of, same_results, step_of

from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.run import pretrain
from ssamba.utils.errors import ConfigError


def test_a_run_that_is_killed_ends_as_an_unbroken_one(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain([str(sounds)], whole, make_recipe(None, small), device="cpu")
    killed_at(command(sounds, broken, small), "state", 10)
    assert step_of(broken) == 10
    (broken / ".state.0123abcd.safetensors").write_bytes(b"half")
    pretrain([str(sounds)], broken, make_recipe(None, small), device="cpu")
    same_results(whole, broken)
    assert [int(row["step"]) for row in log_of(broken)] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    assert not list(broken.glob(".*"))  # what a kill left half-written is gone


@pytest.mark.slow
def test_killed_runs_end_as_an_unbroken_one(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    """Killed from outside, at whatever line it is just then."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain([str(sounds)], whole, make_recipe(None, small), device="cpu")
    arguments = command(sounds, broken, small)
    for step in (1, 10, 17):  # before the first line of the log, between two validations, between two log lines
        kill_at(arguments, broken, step)
        assert step_of(broken) < 24
    (broken / ".state.0123abcd.safetensors").write_bytes(b"half")
    subprocess.run(arguments, check=True, stderr=subprocess.DEVNULL)
    same_results(whole, broken)
    assert [int(row["step"]) for row in log_of(broken)] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    assert not list(broken.glob(".*"))  # what a kill left half-written is gone


def test_kill_between_saves_repeats_steps_exactly(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    # Saved at validations only (every 8 steps): a kill in between throws away steps that then must come out the same.
    small["save_minutes"] = 60.0
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain([str(sounds)], whole, make_recipe(None, small), device="cpu")
    killed_at(command(sounds, broken, small), "row", 12)
    assert step_of(broken) == 8
    pretrain([str(sounds)], broken, make_recipe(None, small), device="cpu")
    same_results(whole, broken)


def test_sigterm_saves_and_says_how_to_go_on(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small |= {"save_minutes": 60.0, "steps": 4000, "validate_every": 4000}
    out = tmp_path / "run"
    done = end_at(command(sounds, out, small), "row", 6, signal.SIGTERM)
    assert done.returncode == 130
    assert "the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert step_of(out) == 6
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize("extra", [{"steps": 30}, {"workers": 1}])
def test_finished_run_goes_on_only_when_extended(
    sounds: Path, tmp_path: Path, small: dict[str, object], extra: dict[str, object]
) -> None:
    small["steps"] = 8
    pretrain([str(sounds)], tmp_path, make_recipe(None, small), device="cpu")
    before = (tmp_path / "state.safetensors").stat().st_mtime_ns
    pretrain([str(sounds)], tmp_path, make_recipe(None, small | extra), device="cpu")
    assert step_of(tmp_path) == extra.get("steps", 8)
    assert ((tmp_path / "state.safetensors").stat().st_mtime_ns == before) == ("steps" not in extra)


def test_runs_from_before_a_value_was_there(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    """What their recipe does not say is taken as the default, which is what they did."""
    pretrain([str(sounds)], tmp_path, make_recipe(None, small | {"steps": 8}), device="cpu")
    stored = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    for name in ("speed", "reverb", "views"):
        del stored["recipe"][name]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ConfigError, match=r"the run there has reverb 0\.0, this command says 0\.5"):
        pretrain([str(sounds)], tmp_path, make_recipe(None, small | {"reverb": 0.5}), device="cpu")
    with pytest.raises(ConfigError, match=r"the run there has speed 1\.0, this command says 1\.3"):
        pretrain([str(sounds)], tmp_path, make_recipe(None, small | {"speed": 1.3}), device="cpu")
    pretrain([str(sounds)], tmp_path, make_recipe(None, small | {"steps": 16}), device="cpu")
    assert step_of(tmp_path) == 16
