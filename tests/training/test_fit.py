"""A classifier on a frozen encoder: the answers of the regression, honest counts, a run directory like any other."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import layout_trees as trees
import numpy as np
import pytest
import soundfile
import torch
from peak_memory import PEAK

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.data.scan import SkipList
from ssamba.evaluation import metrics
from ssamba.evaluation.logistic_regression import fit_linear
from ssamba.evaluation.probe.protocol import target_matrix
from ssamba.evaluation.probe.windows import classifier_windows
from ssamba.inference.file_stream import Progress
from ssamba.inference.model import make_encoder
from ssamba.models.config import Config
from ssamba.models.pretrained.digest import model_key
from ssamba.models.pretrained.model_dir import save_model
from ssamba.training.fit import data as fit_data
from ssamba.training.fit import expectation, features
from ssamba.training.fit.expectation import count_windows
from ssamba.training.fit.heads import choose_head
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.fit.run import fit, prepare_fit
from ssamba.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder(folder: Path, kind: str = "ssamba", seed: int = 0) -> str:
    """A model directory with random weights, two blocks on 8 rows of patches."""
    heads = 2 if kind == "ssast" else 0
    config = Config(encoder=kind, width=16, depth=2, frames=32, state_size=4, attention_heads=heads)
    save_model(folder, make_encoder(config, generator=torch.Generator().manual_seed(seed)))
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tones, ten clips of each."""
    return trees.custom_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def run(folders: Path, source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mine"
    fit(FitRecipe(), folders, out, source, "cpu")
    return out


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["ssamba", "ssast"])
@pytest.mark.parametrize("pooling", ["rows", "mean", "cls"])
@pytest.mark.parametrize("head", ["logistic", "prototypes"])
def test_predictions_are_those_of_the_regression(
    folders: Path, tmp_path: Path, kind: str, pooling: str, head: str
) -> None:
    """Standardisation is folded into the classifier, and a clip is read in prediction as it is read for the fit."""
    recipe, out, source = (
        FitRecipe(head=head, pooling=pooling, calibrate=False),
        tmp_path / "run",
        encoder(tmp_path / "m", kind),
    )
    values = fit(recipe, folders, out, source, "cpu")
    setup = prepare_fit(recipe, folders, source, "cpu")
    rows = torch.cat([x for _, x in classifier_windows(setup.examples, setup.model, SkipList())])
    targets = target_matrix(setup.examples, 3)
    chosen = choose_head(setup.recipe, False)
    (linear,) = chosen.fit(rows, targets, [values["fit"][chosen.setting]])
    expected = linear.scores(rows).softmax(dim=1)
    model = ssamba.load(out, device="cpu")
    found = [model.predict(read_audio(e.parts[0].path))[0].scores[0] for e in setup.examples]
    assert (torch.stack(found) - expected).abs().max() < 1e-5
    assert expected.max() > 0.5, "the head is not flat"


def test_the_encoder_is_the_sources(run: Path, source: str) -> None:
    before = ssamba.load(source, device="cpu").with_grid(16, ssamba.load(run, device="cpu").config.frames)
    assert model_key(ssamba.load(run, device="cpu")) == model_key(before)


def test_the_directory_is_that_of_a_fine_tuning_run(run: Path, folders: Path) -> None:
    names = {path.name for path in run.iterdir()} - {"confusion.png"}
    assert names == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml"),
        *("results.json", "results.md", "classes.csv", "predictions.csv", "rejection.safetensors", "checks.json"),
    }
    results = json.loads((run / "results.json").read_text())
    predictions = table(run / "predictions.csv")
    right = sum(row["class"] == row["predicted"] for row in predictions)
    assert results["counted"] == {"right": right, "clips": 30}
    assert {row["clip"] for row in predictions} == {f"kind{c}/{n}.wav" for c in range(3) for n in range(10)}
    assert [fold["clips"]["test"] for fold in results["folds"]] == [6] * 5
    low, high = metrics.wilson(right, 30)
    headline = (run / "results.md").read_text().splitlines()[0]
    assert headline.startswith(f"# fit: accuracy {right} of 30, {100 * low:.0f}-{100 * high:.0f} %")
    assert "fitted on all clips" not in headline
    assert "The model of this run is that of all clips." in (run / "results.md").read_text()


def test_held_out_scores_are_of_a_model_without_the_clip(folders: Path, source: str, tmp_path: Path) -> None:
    """Each prediction in the report is made again: by a regression on the other folds' clips alone."""
    out = tmp_path / "run"
    fit(FitRecipe(c=0.1), folders, out, source, "cpu")
    setup = prepare_fit(FitRecipe(c=0.1), folders, source, "cpu")
    rows = {setup.examples[i].key: x for i, x in classifier_windows(setup.examples, setup.model, SkipList())}
    written = {row["clip"]: row for row in table(out / "predictions.csv")}
    for fold in setup.data.folds:
        x = torch.cat([rows[e.key] for e in fold.train])
        (linear,) = fit_linear(x, target_matrix(fold.train, 3), [0.1])
        for example in fold.test:
            scores = linear.scores(rows[example.key])[0].softmax(dim=0)
            assert written[example.key]["predicted"] == setup.data.classes[int(scores.argmax())]
            assert float(written[example.key]["score"]) == pytest.approx(float(scores.max()), abs=1e-5)


def test_shuffled_labels_are_at_chance(folders: Path, source: str, tmp_path: Path) -> None:
    """C is chosen within the training folds: a score of clips that chose it would be above chance."""
    clips = sorted(folders.rglob("*.wav"))
    rng = np.random.default_rng(0)
    rows = [(str(path), f"kind{label}") for path, label in zip(clips, rng.permutation(30) % 3, strict=True)]
    trees.write_table(tmp_path / "labels.csv", "path,label", rows)
    values = fit(FitRecipe(), tmp_path / "labels.csv", tmp_path / "run", source, "cpu")
    assert values["counted"]["right"] <= 16  # 10 expected; above 16 by chance once in 100


def test_a_test_split_is_kept_out(source: str, tmp_path: Path) -> None:
    data = trees.custom_table(tmp_path / "data")
    values = fit(FitRecipe(), data, tmp_path / "run", source, "cpu")
    assert values["model"] == "all clips but the test split"
    assert values["folds"][0]["clips"] == {"train": 18, "validation": 6, "test": 6}
    other = trees.custom_table(tmp_path / "other")
    for row in table(other / "labels.csv"):  # other test clips, the same model
        if row["split"] == "test":
            trees.write_clip(other / row["path"], 7, 1, 0.3)
    fit(FitRecipe(), other, tmp_path / "second", source, "cpu")
    first, second = (ssamba.load(tmp_path / name, device="cpu").state_dict() for name in ("run", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_folds_of_a_table_are_its_own(source: str, tmp_path: Path) -> None:
    data = trees.custom_table(tmp_path / "data", split="fold")
    values = fit(FitRecipe(), data, tmp_path / "run", source, "cpu")
    assert [fold["name"] for fold in values["folds"]] == ["1", "2", "3", "4", "5"]
    assert values["model"] == "all clips"
    with pytest.raises(ConfigError, match="comes with its own splits; leave --folds out"):
        fit(FitRecipe(folds=3), data, tmp_path / "other", source, "cpu")


@pytest.mark.parametrize(("per_class", "folds"), [(2, 5), (3, 5), (1, 0)])
def test_a_few_clips(source: str, tmp_path: Path, per_class: int, folds: int) -> None:
    data = trees.custom_folders(tmp_path / "data", per_class=per_class)
    lines: list[str] = []
    values = fit(FitRecipe(), data, tmp_path / "run", source, "cpu", lines.append)
    assert len(values["folds"]) == folds
    assert ssamba.load(tmp_path / "run", device="cpu").classifier is not None
    if not folds:
        assert values["mean"] == {"accuracy": None}
        assert values["fit"]["C"] == 1.0
        assert any("nothing is measured" in line for line in lines)
        assert "not measured" in (tmp_path / "run" / "results.md").read_text()
    else:
        assert values["counted"]["clips"] == 3 * per_class


def test_many_clips_are_divided_once(
    folders: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_data, "MANY", 30)
    values = fit(FitRecipe(), folders, tmp_path / "run", source, "cpu")
    assert [fold["clips"] for fold in values["folds"]] == [{"train": 24, "validation": 3, "test": 3}]
    assert values["model"] == "all clips"
    setup = prepare_fit(FitRecipe(), folders, source, "cpu")
    rows = torch.cat([x for _, x in classifier_windows(setup.examples, setup.model, SkipList())])
    (linear,) = fit_linear(rows, target_matrix(setup.examples, 3), [values["fit"]["C"]])
    model = ssamba.load(tmp_path / "run", device="cpu")
    assert model.classifier is not None
    torch.testing.assert_close(model.classifier.linear.bias, linear.bias.float())
    assert len(fit(FitRecipe(folds=4), folders, tmp_path / "folds", source, "cpu")["folds"]) == 4


def test_the_only_clip_of_a_class_is_never_held_out(source: str, tmp_path: Path) -> None:
    data = trees.custom_folders(tmp_path / "data", per_class=4)
    trees.write_clip(data / "rare" / "one.wav", 5)
    lines: list[str] = []
    values = fit(FitRecipe(), data, tmp_path / "run", source, "cpu", lines.append)
    assert values["counted"]["clips"] == 12
    assert "1 of 4 classes have one clip, which is never held out" in lines
    assert ssamba.load(tmp_path / "run", device="cpu").classifier.task.classes[-1] == "rare"


def test_several_labels_a_clip(source: str, tmp_path: Path) -> None:
    data = trees.custom_table(tmp_path / "data", split="fold", multi_label=True)
    values = fit(FitRecipe(), data, tmp_path / "run", source, "cpu")
    assert values["metric"] == "mAP"
    assert "counted" not in values
    model = ssamba.load(tmp_path / "run", device="cpu")
    assert model.classifier is not None
    assert model.classifier.task.multi_label
    setup = prepare_fit(FitRecipe(), data, source, "cpu")
    rows = torch.cat([x for _, x in classifier_windows(setup.examples, setup.model, SkipList())])
    targets = target_matrix(setup.examples, 3)
    assert targets.sum(dim=1).max() == 2
    (linear,) = fit_linear(rows, targets, [values["fit"]["C"]], multi_label=True)
    found = [model.predict(read_audio(e.parts[0].path))[0].scores[0] for e in setup.examples]
    temperature = values["calibration"]["temperature"]
    assert temperature != 1
    assert (torch.stack(found) - (linear.scores(rows) / temperature).sigmoid()).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="several labels a clip; give --head logistic"):
        fit(FitRecipe(head="prototypes"), data, tmp_path / "other", source, "cpu")


def test_long_clips_are_read_in_the_windows_of_prediction(source: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(2):
        for number in range(4):
            path = tmp_path / "data" / f"kind{label}" / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            t = np.arange(20000) / 16000
            sound = 0.3 * np.sin(2 * np.pi * (300 + 900 * label) * t) + 0.05 * rng.standard_normal(len(t))
            soundfile.write(path, sound, 16000)
    recipe = FitRecipe(frames=48)
    fit(recipe, tmp_path / "data", tmp_path / "run", source, "cpu")
    setup = prepare_fit(recipe, tmp_path / "data", source, "cpu")
    windows = dict(classifier_windows(setup.examples, setup.model, SkipList()))
    assert {len(x) for x in windows.values()} == {5}
    model = ssamba.load(tmp_path / "run", device="cpu")
    assert model.classifier is not None
    norm, linear = model.classifier.norm, model.classifier.linear
    for i, example in enumerate(setup.examples):
        scores = linear(windows[i] * norm.weight + norm.bias).softmax(dim=1).mean(dim=0)
        found = model.predict(read_audio(example.parts[0].path))[0].scores[0]
        assert (found - scores).abs().max() < 1e-5


def test_a_stopped_fit_goes_on(
    folders: Path, source: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SAVE_SECONDS", 0.0)
    out, seen = tmp_path / "run", []

    def stop(done: float, total: float, note: str) -> None:
        seen.append(done)
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(FitRecipe(), folders, out, source, "cpu", bars=lambda label: _bar(stop))
    assert seen == list(range(1, 14))
    (parts,) = out.glob("features-*")
    assert len(list(parts.iterdir())) == 12
    seen.clear()
    fit(FitRecipe(), folders, out, source, "cpu", bars=lambda label: _bar(lambda done, total, note: seen.append(done)))
    assert seen[:18] == list(range(13, 31))
    assert not list(out.glob("features-*"))
    first, second = (ssamba.load(path, device="cpu").state_dict() for path in (run, out))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _bar(progress: Progress) -> AbstractContextManager[Progress]:
    return nullcontext(progress)


def test_a_finished_run_only_tells_its_result(run: Path, folders: Path, source: str) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    values = fit(FitRecipe(), folders, run, source, "cpu")
    assert values == json.loads((run / "results.json").read_text())
    assert before == {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    with pytest.raises(ConfigError, match=r"has c 0\.0, this command says 0\.1"):
        fit(FitRecipe(c=0.1), folders, run, source, "cpu")


def test_unreadable_clips_are_left_out_and_listed(source: str, tmp_path: Path) -> None:
    data = trees.custom_folders(tmp_path / "data", per_class=10)
    (data / "kind1" / "3.wav").write_bytes(b"RIFF")
    values = fit(FitRecipe(), data, tmp_path / "run", source, "cpu")
    assert values["counted"]["clips"] == 29
    assert [row["path"] for row in table(tmp_path / "run" / "skipped.csv")] == [str(data / "kind1" / "3.wav")]
    for number in range(1, 10):
        (data / "kind1" / f"{number}.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="clips cannot be read"):
        fit(FitRecipe(), data, tmp_path / "other", source, "cpu")
    assert not (tmp_path / "other").exists()


def test_what_is_left_must_be_enough(source: str, tmp_path: Path) -> None:
    data = trees.custom_folders(tmp_path / "data", per_class=20)
    trees.write_clip(data / "rare" / "one.wav", 5)
    (data / "rare" / "one.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="no clip of class rare can be read"):
        fit(FitRecipe(), data, tmp_path / "run", source, "cpu")
    rows = [(f"kind{c}/{n}.wav", f"kind{c}", 1 + n % 2) for c in range(3) for n in range(20)]
    (data / "kind0" / "bad.wav").write_bytes(b"RIFF")
    trees.write_table(data / "labels.csv", "path,label,fold", [*rows, ("kind0/bad.wav", "kind0", 3)])
    with pytest.raises(DataError, match="no test clip of fold 3 can be read"):
        fit(FitRecipe(), data, tmp_path / "run", source, "cpu")
    assert not (tmp_path / "run").exists()


def test_another_seed_divides_otherwise(folders: Path, source: str) -> None:
    one, two = (prepare_fit(FitRecipe(seed=seed), folders, source, "cpu") for seed in (0, 1))
    assert {e.key for e in one.data.folds[0].test} != {e.key for e in two.data.folds[0].test}
    assert [dataclasses.replace(s.recipe, seed=0) for s in (one, two)] == [one.recipe] * 2


def test_windows_are_counted_as_they_are_read(source: str, folders: Path, tmp_path: Path) -> None:
    """Clips of up to 2 s on a grid of 0.34 s, which overlap by half."""
    for label in range(2):
        for number, seconds in enumerate((0.2, 0.33, 0.4, 1.0, 2.0)):
            trees.write_clip(tmp_path / f"kind{label}" / f"{number}.wav", label, number, seconds)
    setup = prepare_fit(FitRecipe(frames=32), tmp_path, source, "cpu")
    read = sum(len(rows) for _, rows in classifier_windows(setup.examples, setup.model, SkipList()))
    assert count_windows(setup.examples, setup.model) == (read, read)


def test_a_long_clip_s_windows_are_spread(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed is counted in full, what a regression reads is three windows at most: first, middle, last."""
    for module in (features, expectation):
        monkeypatch.setattr(module, "MAX_WINDOWS", 3)
    for label in range(2):
        for number, seconds in enumerate((0.2, 1.0, 2.0)):
            trees.write_clip(tmp_path / "data" / f"kind{label}" / f"{number}.wav", label, number, seconds)
    setup = prepare_fit(FitRecipe(frames=32), tmp_path / "data", source, "cpu")
    whole = [rows for _, rows in classifier_windows(setup.examples, setup.model, SkipList())]
    assert max(map(len, whole)) > 3
    parts = features.FeatureParts(tmp_path / "parts", lambda: None)
    values, owners = features.collect_features(setup.examples, setup.model, parts, SkipList(), lambda *_: None)
    chosen = [rows if len(rows) <= 3 else rows[[0, (len(rows) - 1) // 2, -1]] for rows in whole]
    assert owners.bincount().tolist() == list(map(len, chosen))
    assert torch.equal(values, torch.cat(chosen))
    assert count_windows(setup.examples, setup.model) == (sum(map(len, whole)), len(values))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory that Linux tells")
def test_it_keeps_to_the_memory_that_it_told(tmp_path: Path) -> None:
    for number in range(20):
        trees.write_clip(tmp_path / f"data/kind{number % 2}/{number}.wav", number % 2, number, 1.0)
    words = ["fit", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    program = "import sys\nfrom ssamba.cli.main import main\n" + PEAK + "main(sys.argv[1:])\nprint(peak())"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    told = re.search(r"expected: ([\d.]+) GB", done.stderr)
    assert told is not None
    peak = float(done.stdout.splitlines()[-1]) * 2**20
    assert 0.5 * float(told[1]) < peak / 1e9 < float(told[1]) + 0.05
