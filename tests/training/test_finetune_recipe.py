"""Every recipe of the package against docs/reference.md's table, and values that make no run."""

import dataclasses
from pathlib import Path

import pytest

from ssamba.data.datasets import LAYOUTS
from ssamba.training.finetune.recipe import FinetuneRecipe, load_finetune_recipe, recipe_names
from ssamba.training.schedule import EpochSchedule
from ssamba.utils.errors import ConfigError

AUDIOSET = (-4.2677393, 4.5689974)
ESC, URBAN = (-6.6268077, 5.358466), (-5.138443946838379, 4.229961395263672)
KS = (-6.845978, 5.5654526)
# (mean, std), frames, stride, lr, head, epochs, batch, masks, mixup, noise, loss, schedule, metric, choose
TABLE = {
    "audioset-20k": (
        AUDIOSET, 1024, 10, 1e-4, 3, 50, 24, (48, 192), 0.5, False, "bce", (15, 10, 0.75), "mAP", "average"
    ),
    "audioset-2m": (
        AUDIOSET, 1024, 10, 1e-5, 3, 5, 24, (48, 192), 0.5, False, "bce", (15, 10, 0.75), "mAP", "average"
    ),
    "esc50": (ESC, 512, 10, 1e-4, 1, 50, 48, (24, 96), 0, True, "ce", (6, 1, 0.85), "accuracy", "folds"),
    "speech-commands-v1": (
        KS, 128, 10, 2.5e-4, 1, 30, 128, (48, 48), 0.6, True, "bce", (5, 1, 0.85), "accuracy", "validation"
    ),
    "dasl": (URBAN, 6144, 16, 1e-4, 1, 50, 5, (48, 192), 0, False, "ce", (20, 10, 0.85), "accuracy", "folds"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_recipes_hold_the_values_of_the_table(name: str) -> None:
    r = load_finetune_recipe(name)
    found = (
        (r.mean, r.std), r.frames, r.stride, r.lr, r.head_lr, r.epochs, r.batch, (r.freq_mask, r.time_mask), r.mixup,
        r.noise, r.loss, (r.decay_start, r.decay_every, r.decay), r.metric, r.choose,
    )  # fmt: skip
    assert found == TABLE[name]
    assert (r.weight_decay, r.beta1, r.beta2, r.pooling, r.freeze) == (5e-7, 0.95, 0.999, "mean", False)


def test_what_the_table_says_apart_from_its_columns() -> None:
    v1, v2 = (load_finetune_recipe(f"speech-commands-{v}") for v in ("v1", "v2"))
    assert dataclasses.replace(v2, name=v1.name, layout=v1.layout) == v1
    assert v1.warmup_steps == 1000
    esc50, urban = (load_finetune_recipe(name) for name in ("esc50", "urbansound8k"))
    statistics = {"mean": esc50.mean, "std": esc50.std}
    assert dataclasses.replace(urban, name="esc50", layout="esc50", **statistics) == esc50
    balanced, full = load_finetune_recipe("audioset-20k"), load_finetune_recipe("audioset-2m")
    assert (balanced.average_from, balanced.average_to, balanced.balanced) == (12, 40, False)
    assert full.balanced
    for name, batch in (("voxceleb1", 8), ("iemocap", 4)):
        r = load_finetune_recipe(name)
        assert ((r.mean, r.std), r.window, r.frames, r.stride) == (AUDIOSET, 1.0, 98, 10)
        assert (r.lr, r.batch, r.accumulate, r.loss, r.metric, r.freeze) == (1e-4, batch, 8, "ce", "accuracy", False)


def test_the_two_recipes_that_were_tuned_here() -> None:
    esc10, arabic = (load_finetune_recipe(name) for name in ("esc10", "arabic-speech-commands"))
    for recipe in (esc10, arabic):
        assert (recipe.pooling, recipe.stride, recipe.loss) == ("rows", 16, "ce")
        assert (recipe.mixup, recipe.head_init, recipe.ema, recipe.speed) == (0.0, "probe", 0.99, 1.15)
    for recipe, changes in ((arabic, (6, 3, 16, 16, True)), (esc10, (0, 0, 0, 0, False))):
        assert (recipe.gain_db, recipe.response_db, recipe.freq_mask, recipe.time_mask, recipe.noise) == changes
    assert (esc10.layer_decay, esc10.epochs, esc10.reverb) == (0.75, 15, 0)
    assert (arabic.layer_decay, arabic.epochs, arabic.reverb) == (1.0, 20, 0)
    assert ((esc10.mean, esc10.std), esc10.choose) == (ESC, "folds")
    assert (arabic.statistics, arabic.choose) == ("measure", "validation")


def test_every_recipe_loads_and_names_a_layout() -> None:
    names = recipe_names()
    assert len(names) == 12
    for name in names:
        recipe = load_finetune_recipe(name)
        assert recipe.name == name
        assert recipe.layout in LAYOUTS


def test_a_file_of_your_own(tmp_path: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("layout: custom\nframes: 300\n")
    recipe = load_finetune_recipe(str(path), {"lr": 0.01})
    assert (recipe.name, recipe.frames, recipe.lr) == ("birds", 300, 0.01)
    path.write_text("mixpu: 0.5\n")
    with pytest.raises(ConfigError, match="unknown value 'mixpu', did you mean 'mixup'"):
        load_finetune_recipe(str(path))
    with pytest.raises(ConfigError, match=r"none\.yaml: is missing"):
        load_finetune_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="unknown recipe 'esc-50', did you mean 'esc50'"):
        load_finetune_recipe("esc-50")
    with pytest.raises(ConfigError, match="unknown recipe 'zzz'; there are arabic"):
        load_finetune_recipe("zzz")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch": 0}, "batch: 0"),
        ({"lr": 0.0}, "lr: 0.0"),
        ({"decay": 1.5}, "decay: 1.5"),
        ({"mixup": 1.2}, "mixup: 1.2"),
        ({"ema": 1.0}, r"ema: 1\.0, give a share below 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing: 1\.0, give a share below 1"),
        ({"gain_db": -3.0}, r"gain_db: -3\.0, give 0 or more"),
        ({"warmup_every": 0}, "warmup_every: 0, give 1 or more"),
        ({"speed": 0.9}, r"speed: 0\.9, give a factor from 1"),
        ({"reverb": 2.0}, r"reverb: 2\.0, give a share from 0 to 1"),
        ({"layer_decay": 0.0}, r"layer_decay: 0\.0, give more than 0"),
        ({"layer_decay": 1.1}, r"layer_decay: 1\.1"),
        ({"head_init": "linear"}, "choose random, probe"),
        ({"mixup": -0.1}, "mixup: -0.1"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"stride": 17}, "stride: 17 leaves gaps"),
        ({"freq_mask": 129}, "freq_mask 129"),
        ({"frames": 8}, "does not fit"),
        ({"window": 20.0}, "window: 20.0 s are 1998 frames"),
        ({"window": 0.001}, "window: 0.001"),
        ({"choose": "best"}, "choose auto"),
        ({"choose": "average"}, "average_from 0"),
        ({"choose": "average", "average_from": 2, "average_to": 51}, "epochs from 1 to 50"),
        ({"loss": "mse"}, "choose auto, ce, bce"),
        ({"epochs": 1.5}, "type int"),
    ],
    ids=str,
)
def test_recipe_refuses(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneRecipe(**overrides)  # type: ignore[arg-type]


def test_schedule_falls_by_the_epoch() -> None:
    schedule = EpochSchedule(1.0, 0, 50, start=6, every=1, decay=0.85, steps_per_epoch=10)
    assert schedule.rate(59) == 1.0
    assert schedule.rate(60) == pytest.approx(0.85)  # the seventh epoch
    assert schedule.rate(75) == pytest.approx(0.85**2)
    slow = EpochSchedule(2.0, 100, 50, start=20, every=10, decay=0.5, steps_per_epoch=10)
    assert [slow.rate(s) for s in (0, 49, 50, 99)] == [1.0, 1.0, 2.0, 2.0]
    smooth = EpochSchedule(2.0, 100, 1, start=20, every=10, decay=0.5, steps_per_epoch=10)
    assert [smooth.rate(s) for s in (0, 49, 99, 100)] == pytest.approx([0.02, 1.0, 2.0, 2.0])
    assert [slow.rate(10 * e) for e in (19, 20, 29, 30, 49)] == [2.0, 1.0, 1.0, 0.5, 0.25]
