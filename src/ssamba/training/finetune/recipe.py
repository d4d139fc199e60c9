"""The hyperparameters of fine-tuning: a dataclass whose fields are a recipe's keys and the command line's options."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ssamba.audio.constants import AUDIOSET_MEAN, AUDIOSET_STD
from ssamba.models import patches
from ssamba.models.classifier import LOSSES, POOLINGS
from ssamba.models.config import ENCODERS, WIDTHS, Config
from ssamba.training.pretrain.recipe import check_fields, check_speed_and_reverb, option, read_values
from ssamba.utils.errors import ConfigError
from ssamba.utils.suggest import nearest

CHOICES = ("auto", "folds", "validation", "last", "average")
HEAD_INITS = ("random", "probe")
METRICS = ("auto", "accuracy", "mAP")
_OWN_AUTO = ("loss", "metric", "choose", "precision")
_NO_RECIPE = "pretrain"
NO_OPTIONS = ("name", "auto")
"""Values that are no options of the command line."""
OPEN = (
    *("folds", "frames", "stride", "window", "statistics", "pooling", "head_init", "lr", "head_lr", "layer_decay"),
    *("warmup_steps", "decay_start", "decay_every", "decay", "epochs", "batch", "accumulate", "eval_batch"),
    *("freq_mask", "time_mask", "noise", "gain_db", "response_db", "speed", "label_smoothing", "ema", "cache_gb"),
)
"""Values that a recipe file may leave open by saying ``auto`` (``training.finetune_auto``)."""


@dataclass(frozen=True)
class FinetuneRecipe:
    """One fine-tuning run. Raises ``ConfigError`` on values that make no run."""

    name: str = option("custom", "name of the recipe")
    auto: str = option("", "names of the values that are left open, until data and machine decide them")
    layout: str = option("custom", "how DATA is laid out (docs/data.md)")
    folds: int = option(1, "custom sets without splits: folds of the cross-validation, 1 for one split of 80/10/10")
    encoder: str = option("ssamba", "kind of encoder, for --from none", tuple(ENCODERS))
    size: str = option("tiny", "width and depth of the encoder, for --from none", tuple(WIDTHS))
    width: int = option(0, "width, 0 takes it from the size; for --from none")
    depth: int = option(0, "number of blocks, 0 takes the published; for --from none")
    residual_scale: int = option(2, "factor on SSAMBA's residual stream after each pair, 2 or 1; for --from none")
    patch_frequency: int = option(16, "mel bins in a patch")
    patch_time: int = option(16, "frames in a patch")
    frames: int = option(1024, "length of a clip in log-mel frames of 10 ms")
    stride: int = option(10, "patch stride along both axes, in bins and frames")
    positions: str = option(
        "interpolate",
        "of clips longer than SOURCE's: its positions interpolated, repeated in time, or their average over time",
        patches.LONGER,
    )
    window: float = option(0.0, "seconds of the windows that a clip is read in, 0 reads its beginning")
    statistics: str = option(
        "recipe",
        "log-mel mean and std: as below, measured on the training clips, or SOURCE's",
        ("recipe", "measure", "source"),
    )
    mean: float = option(AUDIOSET_MEAN, "log-mel mean")
    std: float = option(AUDIOSET_STD, "log-mel standard deviation")
    pooling: str = option(
        "mean",
        "what is classified: the mean of patch tokens, the tokens in front, or each row's mean and deviation over time",
        POOLINGS,
    )
    freeze: bool = option(False, "train the classifier alone")
    head_init: str = option(
        "random",
        "the classifier's first weights: random, or a logistic regression on the encoder's features of training clips",
        HEAD_INITS,
    )
    drop_path: float = option(-1.0, "rate of stochastic depth at the last block, -1 takes SOURCE's or the published")
    lr: float = option(1e-4, "peak learning rate of Adam for the encoder")
    head_lr: float = option(1.0, "the classifier's rate, as a multiple of it")
    layer_decay: float = option(
        1.0, "factor between the rates of two layers of the encoder, the first the slowest; 1 gives all the same"
    )
    warmup_steps: int = option(0, "steps over which the rate rises from 0")
    warmup_every: int = option(50, "steps between two raises during warm-up")
    decay_start: int = option(1000, "epochs through before the rate first falls")
    decay_every: int = option(1, "epochs between two falls")
    decay: float = option(1.0, "factor by which the rate falls")
    weight_decay: float = option(5e-7, "weight decay of Adam")
    beta1: float = option(0.95, "Adam's decay of the mean gradient")
    beta2: float = option(0.999, "Adam's decay of the mean squared gradient")
    clip_norm: float = option(0.0, "largest gradient norm, 0 leaves gradients as they are")
    epochs: int = option(50, "epochs, each over all training clips")
    batch: int = option(48, "clips in a batch")
    accumulate: int = option(1, "batches whose gradients make one step")
    eval_batch: int = option(0, "clips that are judged at once, 0: as in training, at least 16")
    balanced: bool = option(False, "show rare classes more often")
    mixup: float = option(0.0, "share of clips that are mixed with another one")
    freq_mask: int = option(0, "most mel bins hidden from a training clip")
    time_mask: int = option(0, "most frames hidden from a training clip")
    noise: bool = option(False, "add noise to training clips and roll them in time")
    gain_db: float = option(0.0, "training clips are made louder or weaker by up to so many dB")
    response_db: float = option(0.0, "deviation, in dB, of a random smooth frequency response for each training clip")
    speed: float = option(1.0, "training clips are played faster or slower by up to this factor, pitch included")
    reverb: float = option(0.0, "share of training clips that are heard with the reverberation of a random room")
    loss: str = option(
        "auto", "softmax or sigmoid cross entropy; auto: sigmoid where clips have several labels", LOSSES
    )
    label_smoothing: float = option(0.0, "softmax: share of each label that goes to all classes evenly")
    metric: str = option("auto", "what is maximised; auto: mAP where clips have several labels", METRICS)
    choose: str = option(
        "auto",
        "which epoch is reported: one for all folds by their average, the best on validation data, the last, or the "
        "average of weights; auto: validation where there is some, else folds where there are several, else last",
        CHOICES,
    )
    ema: float = option(
        0.0, "share of averaged weights that a step keeps, as 0.99; they are then what is judged and kept, 0 for none"
    )
    average_from: int = option(0, "first epoch whose weights are averaged")
    average_to: int = option(0, "last epoch whose weights are averaged")
    seed: int = option(0, "seed of weights, order, crops and augmentation")
    workers: int = option(0, "threads or processes that decode audio, 0: as many as there are cores, up to 16")
    cache_gb: float = option(4.0, "most memory for decoded audio, in gigabytes")
    precision: str = option("auto", "auto is bf16 on a GPU that has it and fp32 elsewhere", ("auto", "fp32", "bf16"))
    save_minutes: float = option(2.0, "minutes between two saved states")
    log_every: int = option(50, "steps between two lines of the log")

    def __post_init__(self) -> None:
        check_fields(self)
        at_least_one = ("epochs", "folds", "batch", "accumulate", "decay_every", "log_every", "stride", "warmup_every")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}, give 1 or more")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            signed = f.name in ("mean", "drop_path")
            if isinstance(value, (int, float)) and not (math.isfinite(value) and (signed or value >= 0)):
                raise ConfigError(f"{f.name}: {value}, give 0 or more")
        if not (self.lr > 0 and self.head_lr > 0 and 0 < self.decay <= 1):
            raise ConfigError(
                f"lr {self.lr}, head_lr {self.head_lr}, decay {self.decay}: give positive numbers, decay at most 1"
            )
        if not (self.beta1 < 1 and self.beta2 < 1 and self.mixup <= 1):
            raise ConfigError(f"beta1 {self.beta1}, beta2 {self.beta2}, mixup {self.mixup}: give 1 at most, betas less")
        for name, usual in (("ema", 0.99), ("label_smoothing", 0.1)):
            if getattr(self, name) >= 1:
                raise ConfigError(f"{name}: {getattr(self, name)}, give a share below 1, such as {usual}")
        check_speed_and_reverb(self.speed, self.reverb)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay: {self.layer_decay}, give more than 0, and 1 at most")
        for name in self.open:
            if name not in OPEN:
                raise ConfigError(f"{name}: auto, give a value; only {', '.join(OPEN)} may be left open")
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
        return Config(
            encoder=self.encoder,
            width=self.width or WIDTHS[self.size],
            depth=self.depth,
            residual_scale=self.residual_scale,
            frames=self.frames,
            patch_frequency=self.patch_frequency,
            patch_time=self.patch_time,
            stride_frequency=self.stride,
            stride_time=self.stride,
            drop_path=self.drop_path,
            mean=self.mean,
            std=self.std,
        )

    @property
    def open(self) -> tuple[str, ...]:
        """Names of the values that are left to data and machine."""
        return tuple(self.auto.split())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the run directory."""
        return dataclasses.asdict(self)


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
        own = resources.files("ssamba").joinpath(f"training/recipes/{recipe}.yaml")
        values = read_values(own, f"recipes/{recipe}.yaml", FinetuneRecipe)
    elif path.suffix.lower() in (".yaml", ".yml") or path.is_file():
        values = read_values(path, recipe, FinetuneRecipe)
    else:
        near = nearest(recipe, recipe_names()) or f"; there are {', '.join(recipe_names())}"
        raise ConfigError(f"unknown recipe '{recipe}'{near} (or give a .yaml file)")
    values |= overrides or {}
    left = [name for name, value in values.items() if value == "auto" and name not in _OWN_AUTO]
    numbers = {name: value for name, value in values.items() if name not in left}
    if "stride" in left:  # until it is chosen: one that patches of every shape allow
        numbers["stride"] = 1
    return FinetuneRecipe(**({"name": path.stem, "auto": " ".join(left)} | numbers))
