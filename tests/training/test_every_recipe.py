"""Every recipe from its data set as downloaded to an answer of a run that stands by itself; small models, small trees.

The recipes that are not here have tests of their own in ``test_finetune.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import layout_trees as trees
import pytest

from ssamba.cli.main import main
from ssamba.training.finetune.recipe import recipe_names
from ssamba.training.finetune.report import read_results

pytestmark = pytest.mark.usefixtures("one_thread")
ELSEWHERE = {"custom", "dasl", "esc10", "voxceleb1"}
# recipe: tree, options, classes, clips of the first fold (training, validation, test), folds
CASES: dict[str, tuple[Callable[[Path], Path], str, int, tuple[int, int, int], int]] = {
    "arabic-speech-commands": (trees.arabic, "", 40, (80, 40, 40), 1),
    "audioset-20k": (trees.audioset, "--average-from 1 --average-to 1", 4, (7, 0, 7), 1),
    "audioset-2m": (trees.audioset, "--average-to 1", 4, (14, 0, 7), 1),
    "esc50": (trees.esc50, "", 50, (200, 0, 50), 5),
    "iemocap": (trees.iemocap, "--frames 98", 4, (31, 9, 10), 5),
    "speech-commands-v1": (lambda root: trees.speech_commands(root, 1), "", 30, (30, 30, 30), 1),
    "speech-commands-v2": (lambda root: trees.speech_commands(root, 2), "", 35, (35, 35, 35), 1),
    "urbansound8k": (lambda root: trees.urbansound8k(root, longest=0.5), "", 10, (90, 0, 10), 10),
}
SMALL = "--width 16 --depth 2 --frames 32 --stride 16 --epochs 1 --freq-mask 8 --time-mask 4 --workers 1 --device cpu"


def test_no_recipe_is_forgotten() -> None:
    assert ELSEWHERE | set(CASES) == set(recipe_names())


@pytest.mark.parametrize("recipe", CASES)
def test_from_the_download_to_a_prediction(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, options, classes, clips, folds = CASES[recipe]
    root = build(tmp_path / "data")
    words = ["finetune", recipe, "--data", str(root), "--from", "none", "--out", str(tmp_path / "run")]
    assert main([*words, *SMALL.split(), *options.split()]) == 0
    assert capsys.readouterr().out.startswith(f"{recipe}: ")
    values = read_results(tmp_path / "run")
    assert (values["recipe"], values["classes"], len(values["folds"])) == (recipe, classes, folds)
    assert tuple(values["folds"][0]["clips"].values()) == clips
    assert (values["sample_deviation"] is None) == (folds == 1)
    assert (tmp_path / "run/confusion.png").exists() == (not recipe.startswith("audioset"))
    # The run stands by itself: moved, its data and its folds gone.
    (tmp_path / "run").rename(tmp_path / "moved")
    for gone in (tmp_path / "data", *(tmp_path / "moved").glob("fold-*")):
        shutil.rmtree(gone)
    trees.write_clip(tmp_path / "clip.wav", 3, seconds=1.3, rate=22050)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "clip.wav", "--model", "moved", "--top", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "clip.wav (1.30 s)"
    assert len(lines) == 3
