"""ClassifierOutputs of a set: windows averaged by hand, unreadable clips left out, features made once."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import layout_trees as trees
import pytest
import torch

from ssamba.audio.decode import read_audio
from ssamba.data.datasets import read_layout
from ssamba.data.loaders.labelled import LabelledBatch, LabelledLoader
from ssamba.data.scan import SkipList
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.registry import make_encoder
from ssamba.training.features import batch_features
from ssamba.training.finetune.evaluate import ClassifierOutputs, by_example, make_evaluation
from ssamba.training.finetune.recipe import FinetuneRecipe

RECIPE = FinetuneRecipe(
    width=16, depth=2, frames=48, stride=16, window=0.5, batch=2, loss="ce", workers=1, cache_gb=0.0
)


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_windows_are_averaged_as_probabilities(tmp_path: Path, kind: str) -> None:
    recipe = dataclasses.replace(RECIPE, loss=kind)
    data = read_layout("voxceleb1", trees.voxceleb1(tmp_path, seconds=0.7))
    examples = data.folds[0].train
    model = make_encoder(recipe.config(), classification=Classification(data.classes)).eval()
    evaluation = make_evaluation(examples, recipe, model, None, SkipList())
    outputs = evaluation.outputs(model)
    assert outputs.examples.tolist() == list(range(len(examples)))
    squash = torch.sigmoid if kind == "bce" else lambda x: x.softmax(dim=1)
    rows = [row for step in range(evaluation.loader.plan.steps) for row in evaluation.loader.plan.rows(step)]
    assert len(rows) > 2 * len(examples)
    for number, example in enumerate(examples):
        starts = [round((row.start or 0.0) * 16000) for row in rows if row.example == number]
        whole = torch.from_numpy(read_audio(example.parts[0].path))
        windows = torch.stack([whole[s : s + 8000] for s in starts])
        with torch.no_grad():
            logits = model.classify(batch_features(windows, torch.full((len(starts),), 8000), model.config))
        found = squash(outputs.logits[number][None])[0]
        torch.testing.assert_close(found, squash(logits).mean(dim=0), atol=1e-5, rtol=0)
    assert outputs.targets.argmax(dim=1).tolist() == [e.labels[0] for e in examples]


def test_unreadable_clips_are_left_out(tmp_path: Path) -> None:
    data = read_layout("custom", trees.custom_table(tmp_path, per_class=12))
    examples = data.folds[0].train
    Path(examples[4].parts[0].path).write_bytes(b"RIFF and nothing")
    recipe = dataclasses.replace(RECIPE, window=0.0)
    model = make_encoder(recipe.config(), classification=Classification(data.classes)).eval()
    skip = SkipList()
    outputs = make_evaluation(examples, recipe, model, None, skip).outputs(model)
    assert 4 not in outputs.examples.tolist()
    assert len(outputs.logits) == len(examples) - 1
    assert len(skip) == 1


class CountedLoader:
    """A loader, and how often it was gone through."""

    def __init__(self, loader: LabelledLoader) -> None:
        self.loader, self.times = loader, 0

    def __iter__(self) -> Iterator[LabelledBatch]:
        self.times += 1
        return iter(self.loader)


@pytest.mark.parametrize(("cache_gb", "times"), [(0.0, 1), (1e-6, 2)])  # 0 sets no limit of its own
def test_features_are_made_once_where_they_fit(tmp_path: Path, cache_gb: float, times: int) -> None:
    data = read_layout("custom", trees.custom_table(tmp_path))
    model = make_encoder(Config(width=16, depth=2, frames=48), classification=Classification(data.classes)).eval()
    recipe = dataclasses.replace(RECIPE, cache_gb=cache_gb)
    evaluation = make_evaluation(data.folds[0].test, recipe, model, None, SkipList())
    counted = CountedLoader(evaluation.loader)
    evaluation.loader = counted  # type: ignore[assignment]
    one, other = evaluation.outputs(model), evaluation.outputs(model)
    assert counted.times == times
    assert torch.equal(one.logits, other.logits)


def test_seconds_without_label_or_answer_are_not_scored() -> None:
    logits = torch.zeros(1, 4, 2)
    logits[0, :, 1] = torch.tensor([5.0, -5.0, 5.0, 5.0])
    outputs = ClassifierOutputs(logits, torch.tensor([[1, 0, -1]]), torch.tensor([0]))
    scores, truth = outputs.rows("ce")
    assert truth.tolist() == [[0, 1], [1, 0]]
    found = outputs.summary("ce", False)
    assert found["accuracy"] == 1.0
    assert found["AUC"] == 1.0
    assert found["d_prime"] == math.inf
    assert found["loss"] == pytest.approx(float(torch.log1p(torch.exp(torch.tensor(-5.0)))), rel=1e-5)
    assert len(scores) == 2


@pytest.mark.parametrize("kind", ["ce", "bce"])
@pytest.mark.parametrize("right", [0, 1])
def test_certainty_of_all_windows_is_a_number(kind: str, right: int) -> None:
    """Two windows of one clip whose other classes have probabilities that round to 0, and a clip of one window."""
    logits = torch.tensor([[2000.0, -2000.0, -2000.0], [3000.0, -2000.0, 0.0], [0.5, 0.0, 0.0]])
    targets = torch.eye(3)[[right, right, 0]]
    outputs = by_example(logits, targets, torch.tensor([0, 0, 1]), kind)
    assert outputs.logits.isfinite().all()
    assert outputs.logits.argmax(dim=1).tolist() == [0, 0]
    summary = outputs.summary(kind, multi_label=False)
    assert all(math.isfinite(summary[name]) for name in ("loss", "accuracy", "mAP"))
    assert summary["accuracy"] == (1.0 if right == 0 else 0.5)
    assert (summary["loss"] > 5) == (right == 1)
