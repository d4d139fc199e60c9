"""The hyperparameters of fine-tuning: a dataclass whose fields are a recipe's keys and the command line's options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from ssamba.audio.constants import AUDIOSET_MEAN, AUDIOSET_STD
from ssamba.models import patches
from ssamba.models.classifier import LOSSES, POOLINGS
from ssamba.models.config import Config
from ssamba.training.recipes.fields import in_order_of_body, like, option, read_values
from ssamba.training.recipes.groups import (
    Augmentation,
    FinetuneAugmentation,
    ModelShape,
    Optimisation,
    RecipeBase,
    RunSettings,
)
from ssamba.utils.errors import ConfigError, nearest

CHOICES = ("auto", "folds", "validation", "last", "average")
HEAD_INITS = ("random", "probe")
METRICS = ("auto", "accuracy", "mAP")
CALIBRATE = ("auto", "yes", "no")
_WITH_AUTO = ("loss", "metric", "choose", "precision", "calibrate")
_NO_RECIPE = "pretrain"
NO_OPTIONS = ("name", "auto")
"""Values that are no options of the command line."""
MAY_BE_OPEN = (
    *("folds", "frames", "stride", "window", "statistics", "pooling", "head_init", "lr", "head_lr", "layer_decay"),
    *("warmup_steps", "decay_start", "decay_every", "decay", "epochs", "batch", "accumulate", "eval_batch"),
    *("freq_mask", "time_mask", "noise", "gain_db", "response_db", "speed", "label_smoothing", "ema", "cache_gb"),
)
"""Values that a recipe file may leave open by saying ``auto`` (``training.finetune.auto``)."""


@in_order_of_body
@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(RecipeBase, ModelShape, FinetuneAugmentation, Optimisation, RunSettings):
    """One fine-tuning run. Raises ``ConfigError`` on values that make no run."""

    optimizer: ClassVar[str] = "adam"
    name: str = option("custom", "name of the recipe")
    auto: str = option("", "names of the values that are left open, until data and machine decide them")
    layout: str = option("custom", "how DATA is laid out (docs/data.md)")
    folds: int = option(
        1, "custom sets without splits: folds of the cross-validation, 1 for one split of 80/10/10", min=1
    )
    encoder: str = like(ModelShape, "encoder", "kind of encoder, for --from none")
    size: str = like(ModelShape, "size", "width and depth of the encoder, for --from none")
    width: int = like(ModelShape, "width", "width, 0 takes it from the size; for --from none")
    depth: int = like(ModelShape, "depth", "number of blocks, 0 takes the published; for --from none")
    residual_scale: int = like(
        ModelShape,
        "residual_scale",
        "factor on SSAMBA's residual stream after each pair, 2 or 1; for --from none",
    )
    patch_frequency: int = like(ModelShape, "patch_frequency")
    frames: int = like(ModelShape, "frames", "length of a clip in log-mel frames of 10 ms")
    stride: int = option(10, "patch stride along both axes, in bins and frames", min=1)
    positions: str = option(
        "interpolate",
        "of clips longer than SOURCE's: its positions interpolated, repeated in time, or their average over time",
        patches.LONGER,
    )
    window: float = option(0.0, "seconds of the windows that a clip is read in, 0 reads its beginning")
    statistics: str = like(
        ModelShape,
        "statistics",
        "log-mel mean and std: as below, measured on the training clips, or SOURCE's",
        "recipe",
        ("recipe", "measure", "source"),
    )
    mean: float = option(AUDIOSET_MEAN, "log-mel mean", min=-math.inf)
    std: float = option(AUDIOSET_STD, "log-mel standard deviation")
    pooling: str = option(
        "mean",
        "what is classified: the mean of patch tokens, the prefix tokens, or each row's mean and deviation over time",
        POOLINGS,
    )
    freeze: bool = option(False, "train the classifier alone")
    head_init: str = option(
        "random",
        "the classifier's first weights: random, or a logistic regression on the encoder's features of training clips, "
        "with sigmoid one for each class",
        HEAD_INITS,
    )
    drop_path: float = like(
        ModelShape,
        "drop_path",
        "rate of stochastic depth at the last block, -1 takes SOURCE's or the published",
    )
    lr: float = like(Optimisation, "lr", "peak learning rate of Adam for the encoder")
    head_lr: float = option(1.0, "the classifier's rate, as a multiple of it", above=0, max=1e6)
    layer_decay: float = option(
        1.0,
        "factor between the rates of two layers of the encoder, the first the slowest; 1 gives all the same",
        above=0,
        max=1,
    )
    warmup_steps: int = like(Optimisation, "warmup_steps", default=0)
    decay_start: int = option(1000, "epochs through before the rate first falls")
    decay_every: int = option(1, "epochs between two falls", min=1)
    decay: float = option(1.0, "factor by which the rate falls", above=0, max=1)
    weight_decay: float = like(Optimisation, "weight_decay", "weight decay of Adam", 5e-7)
    beta1: float = like(Optimisation, "beta1", "Adam's decay of the mean gradient")
    beta2: float = like(Optimisation, "beta2", "Adam's decay of the mean squared gradient")
    epochs: int = option(50, "epochs, each over all training clips", min=1)
    batch: int = like(Optimisation, "batch", "clips in a batch", 48)
    accumulate: int = option(1, "batches whose gradients make one step", min=1)
    eval_batch: int = option(0, "clips in a pass of evaluation, 0: as in training, at least 16")
    balanced: bool = option(False, "show rare classes more often")
    mixup: float = option(0.0, "share of clips that are mixed with another one", max=1)
    freq_mask: int = like(FinetuneAugmentation, "freq_mask")
    gain_db: float = like(Augmentation, "gain_db", "training clips are made louder or weaker by up to so many dB")
    response_db: float = like(
        Augmentation,
        "response_db",
        "deviation, in dB, of a random smooth frequency response for each training clip",
    )
    speed: float = like(
        Augmentation, "speed", "training clips are played faster or slower by up to this factor, pitch included"
    )
    reverb: float = like(Augmentation, "reverb", "share of training clips that get the reverberation of a random room")
    loss: str = option(
        "auto", "softmax or sigmoid cross entropy; auto: sigmoid where clips have several labels", LOSSES
    )
    label_smoothing: float = option(
        0.0,
        "softmax: share of each label that goes to all classes evenly",
        below=1,
        give="a share below 1, such as 0.1",
    )
    metric: str = option("auto", "what is maximised; auto: mAP where clips have several labels", METRICS)
    choose: str = option(
        "auto",
        "which epoch is reported: one for all folds by their average, the best on validation data, the last, or the "
        "average of weights; auto: validation where there is some, else folds where there are several, else last",
        CHOICES,
    )
    ema: float = like(
        Optimisation,
        "ema",
        "share of averaged weights that a step keeps, as 0.99; they are then what is evaluated and kept, 0 for none",
    )
    average_from: int = option(0, "first epoch whose weights are averaged")
    average_to: int = option(0, "last epoch whose weights are averaged")
    calibrate: str = option(
        "auto",
        "divide the kept model's logits by the temperature that suits held-out clips best; auto: for custom sets",
        CALIBRATE,
    )
    seed: int = like(RunSettings, "seed", "seed of weights, order, crops and augmentation")
    workers: int = like(RunSettings, "workers")
    cache_gb: float = option(4.0, "most memory for decoded audio, in gigabytes")
    precision: str = like(RunSettings, "precision")
    log_every: int = like(RunSettings, "log_every", default=50)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.open:
            if name not in MAY_BE_OPEN:
                raise ConfigError(f"{name}: auto, give a value; only {', '.join(MAY_BE_OPEN)} may be left open")
        self._check_grid()
        if self.choose == "average" and not 1 <= self.average_from <= self.average_to <= self.epochs:
            raise ConfigError(
                f"average_from {self.average_from}, average_to {self.average_to}: give epochs from 1 to {self.epochs}"
            )

    def _check_grid(self) -> None:
        config = self.config()
        if self.stride > min(config.patch_time, config.patch_frequency):
            raise ConfigError(
                f"stride: {self.stride} leaves gaps between patches of {self.patch_frequency} x {self.patch_time}; "
                f"give {min(self.patch_frequency, self.patch_time)} or less"
            )
        if self.freq_mask > config.mel_bins or self.time_mask > self.frames:
            raise ConfigError(
                f"freq_mask {self.freq_mask}, time_mask {self.time_mask}: a clip has {config.mel_bins} bins and "
                f"{self.frames} frames"
            )
        needed = config.front_end.frame_count(round(self.window * config.sample_rate))
        if self.window and not 1 <= needed <= self.frames:
            raise ConfigError(f"window: {self.window} s are {needed} frames, frames is {self.frames}; give less")

    def config(self) -> Config:
        """The model that the recipe trains from nothing (before statistics are measured)."""
        return self.shape_config((self.stride, self.stride), mean=self.mean, std=self.std)

    @property
    def open(self) -> tuple[str, ...]:
        """Names of the values that are left to data and machine."""
        return tuple(self.auto.split())


def recipe_names() -> list[str]:
    """The recipes that come with the package, sorted."""
    files = resources.files("ssamba").joinpath("training/recipes").iterdir()
    names = sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
    return [name for name in names if name != _NO_RECIPE]


def load_finetune_recipe(recipe: str, overrides: dict[str, Any] | None = None) -> FinetuneRecipe:
    """A recipe of the package by name, or a YAML file by path, with some values overridden.

    Raises ``ConfigError`` for an unknown name (the nearest is named), an unknown key or a bad value.
    """
    path = Path(recipe)
    if recipe in recipe_names():
        packaged = resources.files("ssamba").joinpath(f"training/recipes/{recipe}.yaml")
        values = read_values(packaged, f"recipes/{recipe}.yaml", FinetuneRecipe)
    elif path.suffix.lower() in (".yaml", ".yml") or path.is_file():
        values = read_values(path, recipe, FinetuneRecipe)
    else:
        near = nearest(recipe, recipe_names()) or f"; there are {', '.join(recipe_names())}"
        raise ConfigError(f"unknown recipe '{recipe}'{near} (or give a .yaml file)")
    values |= overrides or {}
    open_names = [name for name, value in values.items() if value == "auto" and name not in _WITH_AUTO]
    numbers = {name: value for name, value in values.items() if name not in open_names}
    if "stride" in open_names:  # until it is chosen: one that patches of every shape allow
        numbers["stride"] = 1
    return FinetuneRecipe(**({"name": path.stem, "auto": " ".join(open_names)} | numbers))
