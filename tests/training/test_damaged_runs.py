"""Runs whose files were damaged, edited or removed: good again, or one line that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from pretrain_runs import log_of, same_results, step_of
from safetensors.torch import load_file, save_file

from ssamba.inference.load import load
from ssamba.training.log import read_log
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.run import pretrain
from ssamba.training.run_state import PREVIOUS_FILE, STATE_FILE, read_state_values
from ssamba.utils.errors import CheckpointError, DataError, SsambaError
from ssamba.utils.tensor_file import read_tensors, verify_tensors, write_tensors

HALF = {"steps": 16}


def train(sounds: Path, out: Path, values: dict[str, object]) -> None:
    pretrain([str(sounds)], out, make_recipe(None, values), device="cpu")


def flip(path: Path, place: float, bit: int = 6) -> None:
    """Flip one bit of a file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture(scope="module")
def runs(sounds: Path, small_run: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of 24 steps, and the same one stopped after 16 of them."""
    whole, half = tmp_path_factory.mktemp("runs") / "whole", tmp_path_factory.mktemp("runs") / "half"
    train(sounds, whole, small_run)
    train(sounds, half, small_run | HALF)
    return whole, half


@pytest.fixture
def half(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """The stopped run, to be damaged."""
    return Path(shutil.copytree(runs[1], tmp_path / "run"))


def test_the_state_before_stays(half: Path) -> None:
    """At save-minutes 0 each step is saved: the state before is that of the step before."""
    values = read_state_values(half)
    assert values is not None
    assert values.step == 16
    _, metadata = read_tensors(half / PREVIOUS_FILE, digest_required=True)
    assert json.loads(metadata["state"])["step"] == 15


@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.9999], ids=str)
def test_a_flipped_bit_of_the_state(
    runs: tuple[Path, Path],
    half: Path,
    sounds: Path,
    small: dict[str, object],
    place: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run goes on from the state before, says so, and ends as an undisturbed one."""
    flip(half / STATE_FILE, place)
    train(sounds, half, small)
    assert f"{STATE_FILE}: is damaged" in (err := caplog.text)
    assert "going on from the state before, of step 15" in err
    same_results(runs[0], half)
    verify_tensors(half / PREVIOUS_FILE)


def test_a_state_that_is_missing(runs: tuple[Path, Path], half: Path, sounds: Path, small: dict[str, object]) -> None:
    """As a kill between two renames leaves it."""
    (half / STATE_FILE).unlink()
    train(sounds, half, small)
    same_results(runs[0], half)


def test_both_states_damaged(half: Path, sounds: Path, small: dict[str, object]) -> None:
    for name in (STATE_FILE, PREVIOUS_FILE):
        flip(half / name, 0.5)
    with pytest.raises(CheckpointError, match=rf"{STATE_FILE}: is damaged .*; and the state before: .*is damaged"):
        train(sounds, half, small)


def test_a_damaged_state_does_not_push_out_the_good_one(
    half: Path, sounds: Path, small: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first save that follows: two good states, none of them the damaged one."""
    flip(half / STATE_FILE, 0.5)
    plain, count = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        plain(source, target)
        if Path(target).name == STATE_FILE:
            count[0] += 1
            if count[0] == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        train(sounds, half, small)
    for name in (STATE_FILE, PREVIOUS_FILE):
        verify_tensors(half / name)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The state with other values, and a digest that fits; no state before."""
    tensors, metadata = read_tensors(folder / STATE_FILE)
    values = json.loads(metadata["state"])
    change(values)
    write_tensors(folder / STATE_FILE, tensors, {"state": json.dumps(values)})
    (folder / PREVIOUS_FILE).unlink()


BAD_VALUES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("no step", lambda v: v.pop("step"), "holds no step"),
    ("renamed", lambda v: v.update(stp=v.pop("summed")), "holds no summed"),
    ("text for a step", lambda v: v.update(step="16"), r"step '16', expected a whole number"),
    ("negative", lambda v: v.update(step=-1), "step -1"),
    ("fraction", lambda v: v.update(summed=1.5), "summed 1.5"),
    ("sums", lambda v: v.update(sums=[1]), "sums .*expected an object"),
    ("a sum", lambda v: v.update(sums={"loss": "x"}), "loss 'x', expected a number"),
    ("best", lambda v: v.update(best={"score": 1.0}), "holds no step"),
    ("no best", lambda v: v.pop("best"), "holds no best"),
    ("schedule", lambda v: v.update(schedule={}), "factor"),
    ("schedule text", lambda v: v["schedule"].update(factor="x"), "does not fit"),
    ("log", lambda v: v.update(log={}), "holds no rows"),
    ("config", lambda v: v["config"].update(width="x"), "width"),
    ("list", lambda v: v.update(schedule=[]), "schedule .*expected an object"),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD_VALUES], ids=[b[0] for b in BAD_VALUES])
def test_values_of_the_state_are_checked(
    half: Path, sounds: Path, small: dict[str, object], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewritten(half, change)
    with pytest.raises(SsambaError, match=message) as raised:
        train(sounds, half, small)
    assert "\n" not in str(raised.value)
    assert str(half) in str(raised.value)


def test_a_state_of_an_earlier_version(
    runs: tuple[Path, Path], half: Path, sounds: Path, small: dict[str, object]
) -> None:
    """No digests, no config and log in the state, no content in the recipe: goes on as before."""
    tensors, metadata = read_tensors(half / STATE_FILE)
    values = json.loads(metadata["state"])
    for name in ("config", "log"):
        del values[name]
    save_file(tensors, half / STATE_FILE, {"state": json.dumps(values), "format": "pt"})
    save_file(load_file(half / "model.safetensors"), half / "model.safetensors", {"format": "pt"})
    (half / PREVIOUS_FILE).unlink()
    stored = yaml.safe_load((half / "recipe.yaml").read_text())
    del stored["content"]
    (half / "recipe.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
    train(sounds, half, small)
    assert log_of(half) == log_of(runs[0])
    assert (half / STATE_FILE).read_bytes() == (runs[0] / STATE_FILE).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "pipe"])
def test_a_damaged_model_is_written_again(
    runs: tuple[Path, Path],
    half: Path,
    sounds: Path,
    small: dict[str, object],
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The state is that of the best validation: its weights are known."""
    path = half / "model.safetensors"
    values = read_state_values(half)
    assert values is not None
    assert values.best is not None
    known = values.best["step"] == values.step
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "flip":
        flip(path, 0.7)
    else:
        path.unlink()
        if damage == "pipe":
            os.mkfifo(path)
    train(sounds, half, small)
    err = caplog.text
    assert "model.safetensors" in err
    assert ("written again from the state" if known else "are lost") in err
    verify_tensors(path)
    load(half, device="cpu")
    if known:
        same_results(runs[0], half)


def test_a_finished_run_whose_model_is_lost(runs: tuple[Path, Path], half: Path, sounds: Path, small: Any) -> None:
    """Without its best weights the run is no result: exit code 2."""

    def earlier(values: dict[str, Any]) -> None:
        values["best"]["step"] = 8

    rewritten(half, earlier)
    os.truncate(half / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*; it held the weights of step 8"):
        train(sounds, half, small | HALF)


def test_a_finished_run_is_good_again(runs: tuple[Path, Path], sounds: Path, tmp_path: Path, small: Any) -> None:
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (run / "state.json").write_text("{")
    (run / "preprocessor_config.json").write_text("{")
    train(sounds, run, small)
    for name in ("state.json", "preprocessor_config.json"):
        assert (run / name).read_bytes() == (runs[0] / name).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b"16,", b"x,", 1),
        lambda text: text.replace(b"0.001", b"0.00\xff", 1),
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"\x00" * 50,
        lambda text: text.replace(b",", b";"),
        lambda text: text.replace(b"5.", b"6.", 1),
    ],
    ids=["text", "latin", "cut", "empty", "zeros", "semicolons", "digit"],
)
def test_a_damaged_log_is_reported(
    half: Path, sounds: Path, small: Any, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = half / "log.csv"
    before = path.read_bytes()
    assert damage(before) != before
    path.write_bytes(damage(before))
    train(sounds, half, small)
    assert "log.csv: " in caplog.text
    assert [row["step"] for row in read_log(half)][-1] == "24"


def test_an_edited_config(half: Path, sounds: Path, small: Any) -> None:
    """Another value, and another size, which the tensors do not have."""
    path = half / "config.json"
    text = path.read_text()
    mean = json.loads(text)["config"]["mean"]
    for changed in (text.replace(str(mean), str(mean + 1)), text.replace('"width": 32', '"width": 64'), text[:50], ""):
        path.write_text(changed)
        with pytest.raises(SsambaError, match=r"config\.json: ") as raised:
            train(sounds, half, small)
        assert "\n" not in str(raised.value)


def test_a_tensor_of_another_shape(half: Path, sounds: Path, small: Any) -> None:
    tensors, metadata = read_tensors(half / STATE_FILE)
    name = next(name for name in tensors if name.startswith("optimizer.exp_avg."))
    (half / PREVIOUS_FILE).unlink()
    write_tensors(half / STATE_FILE, tensors | {name: torch.zeros(3)}, metadata)
    with pytest.raises(CheckpointError, match=r"state\.safetensors: does not fit .*has shape \(3,\)"):
        train(sounds, half, small)


@pytest.mark.parametrize("text", ["", "recipe: [", "- 1\n", "recipe: 3\n", "recipe:\n  lr: 1.0\n", "\xff"])
def test_a_damaged_recipe(half: Path, sounds: Path, small: Any, text: str) -> None:
    (half / "recipe.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(SsambaError, match=r"recipe\.yaml: is missing or damaged"):
        train(sounds, half, small)


def test_seconds_go_on_rising(half: Path, sounds: Path, small: Any) -> None:
    rows = read_log(half)
    text = (half / "log.csv").read_text().splitlines()
    last = rows[-1]["seconds"]
    (half / "log.csv").write_text("\n".join([*text[:-1], text[-1].removesuffix(last) + "1000.0"]) + "\n")
    train(sounds, half, small)
    seconds = [float(row["seconds"]) for row in read_log(half)]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 1000


def test_other_sound_of_equal_length(half: Path, sounds: Path, tmp_path: Path, small: Any) -> None:
    """Refused; a copy of the data with other times is the same data."""
    copy = Path(shutil.copytree(sounds, tmp_path / "copy", copy_function=shutil.copyfile))
    train(copy, half, small)  # its data are in another folder, with other times
    assert step_of(half) == 24
    path = sorted(p for p in copy.rglob("*") if p.suffix == ".flac")[3]
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, np.roll(samples, 7), rate, subtype="PCM_16")
    with pytest.raises(DataError, match="a recording changed since the run began"):
        train(copy, half, small | {"steps": 32})


def test_the_folder_goes_during_a_run(
    sounds: Path, tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed, and replaced by an empty one: nothing more is written, and the line says why."""
    out = tmp_path / "run"
    plain = os.replace
    again: list[Path] = []

    def replace(source: Any, target: Any) -> None:
        plain(source, target)
        if Path(target).name == "state.json" and step_of(out) == 3 and not again:
            again.append(out)
            shutil.rmtree(out)
            out.mkdir()

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(SsambaError, match=r"run: was removed or replaced during the run"):
        train(sounds, out, small)
    assert not (out / STATE_FILE).exists()


def test_a_folder_in_the_place_of_a_file(half: Path, sounds: Path, small: Any) -> None:
    (half / "state.json").unlink()
    (half / "state.json").mkdir()
    with pytest.raises(SsambaError, match=r"state\.json: cannot be written \(Is a directory\); remove the folder"):
        train(sounds, half, small)


@pytest.mark.parametrize("values", [{"lr": 1e308}, {"batch": 2**30}, {"clip_norm": float("nan")}], ids=str)
def test_refused_values_leave_nothing(sounds: Path, tmp_path: Path, small: Any, values: dict[str, object]) -> None:
    with pytest.raises(SsambaError, match=next(iter(values))):
        train(sounds, tmp_path / "run", small | values)
    assert not (tmp_path / "run").exists()


def test_a_refused_source_leaves_no_folder(sounds: Path, tmp_path: Path, small: Any) -> None:
    with pytest.raises(SsambaError):
        pretrain([str(sounds)], tmp_path / "a" / "run", make_recipe(None, small), "none", device="cpu")
    assert not (tmp_path / "a").exists()
