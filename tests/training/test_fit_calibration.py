"""A fitted or fine-tuned run's probabilities: one temperature in the linear layer's weights, reported, exact."""

from __future__ import annotations

import json
from pathlib import Path

import layout_trees as trees
import numpy as np
import pytest
import torch

import ssamba
from ssamba.evaluation.calibration import HeldOut, calibrate
from ssamba.inference.model import make_encoder
from ssamba.inference.rejection.file import REJECTION_FILE
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import read_model, save_model
from ssamba.training.finetune.evaluate import ClassifierOutputs
from ssamba.training.finetune.recipe import load_finetune_recipe, recipe_names
from ssamba.training.finetune.run import finetune
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.fit.run import fit

pytestmark = pytest.mark.usefixtures("one_thread")
LINEAR = ("classifier.linear.weight", "classifier.linear.bias")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "small"
    config = Config(encoder="ssamba", width=16, depth=2, frames=32, state_size=4)
    save_model(folder, make_encoder(config, generator=torch.Generator().manual_seed(0)))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tones, twelve clips of each: 36 held-out ones."""
    return trees.custom_folders(tmp_path_factory.mktemp("folders"), per_class=12)


def results(out: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((out / "results.json").read_text())
    return values


def test_the_temperature_is_in_the_weights(folders: Path, source: str, tmp_path: Path) -> None:
    """Prototypes of one sharpness are too flat: their logits are divided by less than 1, in the file itself."""
    recipes = [FitRecipe(head="prototypes", calibrate=calibrate) for calibrate in (False, True)]
    plain, calibrated = tmp_path / "plain", tmp_path / "calibrated"
    fit(recipes[0], folders, plain, source, "cpu")
    values = fit(recipes[1], folders, calibrated, source, "cpu")
    assert "calibration" not in results(plain)
    found = values["calibration"]
    assert found["fitted_on"] == "cross-validation"
    assert found["clips"] == 36
    assert abs(found["temperature"] - 1) > 0.01
    (_, before), (_, after) = read_model(plain), read_model(calibrated)
    for name, tensor in before.items():
        expected = tensor / found["temperature"] if name in LINEAR else tensor
        torch.testing.assert_close(after[name], expected, rtol=1e-6, atol=1e-7)
    audio = np.sin(np.arange(4000) / 5).astype(np.float32)
    one, other = (ssamba.load(out, device="cpu") for out in (plain, calibrated))
    with torch.no_grad():
        features = one.features(audio, target_length=one.config.frames)
        scaled = (one.classify(features)[0] / found["temperature"]).softmax(0)
    assert (other.predict(audio)[0].scores[0] - scaled).abs().max() < 1e-5
    assert f"divided by {found['temperature']:.3g}, fitted on 36 clips" in (calibrated / "results.md").read_text()


def test_few_clips_are_not_calibrated(source: str, tmp_path: Path) -> None:
    root = trees.custom_folders(tmp_path / "few", per_class=8)
    values = fit(FitRecipe(), root, tmp_path / "run", source, "cpu")
    assert values["calibration"]["temperature"] == 1
    assert "24 held-out clips, 30 are needed" in values["calibration"]["note"]
    assert "24 held-out clips" in (tmp_path / "run" / "results.md").read_text().splitlines()[-1]


def test_fine_tuning_is_calibrated_by_the_clips_of_all_folds(folders: Path, source: str, tmp_path: Path) -> None:
    """The kept model is the last fold's, with W / T and b / T; T is that of all folds' test clips."""
    options = {"epochs": 1, "folds": 3, "frames": 32, "batch": 8, "head_init": "probe", "label_smoothing": 0.3}
    out = tmp_path / "run"
    values = finetune(load_finetune_recipe("custom", options), folders, out, source, "cpu")
    found = values["calibration"]
    parts = [ClassifierOutputs.load(out / f"fold-{n}" / "answers.safetensors").held_out() for n in (1, 2, 3)]
    assert [type(part) for part in parts] == [HeldOut] * 3
    assert found == calibrate(parts, "ce", "cross-validation").to_dict()
    assert found["temperature"] < 0.95, "smoothed labels leave a model less sure than it is right"
    (_, last), (_, kept) = read_model(out / "fold-3"), read_model(out)
    for name, tensor in last.items():
        expected = tensor / found["temperature"] if name in LINEAR else tensor
        assert torch.equal(kept[name], expected), name
    assert (out / REJECTION_FILE).is_file()
    assert not (out / "fold-3" / REJECTION_FILE).exists()
    silence = ssamba.load(out, device="cpu").predict(np.zeros(8000, np.float32))[0]
    assert silence.unlike is not None


def test_one_split_is_calibrated_by_its_validation_clips(source: str, tmp_path: Path) -> None:
    root = trees.custom_folders(tmp_path / "many", per_class=110)
    options = {"epochs": 1, "frames": 32, "batch": 64, "head_init": "probe", "label_smoothing": 0.3}
    values = finetune(load_finetune_recipe("custom", options), root, tmp_path / "run", source, "cpu")
    found, clips = values["calibration"], values["folds"][0]["clips"]
    assert found["fitted_on"] == "validation"
    assert found["clips"] == clips["validation"] >= 30
    assert found["nll_after"] < found["nll_before"]


def test_published_recipes_are_not_calibrated() -> None:
    recipes = {name: load_finetune_recipe(name) for name in recipe_names()}
    assert {recipe.calibrate for recipe in recipes.values()} == {"auto"}
    assert [name for name, recipe in recipes.items() if recipe.layout == "custom"] == ["custom"]
