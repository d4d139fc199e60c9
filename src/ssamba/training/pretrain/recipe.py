"""The hyperparameters of pretraining: a dataclass whose fields are the recipe's keys and the command line's options."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from ssamba.audio.front_end import PUBLISHED
from ssamba.models.config import DECAYS, SCANS, Config
from ssamba.models.losses import OBJECTIVES
from ssamba.training.recipes.fields import LARGEST, in_order_of_body, like, option, read_values
from ssamba.training.recipes.groups import ModelShape, Optimisation, PretrainAugmentation, RecipeBase, RunSettings
from ssamba.utils.errors import ConfigError

SCHEDULES = ("plateau", "cosine")
TEACHER_WEIGHTS = ("latent", "latent_clip", "contrast")
"""Values that weigh what an averaged model gives to predict (``teacher_targets.TEACHER_LOSSES``)."""


@in_order_of_body
@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(RecipeBase, ModelShape, PretrainAugmentation, Optimisation, RunSettings):
    """One pretraining run. Raises ``ConfigError`` on values that make no run."""

    optimizer: ClassVar[str] = "adamw"
    encoder: str = like(ModelShape, "encoder")
    directions: int = option(2, "directions in which SSAMBA scans: 2, or 1 from left to right alone")
    decay: str = option(
        "free",
        "decay rates of SSAMBA's states: free, or tied to one a channel, of which state n has n times: a faster scan",
        DECAYS,
    )
    scan: str = option(
        "both",
        "how SSAMBA's pairs of blocks scan: each block in both directions, the two alternating, or both forward",
        tuple(SCANS),
    )
    residual_scale: int = like(ModelShape, "residual_scale")
    compile: bool = option(False, "SSAST: training steps through torch.compile, for comparisons at its best speed")
    decoder_depth: int = option(
        0, "blocks of a decoder for the hidden patches, which the encoder then does not read; 0 as in the reference"
    )
    frames: int = like(ModelShape, "frames")
    sample_rate: int = option(PUBLISHED.sample_rate, "rate at which the model reads audio, in Hz")
    mel_bins: int = option(
        PUBLISHED.mel_bins, "mel bins of the log-mel; without --mask, the share of masked patches stays as it is"
    )
    patch_frequency: int = like(ModelShape, "patch_frequency")
    statistics: str = like(
        ModelShape,
        "statistics",
        "log-mel mean and std: AudioSet's (with --from SOURCE's), or measured on DATA, as always with another sample "
        "rate or other mel bins than the reference's",
    )
    mask: int = option(400, "patches hidden from the encoder")
    mask_kind: str = option("cluster", "squares of patches, or single ones at random", ("cluster", "frame"))
    masks_per_clip: int = option(1, "masks drawn for each clip of a batch, which is encoded with each", min=1)
    reference_quirks: bool = option(False, "draw cluster masks with the reference's quirks")
    objective: str = option("joint", "what the heads are trained for", tuple(OBJECTIVES))
    passes: int = option(
        1,
        "joint objective: 1 pass for both heads, or 2 with a mask each as in the reference",
        min=1,
        max=2,
        give="1 or 2",
    )
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
        min=1,
    )
    view_shift: float = option(1.0, "seconds by which another view begins earlier or later, at most", max=86400)
    clean_targets: bool = option(False, "the averaged model embeds clips without mixing, gain, response and rooms")
    latent_layers: int = option(0, "last layers of the averaged model whose mean is the target, 0 takes all")
    ema: float = like(Optimisation, "ema")
    short_clips: str = option("zeros", "what fills a crop behind a shorter clip", ("zeros", "repeat"))
    mix: float = like(PretrainAugmentation, "mix")
    gain_db: float = like(PretrainAugmentation, "gain_db")
    batch: int = like(Optimisation, "batch")
    clips_per_pass: int = option(
        0, "clips of a forward and backward pass; 0: all of the batch, on a processor as many as take 0.4 GB"
    )
    epochs: float = option(10.0, "epochs; an epoch shows every recording about once in full length")
    steps: int = option(0, "steps instead of epochs, where above 0")
    lr: float = like(Optimisation, "lr")
    schedule: str = option(
        "plateau", "after warm-up the rate falls when validation stands still, or to 0 by a cosine", SCHEDULES
    )
    warmup_steps: int = like(Optimisation, "warmup_steps")
    validate_every: int = option(4000, "steps between two validations; there is always one at the end", min=1)
    patience: int = option(2, "plateau: validations without a better accuracy before the rate falls", min=1)
    lr_decay: float = option(0.5, "plateau: factor by which the rate then falls", above=0, max=1)
    keep: str = option("best", "the run's model: best by validation, or last", ("best", "last"))
    validation: float = option(
        0.02, "share of the files held out for validation", above=0, below=1, give="a share between 0 and 1"
    )
    validation_clips: int = option(256, "most clips in a validation", min=1)
    validation_mask: int = option(0, "patches hidden in validation; 0, or too many for the grid: as in training")
    seed: int = like(RunSettings, "seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs_teacher and not self.ema:
            raise ConfigError("latent: needs an averaged model to predict; give ema too, such as 0.999")
        if self.compile and self.encoder != "ssast":
            raise ConfigError(f"compile: {self.encoder} has compiled kernels of its own; leave it out")
        self._check_views()
        if self.steps == 0 and self.epochs <= 0:
            raise ConfigError(f"epochs: {self.epochs}, give more than 0, or steps")
        rows, cols = self.config().grid
        if not 0 < self.mask < rows * cols:
            raise ConfigError(f"mask: {self.mask} patches, the grid {rows} x {cols} allows 1 to {rows * cols - 1}")

    def _check_views(self) -> None:
        if self.batch % self.views:
            raise ConfigError(f"batch: {self.batch} clips are no multiple of {self.views} views")
        if self.contrast and self.batch <= self.views:
            raise ConfigError(
                f"contrast: a batch of {self.batch} has no other clips; give --batch {2 * self.views} or more"
            )
        if self.views > 1 and not (self.latent_clip or self.contrast):
            raise ConfigError(f"views: {self.views} are for --latent-clip or --contrast; give one of them")
        if self.clips_per_pass and self.needs_teacher:
            raise ConfigError(
                f"clips_per_pass: {self.clips_per_pass}, but the averaged model's targets are standardised over the "
                "batch; give a smaller --batch"
            )
        if self.clean_targets and not self.needs_teacher:
            raise ConfigError("clean_targets: nothing is predicted; give --latent, --latent-clip or --contrast too")

    @property
    def needs_teacher(self) -> bool:
        """Whether the averaged model's tokens are a target."""
        return any(getattr(self, name) for name in TEACHER_WEIGHTS)

    @property
    def hidden_in_validation(self) -> int:
        """Patches hidden in validation: ``validation_mask`` where the grid has more than those, else ``mask``."""
        rows, cols = self.config().grid
        return self.validation_mask if 0 < self.validation_mask < rows * cols else self.mask

    def config(self) -> Config:
        """The model that the recipe trains (before statistics are measured)."""
        patch = (self.patch_frequency, self.patch_time)
        return self.shape_config(
            patch,
            directions=self.directions,
            decay=self.decay,
            scan=self.scan,
            decoder_depth=self.decoder_depth,
            mel_bins=self.mel_bins,
            sample_rate=self.sample_rate,
        )


def load_recipe(path: Path | None = None) -> dict[str, Any]:
    """Values of a recipe file, by default the reference's. Raises ``ConfigError`` for unknown keys."""
    packaged = resources.files("ssamba").joinpath("training/recipes/pretrain.yaml")
    return read_values(path or packaged, str(path or "recipes/pretrain.yaml"), PretrainRecipe)


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
        if (
            all(isinstance(value, int) and 1 <= value <= LARGEST for value in (size, before, now))
            and min(before, now) >= size
        ):
            recipe["mask"] = max(1, round(stored.get("mask", default.mask) * (now // size) / (before // size)))
    return PretrainRecipe(**recipe)
