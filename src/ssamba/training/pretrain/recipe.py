"""The hyperparameters of pretraining: a dataclass whose fields are the recipe's keys and the command line's options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import resources
from importlib.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ssamba.audio.front_end import PUBLISHED
from ssamba.models.config import ENCODERS, WIDTHS, Config
from ssamba.models.losses import OBJECTIVES
from ssamba.utils.errors import ConfigError
from ssamba.utils.suggest import nearest

SCHEDULES = ("plateau", "cosine")
MOST_SPEED = 4.0


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with the text and the choices that the command line shows."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class PretrainRecipe:
    """One pretraining run. Raises ``ConfigError`` on values that make no run."""

    encoder: str = option("ssamba", "kind of encoder", tuple(ENCODERS))
    size: str = option("tiny", "width and depth of the encoder", tuple(WIDTHS))
    width: int = option(0, "width, 0 takes it from the size")
    depth: int = option(0, "number of blocks (even in SSAMBA), 0 takes the published")
    directions: int = option(2, "directions in which SSAMBA scans: 2, or 1 from left to right alone")
    residual_scale: int = option(2, "factor on SSAMBA's residual stream after each pair: 2 as in the reference, or 1")
    decoder_depth: int = option(
        0, "blocks of a decoder for the hidden patches, which the encoder then does not read; 0 as in the reference"
    )
    frames: int = option(1024, "length of a training clip in log-mel frames of 10 ms")
    sample_rate: int = option(PUBLISHED.sample_rate, "rate at which the model reads audio, in Hz")
    mel_bins: int = option(
        PUBLISHED.mel_bins, "mel bins of the log-mel; without --mask, the share of masked patches stays as it is"
    )
    patch_frequency: int = option(16, "mel bins in a patch")
    patch_time: int = option(16, "frames in a patch")
    drop_path: float = option(
        -1.0, "rate of stochastic depth at the last block, -1 takes the published (0.1 in SSAMBA, 0 in SSAST)"
    )
    statistics: str = option(
        "reference",
        "log-mel mean and std: AudioSet's (with --from SOURCE's), or measured on DATA, as always with another sample "
        "rate or other mel bins than the reference's",
        ("reference", "measure"),
    )
    mask: int = option(400, "patches hidden from the encoder")
    mask_kind: str = option("cluster", "squares of patches, or single ones at random", ("cluster", "frame"))
    masks_per_clip: int = option(1, "masks drawn for each clip of a batch, which is encoded with each")
    reference_quirks: bool = option(False, "draw cluster masks with the reference's quirks")
    objective: str = option("joint", "what the heads are trained for", tuple(OBJECTIVES))
    passes: int = option(1, "joint objective: 1 pass for both heads, or 2 with a mask each as in the reference")
    latent: float = option(
        0.0, "weight of an additional objective: the masked tokens of an averaged model that sees the whole clip"
    )
    latent_clip: float = option(0.0, "weight of predicting the averaged model's mean token of the clip")
    contrast: float = option(
        0.0, "weight of telling the averaged model's mean token of the clip from those of the batch's other clips"
    )
    views: int = option(
        1,
        "crops of each recording in a batch, near one another; with 2 or more a clip's target is another view's token",
    )
    view_shift: float = option(1.0, "seconds by which another view begins earlier or later, at most")
    clean_targets: bool = option(False, "the averaged model hears clips without mixing, gain, response and rooms")
    latent_layers: int = option(0, "last layers of the averaged model whose mean is the target, 0 takes all")
    ema: float = option(
        0.0, "share of the averaged weights that a step keeps, as 0.999; the run's model is then the averaged one"
    )
    short_clips: str = option("zeros", "what fills a crop behind a shorter clip", ("zeros", "repeat"))
    mix: float = option(0.0, "share of clips that get another of their batch mixed in, 0 to 20 dB weaker")
    gain_db: float = option(0.0, "clips are made louder or weaker by up to so many dB")
    response_db: float = option(0.0, "deviation, in dB, of a random smooth frequency response for each clip")
    speed: float = option(1.0, "clips are played faster or slower by up to this factor, pitch included")
    reverb: float = option(0.0, "share of clips that are heard with the reverberation of a random room")
    batch: int = option(64, "clips in a step")
    epochs: float = option(10.0, "epochs; an epoch shows every recording about once in full length")
    steps: int = option(0, "steps instead of epochs, where above 0")
    lr: float = option(1e-4, "peak learning rate of AdamW")
    weight_decay: float = option(5e-8, "weight decay of AdamW")
    beta1: float = option(0.95, "AdamW's decay of the mean gradient")
    beta2: float = option(0.999, "AdamW's decay of the mean squared gradient")
    clip_norm: float = option(0.0, "largest gradient norm, 0 leaves gradients as they are")
    schedule: str = option(
        "plateau", "after warm-up the rate falls when validation stands still, or to 0 by a cosine", SCHEDULES
    )
    warmup_steps: int = option(1000, "steps over which the rate rises from 0")
    warmup_every: int = option(50, "steps between two raises during warm-up")
    validate_every: int = option(4000, "steps between two validations; there is always one at the end")
    patience: int = option(2, "plateau: validations without a better accuracy before the rate falls")
    lr_decay: float = option(0.5, "plateau: factor by which the rate then falls")
    keep: str = option("best", "the run's model: best by validation, or last", ("best", "last"))
    validation: float = option(0.02, "share of the files held out for validation")
    validation_clips: int = option(256, "most clips in a validation")
    validation_mask: int = option(0, "patches hidden in validation; 0, or too many for the grid: as in training")
    seed: int = option(0, "seed of weights, clips, crops and masks")
    workers: int = option(0, "threads or processes that decode audio, 0: as many as there are cores, up to 16")
    precision: str = option("auto", "auto is bf16 on a GPU that has it and fp32 elsewhere", ("auto", "fp32", "bf16"))
    save_minutes: float = option(2.0, "minutes between two saved states")
    log_every: int = option(10, "steps between two lines of the log")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (
            "batch",
            "warmup_every",
            "validate_every",
            "patience",
            "log_every",
            "validation_clips",
            "masks_per_clip",
            "views",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}, give 1 or more")
        for name in (
            "width",
            "depth",
            "steps",
            "seed",
            "warmup_steps",
            "clip_norm",
            "weight_decay",
            "save_minutes",
            "workers",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)}, give 0 or more")
        if self.lr <= 0 or not 0 < self.lr_decay <= 1:
            raise ConfigError(
                f"lr {self.lr} and lr_decay {self.lr_decay}: give a positive rate and a factor of at most 1"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"beta1 {self.beta1}, beta2 {self.beta2}: give numbers from 0 to below 1")
        if self.passes not in (1, 2):
            raise ConfigError(f"passes: {self.passes}, give 1 or 2")
        if not 0 < self.validation < 1:
            raise ConfigError(f"validation: {self.validation}, give a share between 0 and 1")
        for name in ("latent", "latent_clip", "contrast", "view_shift", "latent_layers", "gain_db", "response_db"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)}, give 0 or more")
        if not 0 <= self.ema < 1 or not 0 <= self.mix <= 1:
            raise ConfigError(f"ema {self.ema}, mix {self.mix}: give shares from 0 to below 1, and 0 to 1")
        check_speed_and_reverb(self.speed, self.reverb)
        if self.teaches and not self.ema:
            raise ConfigError("latent: needs an averaged model to predict; give ema too, such as 0.999")
        self._check_views()
        if self.steps == 0 and self.epochs <= 0:
            raise ConfigError(f"epochs: {self.epochs}, give more than 0, or steps")
        self._check_masks()

    def _check_views(self) -> None:
        if self.batch % self.views:
            raise ConfigError(f"batch: {self.batch} clips are no multiple of {self.views} views")
        if self.contrast and self.batch <= self.views:
            raise ConfigError(
                f"contrast: a batch of {self.batch} has no other clips; give --batch {2 * self.views} or more"
            )
        if self.views > 1 and not (self.latent_clip or self.contrast):
            raise ConfigError(f"views: {self.views} are for --latent-clip or --contrast; give one of them")
        if self.clean_targets and not self.teaches:
            raise ConfigError("clean_targets: nothing is predicted; give --latent, --latent-clip or --contrast too")

    @property
    def teaches(self) -> bool:
        """Whether the averaged model's tokens are a target."""
        return bool(self.latent or self.latent_clip or self.contrast)

    def _check_masks(self) -> None:
        rows, cols = self.config().grid
        if not 0 < self.mask < rows * cols:
            raise ConfigError(f"mask: {self.mask} patches, the grid {rows} x {cols} allows 1 to {rows * cols - 1}")
        if self.validation_mask < 0:
            raise ConfigError(f"validation_mask: {self.validation_mask}, give 0 or more")

    @property
    def hidden_in_validation(self) -> int:
        """Patches hidden in validation: ``validation_mask`` where the grid has more than those, else ``mask``."""
        rows, cols = self.config().grid
        return self.validation_mask if 0 < self.validation_mask < rows * cols else self.mask

    def config(self) -> Config:
        """The model that the recipe trains (before statistics are measured)."""
        return Config(
            encoder=self.encoder,
            width=self.width or WIDTHS[self.size],
            depth=self.depth,
            directions=self.directions,
            residual_scale=self.residual_scale,
            decoder_depth=self.decoder_depth,
            frames=self.frames,
            mel_bins=self.mel_bins,
            sample_rate=self.sample_rate,
            patch_frequency=self.patch_frequency,
            patch_time=self.patch_time,
            stride_frequency=self.patch_frequency,
            stride_time=self.patch_time,
            drop_path=self.drop_path,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the run directory."""
        return dataclasses.asdict(self)


def check_fields(recipe: Any) -> None:
    """Refuse values of another type than the field's default, or outside its choices. Raises ``ConfigError``."""
    for f in dataclasses.fields(recipe):
        value, choices = getattr(recipe, f.name), f.metadata["choices"]
        if choices and value not in choices:
            raise ConfigError(f"{f.name}: '{value}'{nearest(str(value), list(choices))} choose {', '.join(choices)}")
        kind = type(f.default)
        good = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not good or (kind is not bool and isinstance(value, bool)):
            raise ConfigError(f"{f.name}: {value!r}, give a value of type {kind.__name__}")


def check_speed_and_reverb(speed: float, reverb: float) -> None:
    """Raises ``ConfigError`` unless ``speed`` is a factor that makes sense and ``reverb`` a share."""
    if not 1 <= speed <= MOST_SPEED:
        raise ConfigError(f"speed: {speed}, give a factor from 1 (as recorded) to {MOST_SPEED:g}")
    if not 0 <= reverb <= 1:
        raise ConfigError(f"reverb: {reverb}, give a share from 0 to 1")


def read_values(file: Path | Traversable, source: str, kind: type) -> dict[str, Any]:
    """Values of a YAML file whose keys are the fields of ``kind``. Raises ``ConfigError`` that names ``source``."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: holds a {type(values).__name__}, expected 'key: value' lines")
    known = [f.name for f in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{source}: unknown value '{key}'{nearest(str(key), known)}")
    return values


def load_recipe(path: Path | None = None) -> dict[str, Any]:
    """Values of a recipe file, by default the reference's. Raises ``ConfigError`` for unknown keys."""
    own = resources.files("ssamba").joinpath("training/recipes/pretrain.yaml")
    return read_values(path or own, str(path or "recipes/pretrain.yaml"), PretrainRecipe)


def make_recipe(path: Path | None = None, overrides: dict[str, Any] | None = None) -> PretrainRecipe:
    """A recipe file (by default the reference's) with some values overridden. Raises ``ConfigError``.

    Other mel bins without another ``mask`` keep the recipe's share of masked patches: 200 of 256 with 64 mel bins.
    """
    stored, changes = load_recipe(path), overrides or {}
    recipe = stored | changes
    if "mel_bins" in changes and "mask" not in changes:
        default = PretrainRecipe()
        size = recipe.get("patch_frequency", default.patch_frequency)
        before, now = stored.get("mel_bins", default.mel_bins), changes["mel_bins"]
        # What is no whole number or too small is refused below.
        if all(isinstance(value, int) and value >= 1 for value in (size, before, now)) and min(before, now) >= size:
            recipe["mask"] = max(1, round(stored.get("mask", default.mask) * (now // size) / (before // size)))
    return PretrainRecipe(**recipe)
