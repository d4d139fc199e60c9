"""Fine-tuning from data to report, with models of seconds on made-up sets."""

import csv
import json
from pathlib import Path
from typing import Any

import layout_trees as trees
import pytest
import torch
from pretrain_runs import states_of_every_step

import ssamba
from ssamba.audio.constants import SAMPLE_RATE
from ssamba.audio.front_end import PUBLISHED, normalise_log_mel
from ssamba.data.datasets import read_layout
from ssamba.data.scan import SkipList
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.models.registry import make_encoder
from ssamba.training.augment.transforms import (
    change_speed,
    make_noise_bank,
    reverberate,
    sample_frequency_response,
    sample_rooms,
    sample_speeds,
)
from ssamba.training.features import batch_features
from ssamba.training.finetune.evaluate import ClassifierOutputs
from ssamba.training.finetune.model import make_classification, new_model
from ssamba.training.finetune.recipe import load_finetune_recipe
from ssamba.training.finetune.run import finetune
from ssamba.training.finetune.task import FinetuneBatch, FinetuneTask, prepare_fold
from ssamba.training.log import read_log
from ssamba.training.optim import parameter_groups
from ssamba.training.seeds import torch_generator
from ssamba.utils.errors import ConfigError, DataError

SMALL = {
    "width": 32,
    "depth": 2,
    "frames": 32,
    "stride": 16,
    "epochs": 2,
    "batch": 8,
    "lr": 3e-3,
    "freq_mask": 8,
    "time_mask": 4,
    "workers": 1,
}
"""Two blocks on 8 x 2 patches."""


def run(recipe: str, data: Path, out: Path, source: str | None = None, **changes: Any) -> dict[str, Any]:
    return finetune(load_finetune_recipe(recipe, SMALL | changes), data, out, source, "cpu")


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in read_log(folder) if row[name]]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tones, 6 clips each to train on, 2 to validate, 2 to test."""
    return trees.custom_table(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 20 clips each to train on."""
    return trees.custom_table(tmp_path_factory.mktemp("more"), per_class=24)


@pytest.mark.parametrize("encoder", ["ssamba", pytest.param("ssast", marks=pytest.mark.slow)])
def test_it_learns_and_reports(more: Path, tmp_path: Path, encoder: str) -> None:
    values = run("custom", more, tmp_path, encoder=encoder, epochs=18, decay=1.0, choose="last", seed=2)
    assert values["mean"]["accuracy"] >= 5 / 6  # chance is a third
    assert values["sample_deviation"] is None
    assert set(values["mean"]) == {"loss", "accuracy", "mAP", "AUC", "d_prime"}
    assert values == json.loads((tmp_path / "results.json").read_text())
    assert column(tmp_path / "fold-1", "loss")[-1] < 0.6 * column(tmp_path / "fold-1", "loss")[0]
    model = ssamba.load(tmp_path, device="cpu")
    assert model.classifier is not None
    assert model.classifier.task.classes == ("kind0", "kind1", "kind2")
    assert (model.classifier.task.recipe, model.config.encoder) == ("custom", encoder)
    assert model.config.mean != Config.mean  # measured
    # The stored model gives the reported answers.
    fold = read_layout("custom", more).folds[0]
    clips = [ssamba.features(_audio(e.parts[0].path), target_length=32) for e in fold.test]
    features = torch.cat(clips) * (2 * Config.std) + Config.mean
    with torch.no_grad():
        logits = model.classify(normalise_log_mel(features, model.config.mean, model.config.std))
    answers = ClassifierOutputs.load(tmp_path / "fold-1/answers.safetensors")
    # Decoded audio is kept in 16 bits.
    torch.testing.assert_close(answers.logits, logits, atol=2e-3, rtol=1e-3)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == [e.key for e in fold.test]
    hits = sum(row["class"] == row["predicted"] for row in rows)
    assert hits / 6 == pytest.approx(values["mean"]["accuracy"])
    assert {p.name for p in tmp_path.iterdir()} >= {"classes.csv", "confusion.png", "results.md", "recipe.yaml"}


def _audio(path: str) -> Any:
    from ssamba.audio.decode import read_audio

    return read_audio(path)


def test_folds_share_the_epoch_that_is_best_on_average(tmp_path: Path) -> None:
    data = trees.esc10(tmp_path / "data")
    values = run("esc10", data, tmp_path / "run", epochs=4, drop_path=0.0)
    folds = [tmp_path / f"run/fold-{n}" for n in range(1, 6)]
    scores = torch.tensor([column(f, "val_accuracy") for f in folds])
    assert scores.shape == (5, 4)
    best = int(scores.mean(dim=0).argmax())
    assert [fold["epoch"] for fold in values["folds"]] == [best + 1] * 5
    assert values["mean"]["accuracy"] == pytest.approx(float(scores[:, best].mean()))
    assert values["sample_deviation"]["accuracy"] == pytest.approx(float(scores[:, best].std()))
    assert (tmp_path / "run/model.safetensors").read_bytes() == (folds[-1] / "model.safetensors").read_bytes()
    state = json.loads((folds[-1] / "state.json").read_text())
    assert state["best"]["step"] == state["step"] // 4 * (best + 1)
    table = (tmp_path / "run/results.md").read_text()
    assert "sample deviation" in table
    assert "fold-5" in table
    assert not list((tmp_path / "run").rglob("state.safetensors"))
    with open(tmp_path / "run/predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 100
    # A finished run is not trained again.
    times = [f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*.safetensors")]
    assert run("esc10", data, tmp_path / "run", epochs=4, drop_path=0.0) == values
    assert times == [f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*.safetensors")]


def test_best_on_validation_is_kept_and_tested(three: Path, tmp_path: Path) -> None:
    # A rate that harms the model from the second epoch on.
    run("custom", three, tmp_path, epochs=4, lr=1.0, warmup_steps=200, choose="validation")
    found = list(zip(column(tmp_path / "fold-1", "val_accuracy"), column(tmp_path / "fold-1", "val_loss"), strict=True))
    state = json.loads((tmp_path / "fold-1/state.json").read_text())
    best = max(found, key=lambda pair: (pair[0], -pair[1]))  # of equal accuracies the one with the lower loss
    assert state["best"]["step"] == 3 * (1 + found.index(best))


@pytest.mark.parametrize("choose", ["last", "average"])
def test_last_and_averaged_weights(three: Path, tmp_path: Path, choose: str) -> None:
    window = {"average_from": 2, "average_to": 3}
    values = run("custom", three, tmp_path / "run", epochs=4, choose=choose, **window)
    kept = ssamba.load(tmp_path / "run", device="cpu").state_dict()
    ends = []
    for epochs in (2, 3, 4):
        run("custom", three, tmp_path / str(epochs), epochs=epochs, choose="last", **window)
        ends.append(ssamba.load(tmp_path / str(epochs), device="cpu").state_dict())
    expected = {k: (ends[0][k] + ends[1][k]) / 2 for k in kept} if choose == "average" else ends[2]
    for name, value in kept.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)
    assert values["folds"][0]["epoch"] == (None if choose == "average" else 4)


def test_scenes_are_labelled_each_second(tmp_path: Path) -> None:
    data = trees.urbansound8k(tmp_path / "data", longest=2.0)
    values = run("dasl", data, tmp_path / "run", frames=2048, epochs=1, batch=1, time_mask=0, precision="bf16")
    assert len(values["folds"]) == 10
    answers = ClassifierOutputs.load(tmp_path / "run/fold-3/answers.safetensors")
    assert answers.logits.shape[2] == 10
    assert answers.targets.shape[1] == 20
    scores, truth = answers.rows("ce")
    assert len(scores) == int((answers.targets >= 0).sum()) < 20  # the rest of the scene is silence
    assert truth.sum(axis=1).tolist() == [1] * len(truth)
    model = ssamba.load(tmp_path / "run", device="cpu")
    assert model.classifier is not None
    assert model.classifier.task.per_second
    with pytest.raises(ConfigError, match=r"speed: 1\.2, not possible with a label each second"):
        run("dasl", data, tmp_path / "faster", frames=2048, batch=1, time_mask=0, speed=1.2)


def test_several_labels_a_clip(tmp_path: Path) -> None:
    data = trees.custom_table(tmp_path / "data", multi_label=True)
    values = run("custom", data, tmp_path / "run", mixup=0.5, balanced=True)
    assert set(values["mean"]) == {"loss", "mAP", "AUC", "d_prime"}
    assert values["metric"] == "mAP"
    assert not (tmp_path / "run/confusion.png").exists()
    model = ssamba.load(tmp_path / "run", device="cpu")
    assert model.classifier is not None
    assert model.classifier.task.multi_label
    told = r"clips/0_1\.wav: has 2 labels \(kind0, kind1\), and the recipe custom \(loss ce, metric mAP\) takes one"
    with pytest.raises(ConfigError, match=told):
        run("custom", data, tmp_path / "other", loss="ce")
    (data / "labels.csv").write_text((data / "labels.csv").read_text().replace("label,", "labels,").replace("|", "_"))
    with pytest.raises(ConfigError, match="custom: a clip may have several labels, and the recipe"):
        run("custom", data, tmp_path / "other", metric="accuracy")
    assert not (tmp_path / "other").exists()


def test_windows_accumulation_and_folds_with_validation(tmp_path: Path) -> None:
    data = trees.voxceleb1(tmp_path / "data", seconds=0.6)
    values = run("voxceleb1", data, tmp_path / "run", frames=48, window=0.5, accumulate=2, batch=2, epochs=2)
    assert values["folds"][0]["clips"] == {"train": 9, "validation": 3, "test": 3}
    answers = ClassifierOutputs.load(tmp_path / "run/fold-1/answers.safetensors")
    assert answers.logits.shape == (3, 3)  # one row a clip, whatever its windows
    torch.testing.assert_close(answers.logits.exp().sum(dim=1), torch.ones(3))
    assert json.loads((tmp_path / "run/fold-1/state.json").read_text())["step"] == 2 * 2  # 9 clips, 2 x 2 a step


@pytest.mark.parametrize("freeze", [False, True])
def test_from_a_pretrained_model(three: Path, tmp_path: Path, freeze: bool, official_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 1, "frames": 96, "stride": 10, "freeze": freeze, "head_lr": 10.0}
    run("custom", three, tmp_path, str(official_path), statistics="source", **changes)
    model = ssamba.load(tmp_path, device="cpu")
    before = ssamba.load(official_path, device="cpu", stride=10, frames=96)
    assert model.config == before.config
    same = [torch.equal(model.state_dict()[k], v) for k, v in before.state_dict().items()]
    assert all(same) == freeze


def test_rates_of_encoder_and_classifier(three: Path, tmp_path: Path) -> None:
    # Adam's first step is the rate itself: 3 steps of a rate that does not fall move weights by at most 3 rates.
    values = {"epochs": 1, "lr": 1e-4, "head_lr": 30.0, "choose": "last"}
    run("custom", three, tmp_path / "a", **values)
    run("custom", three, tmp_path / "b", **values | {"lr": 1e-9})
    moved, start = (ssamba.load(tmp_path / n, device="cpu").state_dict() for n in "ab")
    body = max(float((moved[k] - start[k]).abs().max()) for k in moved if not k.startswith("classifier"))
    head = float((moved["classifier.linear.weight"] - start["classifier.linear.weight"]).abs().max())
    assert 1e-4 < body < 4e-4
    assert 30e-4 < head < 30 * 4e-4


def test_loudness_colour_speed_and_rooms(three: Path, tmp_path: Path) -> None:
    """A curve over mel bins for each clip, new in each step, on its normalised features; nothing else changes.

    Speed and rooms change the waveforms that those are made of.
    """

    def inputs(number: int, **changes: float) -> tuple[FinetuneBatch, torch.Tensor]:
        values = SMALL | {"freq_mask": 0, "time_mask": 0, "noise": False, "loss": "ce", **changes}
        recipe, data = load_finetune_recipe("custom", values), read_layout("custom", three)
        model = new_model(recipe, make_classification(recipe, data), None)
        task = FinetuneTask(recipe, model, prepare_fold(recipe, model, data.folds[0], None, SkipList()), tmp_path)
        batch = next(task.batches(number))
        return batch, task.inputs(number, batch).features

    plain, changed = inputs(0), inputs(0, gain_db=6.0, response_db=3.0)
    assert plain[0].draws.response is None
    assert torch.equal(plain[0].waveforms, changed[0].waveforms)
    response = sample_frequency_response(8, 6.0, 3.0, 128, torch_generator(0, "response", 0))
    expected = plain[1] + response[:, None] / (2 * Config.std)
    torch.testing.assert_close(changed[1], expected)
    assert not torch.equal(inputs(1, gain_db=6.0)[0].draws.response, inputs(0, gain_db=6.0)[0].draws.response)

    batch, changed = inputs(0, speed=1.3, reverb=0.7, frames=16)
    samples = round(PUBLISHED.seconds_of_frames(16) * SAMPLE_RATE)
    speed, rooms = (
        sample_speeds(8, 1.3, torch_generator(0, "speed", 0)),
        sample_rooms(8, 0.7, SAMPLE_RATE, torch_generator(0, "rooms", 0)),
    )
    assert batch.waveforms.shape[1] == round(1.3 * samples)  # the fastest are as long as the others
    waveforms, lengths = change_speed(batch.waveforms, batch.lengths, speed, samples)
    assert lengths.max() == samples
    waveforms, lengths = reverberate(
        waveforms, lengths, rooms, make_noise_bank(torch_generator(0, "rooms' noises"), SAMPLE_RATE)
    )
    torch.testing.assert_close(
        changed, batch_features(waveforms, lengths, load_finetune_recipe("custom", SMALL | {"frames": 16}).config())
    )


def test_averaged_weights_are_judged_and_kept(three: Path, tmp_path: Path) -> None:
    values = {"choose": "last", "epochs": 2, "head_init": "probe"}
    run("custom", three, tmp_path / "run", **values, ema=0.5)
    run("custom", three, tmp_path / "plain", **values)
    # What follows is 0.5 of what was, but 2/11 and 3/12 at the first two of six steps.
    with states_of_every_step() as first:
        run("custom", three, tmp_path / "again", **values | {"lr": 1e-9, "save_minutes": 0.0})
    with states_of_every_step() as weights:
        run("custom", three, tmp_path / "noted", **values | {"save_minutes": 0.0})
    expected = first[0]
    assert len(weights) == 6
    for step, now in enumerate(weights, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {k: decay * v + (1 - decay) * now[k] for k, v in expected.items()}
    found = ssamba.load(tmp_path / "run", device="cpu").state_dict()
    plain = ssamba.load(tmp_path / "plain", device="cpu").state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
    assert not torch.equal(found["classifier.linear.weight"], plain["classifier.linear.weight"])
    answers = ClassifierOutputs.load(tmp_path / "run/fold-1/answers.safetensors")
    assert column(tmp_path / "run/fold-1", "val_loss")[-1] != column(tmp_path / "plain/fold-1", "val_loss")[-1]
    assert answers.summary("ce", False)["accuracy"] >= 1 / 3


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
def test_rates_fall_from_layer_to_layer(three: Path, tmp_path: Path, encoder: str) -> None:
    values = {"encoder": encoder, "depth": 4, "epochs": 1, "lr": 1e-3, "choose": "last"}
    run("custom", three, tmp_path / "a", **values, layer_decay=0.1)
    run("custom", three, tmp_path / "b", **values | {"lr": 1e-9})
    trained, start = (ssamba.load(tmp_path / n, device="cpu") for n in "ab")
    n = trained.n_layers
    assert n == (2 if encoder == "ssamba" else 4)
    before = start.state_dict()
    moved = {k: float((v - before[k]).abs().max()) for k, v in trained.state_dict().items()}
    for layer in range(n + 1):
        # Adam's first step is the rate itself, and here are 3 steps.
        most = max(moved[k] for k in moved if trained.layer_of(k) == layer and not k.startswith("classifier"))
        assert 0.9e-3 * 0.1 ** (n - layer) < most < 4e-3 * 0.1 ** (n - layer), layer
    assert 1e-3 < max(v for k, v in moved.items() if k.startswith("classifier")) < 4e-3


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
def test_groups_of_parameters(encoder: str) -> None:
    config = Config(encoder=encoder, width=32, depth=4, frames=32, drop_path=0.0)
    model = make_encoder(config, classification=Classification(("a", "b")))
    assert model.classifier is not None
    names = {id(p): name for name, p in model.named_parameters()}
    head, body = parameter_groups(model, 3.0, 1.0)
    assert [names[id(p)] for p in body["params"]] == [n for n in names.values() if not n.startswith("classifier.")]
    assert (head["rate_factor"], body["rate_factor"]) == (3.0, 1.0)
    groups = parameter_groups(model, 3.0, 0.5)
    assert [g["rate_factor"] for g in groups[1:]] == [0.5 ** (model.n_layers - i) for i in range(model.n_layers + 1)]
    lowest, last = ([names[id(p)] for p in groups[i]["params"]] for i in (1, -1))
    assert {"positions", "cls_token", "patch_embed.weight", "patch_embed.bias"} <= set(lowest)
    assert not any(name.startswith(model.chain) for name in lowest)
    assert "norm.weight" in last
    assert sum(len(g["params"]) for g in groups) == len(names)
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    assert len(parameter_groups(model, 1.0, 0.5)) == 1


def test_patches_that_do_not_fit_and_other_mistakes(three: Path, tmp_path: Path) -> None:
    config = Config(
        width=16, depth=2, frames=64, patch_frequency=128, patch_time=2, stride_frequency=128, stride_time=2
    )
    save_model(tmp_path / "frames", make_encoder(config))
    with pytest.raises(
        ConfigError, match=r"patches of 128 x 2, the recipe says 16 x 16; give .* --patch-time 2 --stride 2$"
    ):
        run("custom", three, tmp_path / "run", str(tmp_path / "frames"))
    grid = {"patch_frequency": 128, "patch_time": 2, "stride": 2}
    assert run("custom", three, tmp_path / "run", str(tmp_path / "frames"), epochs=1, **grid)
    with pytest.raises(ConfigError, match=r"the run there has lr 0\.003, this command says 0\.5"):
        run("custom", three, tmp_path / "run", str(tmp_path / "frames"), epochs=1, **grid | {"lr": 0.5})
    with pytest.raises(ConfigError, match="no fine-tuning run"):
        run("custom", three, tmp_path / "frames")
    with pytest.raises(ConfigError, match="statistics: source, but there is none"):
        run("custom", three, tmp_path / "x", statistics="source")
    with pytest.raises(ConfigError, match="takes the mean"):
        run("dasl", trees.urbansound8k(tmp_path / "u"), tmp_path / "x", pooling="cls")
    with pytest.raises(ConfigError, match=r"mixup: 0\.5, not possible with a label each second"):
        run("dasl", tmp_path / "u", tmp_path / "x", mixup=0.5)
    with pytest.raises(ConfigError, match="no validation clips"):
        run("esc10", trees.esc10(tmp_path / "e"), tmp_path / "x", choose="validation")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
def test_rows_from_data_to_prediction(more: Path, tmp_path: Path, encoder: str) -> None:
    """A run with rows pooled apart stands by itself, and answers for recordings of other lengths."""
    results = run("custom", more, tmp_path / "run", pooling="rows", encoder=encoder, epochs=8)
    assert results["mean"]["accuracy"] > 0.6  # chance is a third
    model = ssamba.load(tmp_path / "run")
    for seconds in (0.1, 0.32, 1.7):
        audio = torch.randn(round(16000 * seconds), generator=torch.Generator().manual_seed(0))
        (found,) = model.predict(audio, 16000)
        assert torch.isfinite(found.scores).all()


def test_other_data_is_refused(tmp_path: Path) -> None:
    data = trees.custom_table(tmp_path / "data")
    assert run("custom", data, tmp_path / "run", epochs=1)["choose"] == "validation"
    listing = data / "labels.csv"
    lines = listing.read_text().splitlines()
    listing.write_text("\n".join(lines[:1] + lines[2:]) + "\n")
    with pytest.raises(DataError, match="data changed"):
        run("custom", data, tmp_path / "run", epochs=1)
