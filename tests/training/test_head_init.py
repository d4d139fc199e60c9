"""A classifier that begins as a logistic regression on its own training clips."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import layout_trees as trees
import pytest
import torch
import torch.nn.functional as F

import ssamba
from ssamba.data.datasets import read_layout
from ssamba.data.examples import LabelledData, inner_fold_index
from ssamba.data.scan import SkipList
from ssamba.evaluation.logistic_regression import C_VALUES, fit_cross_validated, fit_linear
from ssamba.evaluation.probe.protocol import Division, target_matrix
from ssamba.models.encoder import Encoder
from ssamba.training.finetune.evaluate import Evaluation, make_evaluation
from ssamba.training.finetune.head_init import init_by_probe
from ssamba.training.finetune.model import make_classification, new_model
from ssamba.training.finetune.recipe import FinetuneRecipe, load_finetune_recipe
from ssamba.training.finetune.run import finetune
from ssamba.training.fit.cross_validation import Bank, cross_validate
from ssamba.training.fit.heads import choose_head
from ssamba.training.fit.recipe import FitRecipe
from ssamba.utils.errors import ConfigError

SMALL: dict[str, Any] = {"width": 32, "depth": 2, "frames": 32, "stride": 16, "batch": 8, "workers": 1}
SMALL |= {"freq_mask": 8, "time_mask": 4, "head_init": "probe", "loss": "ce"}


def small(**changes: Any) -> FinetuneRecipe:
    return load_finetune_recipe("custom", SMALL | changes)


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> LabelledData:
    """Three tones in five folds."""
    return read_layout("custom", trees.custom_table(tmp_path_factory.mktemp("folds"), split="fold"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> LabelledData:
    """The same with two labels for half of the clips."""
    root = tmp_path_factory.mktemp("several")
    return read_layout("custom", trees.custom_table(root, split="fold", multi_label=True))


def started(recipe: FinetuneRecipe, data: LabelledData, number: int = 0) -> Encoder:
    model = new_model(recipe, make_classification(recipe, data), None)
    init_by_probe(model, data.folds[number], data, recipe, None, SkipList())
    return model


def evaluation(recipe: FinetuneRecipe, data: LabelledData, model: Encoder, number: int = 0) -> Evaluation:
    return make_evaluation(data.folds[number].train, recipe, model, None, SkipList())


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
@pytest.mark.parametrize(("pooling", "smoothing"), [("rows", 0.0), ("mean", 0.0), ("cls", 0.0), ("rows", 0.2)])
def test_it_answers_what_the_regression_answers(
    folds: LabelledData, encoder: str, pooling: str, smoothing: float
) -> None:
    recipe = small(encoder=encoder, pooling=pooling, label_smoothing=smoothing)
    model = started(recipe, folds)
    assert model.training
    plain = new_model(recipe, make_classification(recipe, folds), None)
    values, examples = evaluation(recipe, folds, plain).values(plain)
    assert examples.tolist() == list(range(24))
    labels = torch.tensor([example.labels[0] for example in folds.folds[0].train])
    # Folds 2 to 5 are held out in turn.
    parts = torch.tensor([(int(e.key.split("_")[1][0]) - 1) % 5 for e in folds.folds[0].train])
    assert sorted(set(parts.tolist())) == [0, 1, 2, 3]
    fitted = fit_cross_validated(values, labels, parts, 3, smoothing)
    outputs = evaluation(recipe, folds, model).outputs(model.eval())
    torch.testing.assert_close(outputs.logits.double(), fitted.scores(values), atol=1e-4, rtol=1e-4)
    assert (outputs.logits.argmax(dim=1) == labels).all()
    for name, value in plain.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize("pooling", ["rows", "mean"])
def test_several_labels_a_clip_have_a_regression_a_class(several: LabelledData, pooling: str) -> None:
    """The one of ``ssamba fit``: same C for all classes, by the loss of what is held out."""
    recipe = small(pooling=pooling, loss="bce")
    model = started(recipe, several)
    plain = new_model(recipe, make_classification(recipe, several), None)
    values, examples = evaluation(recipe, several, plain).values(plain)
    assert examples.tolist() == list(range(24))
    targets = target_matrix(several.folds[0].train, 3)
    assert set(targets.sum(dim=1).tolist()) == {1, 2}
    bank = Bank(values, examples, targets, "bce")
    head = choose_head(FitRecipe(), True)
    folds = torch.tensor([int(e.key.split("_")[1][0]) % 5 for e in several.folds[0].train])
    everything = torch.arange(24)
    pairs = tuple((everything[folds != held], everything[folds == held]) for held in range(1, 5))
    division = Division("1", everything, everything, pairs)
    found = cross_validate(bank, head, [division], lambda done, total: None)
    (fitted,) = bank.fit(head, everything, found.settings)
    outputs = evaluation(recipe, several, model).outputs(model.eval())
    torch.testing.assert_close(outputs.logits.double(), fitted.scores(values), atol=1e-4, rtol=1e-4)
    again = started(recipe, several).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in started(recipe, several).state_dict().items())


def test_sigmoid_with_one_label_a_clip(folds: LabelledData) -> None:
    """A regression of each class against the rest, whose probabilities need not sum to 1."""
    recipe = small(loss="bce")
    model = started(recipe, folds)
    outputs = evaluation(recipe, folds, model).outputs(model.eval())
    assert (outputs.logits.argmax(dim=1) == target_matrix(folds.folds[0].train, 3).argmax(dim=1)).all()
    sums = outputs.logits.sigmoid().sum(dim=1)
    assert (sums - 1).abs().max() > 1e-3
    assert sums.mean() == pytest.approx(1, abs=0.05)


def test_only_the_training_clips_count(folds: LabelledData) -> None:
    first = started(small(), folds).state_dict()
    assert all(torch.equal(v, first[k]) for k, v in started(small(), folds).state_dict().items())
    other = dataclasses.replace(folds.folds[0], test=folds.folds[0].test[:1])
    fewer = dataclasses.replace(folds, folds=(other, *folds.folds[1:]))
    assert all(torch.equal(v, first[k]) for k, v in started(small(), fewer).state_dict().items())
    second = started(small(), folds, 1).state_dict()
    assert not torch.equal(first["classifier.linear.weight"], second["classifier.linear.weight"])


def test_of_two_folds_fifths_choose_the_strength(tmp_path: Path) -> None:
    """The other fold is all that there is to fit on, and holding it out would leave nothing."""
    data = read_layout("custom", trees.custom_folders(tmp_path), folds=2)
    recipe = small()
    model = started(recipe, data)
    plain = new_model(recipe, make_classification(recipe, data), None)
    values, _ = evaluation(recipe, data, plain).values(plain)
    train = data.folds[0].train
    labels, parts = torch.tensor([e.labels[0] for e in train]), torch.tensor(inner_fold_index(train))
    expected = fit_cross_validated(values, labels, parts, 3)
    outputs = evaluation(recipe, data, model).outputs(model.eval())
    torch.testing.assert_close(outputs.logits.double(), expected.scores(values), atol=1e-4, rtol=1e-4)
    weakest = fit_linear(values, F.one_hot(labels, 3), C_VALUES[:1])[0].scores(values)
    assert (outputs.logits - weakest).abs().max() > 0.1


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_windows_are_examples_each(folds: LabelledData, loss: str) -> None:
    recipe = small(window=0.15, loss=loss)
    model = started(recipe, folds)
    values, examples = evaluation(recipe, folds, model).values(model)
    assert len(values) > 24
    assert set(examples.tolist()) == set(range(24))


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_a_run_begins_with_it(tmp_path: Path, loss: str) -> None:
    """At a rate of nearly nothing the run's model is the regression."""
    data = trees.custom_table(tmp_path / "data", multi_label=loss == "bce")
    changes = {"epochs": 1, "choose": "last", "precision": "fp32", "statistics": "recipe"}
    values = finetune(small(lr=1e-9, loss="auto", **changes), data, tmp_path / "run", device="cpu")
    assert values["metric"] == ("mAP" if loss == "bce" else "accuracy")
    labelled = read_layout("custom", data)
    expected = started(small(loss=loss, **changes), labelled).state_dict()
    found = ssamba.load(tmp_path / "run", device="cpu").state_dict()
    for name in found:
        if name.startswith("classifier."):
            torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-3)


def test_where_it_does_not_fit(tmp_path: Path) -> None:
    data = trees.custom_table(tmp_path / "data", multi_label=True)
    for head_init in ("random", "probe"):
        smoothed = small(loss="bce", head_init=head_init, label_smoothing=0.1)
        with pytest.raises(ConfigError, match=r"label_smoothing: 0\.1, not possible with loss bce"):
            finetune(smoothed, data, tmp_path / "x", device="cpu")
    scenes = load_finetune_recipe("dasl", {"head_init": "probe", "width": 32, "depth": 2})
    with pytest.raises(ConfigError, match="head_init: probe, not possible with a label each second"):
        finetune(scenes, trees.urbansound8k(tmp_path / "u"), tmp_path / "x", device="cpu")
    assert not (tmp_path / "x").exists()
