import math
import shutil
from pathlib import Path

import pytest
import torch

import ssamba
from ssamba.audio.front_end import PUBLISHED, normalise_log_mel
from ssamba.data.loaders.gpu_resident import ResidentAudio
from ssamba.data.manifest import read_sources
from ssamba.data.scan import SkipList
from ssamba.models.pretrained.model_dir import load_tensors
from ssamba.training.features import batch_features
from ssamba.training.log import read_log
from ssamba.training.pretrain.data import prepare_data
from ssamba.training.pretrain.model import build_model
from ssamba.training.pretrain.recipe import load_recipe, make_recipe
from ssamba.training.pretrain.run import pretrain
from ssamba.training.pretrain.task import PretrainTask
from ssamba.training.schedule import CosineSchedule, PlateauSchedule
from ssamba.utils.errors import ConfigError, DataError, SsambaError

OFFICIAL = Path(__file__).parents[1] / "golden" / "ssamba_official.pth"


def numbers(folder: Path, column: str) -> list[float]:
    return [float(row[column]) for row in read_log(folder) if row.get(column)]


def test_training_learns(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small |= {"steps": 120, "batch": 8, "lr": 3e-3, "save_minutes": 1.0, "validate_every": 40, "statistics": "measure"}
    pretrain([str(sounds)], tmp_path, make_recipe(None, small), device="cpu")
    loss = numbers(tmp_path, "loss")
    assert sum(loss[-5:]) / 5 < 0.9 * sum(loss[:5]) / 5
    assert numbers(tmp_path, "val_accuracy")[-1] > 2 / 16  # twice chance
    assert list((tmp_path / "tensorboard").glob("events.*"))
    model = ssamba.load(tmp_path, heads=True)
    assert model.config.mean != ssamba.Config.mean


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"objective": "discriminative"}, {"nce", "accuracy"}),
        ({"objective": "generative"}, {"mse"}),
        ({"passes": 2}, {"nce", "accuracy", "mse"}),
        ({"mask_kind": "frame", "mask": 31}, {"nce", "accuracy", "mse"}),
        ({"reference_quirks": True}, {"nce", "accuracy", "mse"}),
        ({"patch_frequency": 128, "patch_time": 2, "mask": 20}, {"nce", "accuracy", "mse"}),
        ({"precision": "bf16"}, {"nce", "accuracy", "mse"}),
        ({"clip_norm": 1.0, "drop_path": 0.0}, {"nce", "accuracy", "mse"}),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_every_objective_and_mask(
    sounds: Path, tmp_path: Path, small: dict[str, object], change: dict[str, object], columns: set[str]
) -> None:
    small |= {"steps": 2, "save_minutes": 1.0} | change
    pretrain([str(sounds)], tmp_path, make_recipe(None, small), device="cpu")
    row = read_log(tmp_path)[-1]
    for name in columns | {"loss"}:
        assert math.isfinite(float(row[name]))
        assert math.isfinite(float(row[f"val_{name}"]))
    assert not ({"nce", "accuracy", "mse"} - columns) & set(row)


def test_two_passes_differ_from_one(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small |= {"steps": 1, "log_every": 1}
    for passes in (1, 2):
        pretrain([str(sounds)], tmp_path / str(passes), make_recipe(None, small | {"passes": passes}), device="cpu")
    assert numbers(tmp_path / "1", "nce") == numbers(tmp_path / "2", "nce")  # the first pass and its mask are the same
    assert numbers(tmp_path / "1", "mse") != numbers(tmp_path / "2", "mse")


def test_best_is_kept_by_validation(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    # A rate that harms the model as it rises: the last weights are worse than the first validation's.
    small |= {"steps": 24, "lr": 0.3, "warmup_steps": 24, "warmup_every": 8, "validate_every": 4}
    small |= {"objective": "generative"}
    pretrain([str(sounds)], tmp_path, make_recipe(None, small), device="cpu")
    losses = numbers(tmp_path, "val_loss")
    kept = ssamba.load(tmp_path, heads=True).state_dict()
    last = {k[6:]: v for k, v in load_tensors(tmp_path / "state.safetensors").items() if k.startswith("model.")}
    assert losses[-1] > min(losses)
    assert any(not torch.equal(kept[k], last[k]) for k in kept)


def test_loss_that_is_no_number_stops_the_run(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small |= {"lr": 10.0, "warmup_steps": 0}
    with pytest.raises(SsambaError, match="lower --lr or"):
        pretrain([str(sounds)], tmp_path, make_recipe(None, small), device="cpu")
    saved = tmp_path / "state.safetensors"
    assert not saved.exists() or all(bool(v.isfinite().all()) for v in load_tensors(saved).values())


def test_from_official_and_from_run(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small |= {"steps": 1, "lr": 1e-12, "warmup_steps": 0}
    pretrain([str(sounds)], tmp_path / "a", make_recipe(None, small), source=str(OFFICIAL), device="cpu")
    official = ssamba.load(OFFICIAL, heads=True, frames=64)
    first = ssamba.load(tmp_path / "a", heads=True)
    assert first.config.depth == 4  # the checkpoint's, not the recipe's
    for name, value in official.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value, rtol=0, atol=1e-9)
    pretrain([str(sounds)], tmp_path / "b", make_recipe(None, small), source=str(tmp_path / "a"), device="cpu")
    assert ssamba.load(tmp_path / "b").config == first.config


def test_a_decoder_goes_along_where_it_is_wanted(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    """The recipe says whether there is a decoder; encoder and heads come from the source as far as they fit."""
    small |= {"steps": 1, "lr": 1e-12, "warmup_steps": 0}
    decoding = make_recipe(None, small | {"decoder_depth": 2})
    a, b, c = (tmp_path / name for name in "abc")
    pretrain([str(sounds)], a, decoding, source=str(OFFICIAL), device="cpu")
    pretrain([str(sounds)], b, decoding, source=str(a), device="cpu")
    pretrain([str(sounds)], c, make_recipe(None, small), source=str(a), device="cpu")
    one, two, plain = (ssamba.load(folder, heads=True).state_dict() for folder in (a, b, c))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-9)
        if not name.startswith(("decoder.", "heads.")):
            torch.testing.assert_close(plain[name], value, rtol=0, atol=1e-9)
    assert not any(name.startswith("decoder.") for name in plain)


def test_refuses_what_would_not_be_the_same_run(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small["steps"] = 2
    out = tmp_path / "run"
    pretrain([str(sounds)], out, make_recipe(None, small), device="cpu")
    with pytest.raises(ConfigError, match="mask 16, this command says 12"):
        pretrain([str(sounds)], out, make_recipe(None, small | {"mask": 12}), device="cpu")
    with pytest.raises(ConfigError, match="from None"):
        pretrain([str(sounds)], out, make_recipe(None, small), source=str(OFFICIAL), device="cpu")
    other = tmp_path / "sounds"
    shutil.copytree(sounds, other)
    next(iter(sorted(other.rglob("*.flac")))).unlink()
    with pytest.raises(DataError, match="data changed"):
        pretrain([str(other / "audio")], out, make_recipe(None, small | {"steps": 4}), device="cpu")


def test_corrupt_file_is_skipped_and_listed(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    data = tmp_path / "sounds"
    shutil.copytree(sounds / "audio", data)
    victims = sorted(data.rglob("*.flac"))
    victims[3].write_bytes(b"fLaC but not really")
    # This one has a good header and breaks off in the middle: found only when it is decoded.
    whole = victims[5].read_bytes()
    victims[5].write_bytes(whole[: len(whole) * 2 // 3])
    small |= {"steps": 30, "save_minutes": 1.0}
    pretrain([str(data)], tmp_path / "run", make_recipe(None, small), device="cpu")
    listed = (tmp_path / "run" / "skipped.csv").read_text()
    assert victims[3].name in listed
    assert victims[5].name in listed
    assert len(listed.strip().splitlines()) == 3  # header and the two


def test_too_many_corrupt_files_stop_the_run(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    data = tmp_path / "sounds"
    shutil.copytree(sounds / "audio", data)
    for victim in sorted(data.rglob("*.flac"))[:5]:
        victim.write_bytes(b"nothing of value")
    with pytest.raises(DataError, match="5 of 45"):
        pretrain([str(data)], tmp_path / "run", make_recipe(None, small), device="cpu")
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_one_file_is_too_few(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    first = sorted(sounds.rglob("*.flac"))[0]
    with pytest.raises(DataError, match="two or more"):
        pretrain([str(first)], tmp_path, make_recipe(None, small), device="cpu")


def test_batch_features_pad_like_the_reference() -> None:
    config = ssamba.Config(width=32, depth=2, frames=64)
    generator = torch.Generator().manual_seed(0)
    samples = PUBLISHED.samples_of_frames(64)
    assert PUBLISHED.seconds_of_frames(64) * 16000 == samples
    lengths = torch.tensor([samples, 5000, 400, 399])
    waveforms = torch.randn(4, samples, generator=generator) * 0.1 + 0.05
    waveforms *= torch.arange(samples) < lengths[:, None]
    batch = batch_features(waveforms, lengths, config)
    for row, waveform, length in zip(batch[:3], waveforms, lengths, strict=False):
        alone = ssamba.features(waveform[:length].numpy(), target_length=64)[0]
        torch.testing.assert_close(row, alone, rtol=0, atol=2e-5)
    padding = normalise_log_mel(torch.zeros(64, 128), config.mean, config.std)
    torch.testing.assert_close(batch[3], padding)


def test_recipe_holds_the_reference_values() -> None:
    recipe = make_recipe()
    assert (recipe.lr, recipe.weight_decay, recipe.beta1, recipe.beta2) == (1e-4, 5e-8, 0.95, 0.999)
    assert (recipe.batch, recipe.epochs, recipe.mask, recipe.validation_mask) == (64, 10, 400, 400)
    assert (recipe.warmup_steps, recipe.warmup_every, recipe.validate_every) == (1000, 50, 4000)
    assert (recipe.patience, recipe.lr_decay) == (2, 0.5)
    assert recipe.config() == ssamba.Config.tiny()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mask": 512}, "allows 1 to 511"),
        ({"mask": 0}, "allows 1 to 511"),
        ({"lr": -1.0}, "lr: -1.0"),
        ({"batch": 0}, "batch: 0"),
        ({"objective": "jiont"}, "choose joint"),
        ({"passes": 3}, "passes: 3"),
        ({"width": -4}, "width: -4"),
        ({"depth": 5}, "even"),
        ({"validation": 1.5}, "validation: 1.5"),
        ({"batch": 1.5}, "type int"),
        ({"beta2": 1.0}, "beta2: 1.0"),
        ({"epochs": 0}, "epochs: 0"),
    ],
    ids=str,
)
def test_recipe_refuses(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_recipe(None, overrides)


def test_validation_mask_follows_a_smaller_grid() -> None:
    assert make_recipe().hidden_in_validation == 400
    assert make_recipe(None, {"mask": 300}).hidden_in_validation == 400
    assert make_recipe(None, {"mask": 40, "frames": 128}).hidden_in_validation == 40


def test_missing_data_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        pretrain([str(tmp_path / "none")], tmp_path / "run", make_recipe(), device="cpu")
    assert not (tmp_path / "run").exists()


def test_recipe_file_errors(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("maks: 300\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: unknown value 'maks', did you mean 'mask'\?"):
        load_recipe(path)
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected 'key: value'"):
        load_recipe(path)
    path.write_text("a: [\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="is missing"):
        load_recipe(tmp_path / "none.yaml")


def test_schedule() -> None:
    schedule = PlateauSchedule(peak=1.0, warmup_steps=100, warmup_every=50, patience=2, decay=0.5)
    assert [schedule.rate(s) for s in (0, 49, 50, 99, 100, 10**6)] == [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    for score in (0.1, 0.2, 0.2, 0.1):
        schedule.validated(score)
    assert schedule.rate(100) == 0.5
    other = PlateauSchedule(peak=1.0, warmup_steps=100, warmup_every=50, patience=2, decay=0.5)
    other.load(schedule.to_dict())
    assert other == schedule
    for score in (0.15, 0.3, 0.1, 0.1):
        schedule.validated(score)
    assert schedule.rate(100) == 0.25


def test_cosine_schedule() -> None:
    schedule = CosineSchedule(peak=2.0, warmup_steps=10, warmup_every=1, total_steps=110)
    assert [schedule.rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert [schedule.rate(step) for step in (35, 60, 85, 110, 200)] == pytest.approx(
        [1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0, 0.0]
    )


def test_a_cosine_ends_with_the_run(sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    small |= {"steps": 6, "schedule": "cosine", "log_every": 1}
    pretrain([str(sounds)], tmp_path, make_recipe(None, small), device="cpu")
    rates = numbers(tmp_path, "lr")
    assert rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < rates[3]
    with pytest.raises(ConfigError, match="has steps 6, this command says 12"):
        pretrain([str(sounds)], tmp_path, make_recipe(None, small | {"steps": 12}), device="cpu")


@pytest.mark.parametrize("short_clips", ["zeros", "repeat"])
def test_a_set_that_lies_on_the_device_gives_the_same_inputs(
    sounds: Path, small: dict[str, object], short_clips: str
) -> None:
    """As on a GPU, where small sets are decoded once: the same crops, draws and features."""
    values = {"short_clips": short_clips, "mix": 0.5, "speed": 1.3, "reverb": 0.5, "gain_db": 3.0, "steps": 2}
    recipe = make_recipe(None, small | values)
    data = prepare_data(read_sources([str(sounds)]), recipe, SkipList())
    model = build_model(recipe, data)
    resident = ResidentAudio(data.plan.clips, model.device)
    tasks = [PretrainTask(recipe, model, data.plan, data.skip, resident=audio) for audio in (None, resident)]
    inputs = [[task.inputs(n, batch).tensors() for n, batch in enumerate(task.batches(0))] for task in tasks]
    assert len(inputs[0]) == 2
    for decoded, cut in zip(*inputs, strict=True):
        for one, other in zip(decoded, cut, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # decoded audio is kept in 16 bits
