"""Fine-tuning runs whose files were damaged after their end: good again, or one line that names the file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import layout_trees as trees
import pytest

from ssamba.training.finetune.recipe import load_finetune_recipe
from ssamba.training.finetune.run import finetune
from ssamba.utils.errors import CheckpointError, ConfigError, DataError
from ssamba.utils.tensor_file import verify_tensors

VALUES: dict[str, object] = {
    "width": 32,
    "depth": 2,
    "frames": 32,
    "stride": 16,
    "epochs": 2,
    "batch": 8,
    "workers": 1,
    "choose": "folds",
}
REPORTS = ("results.json", "results.md", "classes.csv", "predictions.csv", "preprocessor_config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A labelled set, and a run on it that has ended."""
    folder = tmp_path_factory.mktemp("finetune")
    data = trees.custom_table(folder / "data", split="fold")
    finetune(load_finetune_recipe("custom", VALUES), data, folder / "run", device="cpu")
    return data, folder / "run"


@pytest.fixture
def run(whole: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[1], tmp_path / "run"))


def again(data: Path, run: Path) -> None:
    finetune(load_finetune_recipe("custom", VALUES), data, run, device="cpu")


def test_a_finished_run_is_not_touched(whole: tuple[Path, Path], run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again(whole[0], run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_reports_and_model_are_good_again(whole: tuple[Path, Path], run: Path) -> None:
    for name in REPORTS:
        (run / name).write_bytes(b"\x00broken")
    os.truncate(run / "model.safetensors", 100)
    again(whole[0], run)
    for name in (*REPORTS, "model.safetensors"):
        assert (run / name).read_bytes() == (whole[1] / name).read_bytes(), name
    verify_tensors(run / "model.safetensors")


def test_outputs_of_a_fold_that_are_damaged(whole: tuple[Path, Path], run: Path) -> None:
    os.truncate(run / "fold-2" / "answers.safetensors", 300)
    with pytest.raises(CheckpointError, match=r"fold-2/answers\.safetensors: "):
        again(whole[0], run)


def test_a_model_of_a_fold_that_is_damaged(whole: tuple[Path, Path], run: Path) -> None:
    os.truncate(run / "fold-5" / "model.safetensors", 300)
    with pytest.raises(CheckpointError, match=r"fold-5/model\.safetensors: "):
        again(whole[0], run)


def test_a_config_that_is_not_the_folds(whole: tuple[Path, Path], run: Path) -> None:
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"mean": -', '"mean": -1', 1))
    with pytest.raises((CheckpointError, ConfigError), match=r"config\.json: "):
        again(whole[0], run)


def test_folds_that_were_removed(whole: tuple[Path, Path], run: Path) -> None:
    """A finished run without its folds still says its results; damaged ones are refused."""
    for number in range(1, 6):
        shutil.rmtree(run / f"fold-{number}")
    again(whole[0], run)
    (run / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"results\.json: is not JSON"):
        again(whole[0], run)


def test_other_sound_of_equal_length(whole: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole[0], tmp_path / "data"))
    path = sorted(p for p in copy.rglob("*") if p.suffix in (".wav", ".flac"))[0]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="a recording changed since the run began"):
        again(copy, run)


def test_the_epoch_is_stored_with_the_outputs(whole: tuple[Path, Path], run: Path) -> None:
    """state.json is to be read by people: the reports do not depend on it once the run has ended."""
    for number in range(1, 6):
        (run / f"fold-{number}" / "state.json").write_text('{"finished": true}')
    again(whole[0], run)
    assert (run / "results.json").read_bytes() == (whole[1] / "results.json").read_bytes()
