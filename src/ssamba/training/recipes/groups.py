"""Groups of values that recipes of several kinds share: the model's shape, augmentation, optimisation, the run itself.

A recipe inherits its groups, so that its values stay flat: keys of one YAML file and options of one command. Texts and
defaults that differ between the kinds stand in the recipes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ssamba.models.config import ENCODERS, WIDTHS, Config
from ssamba.training.recipes.fields import check_fields, option


@dataclass(frozen=True)
class RecipeBase:
    """What every recipe can do. Raises ``ConfigError`` on values that make no run."""

    def __post_init__(self) -> None:
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the run directory."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class ModelShape:
    """The model that a run begins with, where it does not begin with another run's."""

    encoder: str = option("ssamba", "kind of encoder", tuple(ENCODERS))
    size: str = option("tiny", "width and depth of the encoder", tuple(WIDTHS))
    width: int = option(0, "width, 0 takes it from the size")
    depth: int = option(0, "number of blocks (even in SSAMBA), 0 takes the published")
    residual_scale: int = option(2, "factor on SSAMBA's residual stream after each pair: 2 as in the reference, or 1")
    frames: int = option(1024, "length of a training clip in log-mel frames of 10 ms")
    patch_frequency: int = option(16, "mel bins in a patch")
    patch_time: int = option(16, "frames in a patch")
    drop_path: float = option(
        -1.0,
        "rate of stochastic depth at the last block, -1 takes the published (0.1 in SSAMBA, 0 in SSAST)",
        min=-1,
    )
    statistics: str = option(
        "reference", "log-mel mean and std: AudioSet's, or measured on DATA", ("reference", "measure")
    )

    def shape_config(self, stride: tuple[int, int], **more: Any) -> Config:
        """A model of this shape with the stride (mel bins, frames) of its patches, and further values of ``Config``."""
        return Config(
            encoder=self.encoder,
            width=self.width or WIDTHS[self.size],
            depth=self.depth,
            residual_scale=self.residual_scale,
            frames=self.frames,
            patch_frequency=self.patch_frequency,
            patch_time=self.patch_time,
            stride_frequency=stride[0],
            stride_time=stride[1],
            drop_path=self.drop_path,
            **more,
        )


@dataclass(frozen=True)
class Augmentation:
    """Changes to training clips that every task may ask for; all are off by default."""

    gain_db: float = option(0.0, "clips are made louder or weaker by up to so many dB", max=200)
    response_db: float = option(0.0, "deviation, in dB, of a random smooth frequency response for each clip", max=100)
    speed: float = option(
        1.0,
        "clips are played faster or slower by up to this factor, pitch included",
        min=1,
        max=4,
        give="a factor from 1 (as recorded) to 4",
    )
    reverb: float = option(
        0.0,
        "share of clips that get the reverberation of a random room",
        max=1,
        give="a share from 0 to 1",
    )


@dataclass(frozen=True)
class PretrainAugmentation(Augmentation):
    """What pretraining alone may ask for."""

    mix: float = option(0.0, "share of clips that get another of their batch mixed in, 0 to 20 dB weaker", max=1)


@dataclass(frozen=True)
class FinetuneAugmentation(Augmentation):
    """What fine-tuning alone may ask for."""

    freq_mask: int = option(0, "most mel bins hidden from a training clip")
    time_mask: int = option(0, "most frames hidden from a training clip")
    noise: bool = option(False, "add noise to training clips and roll them in time")


@dataclass(frozen=True)
class AllAugmentation(PretrainAugmentation, FinetuneAugmentation):
    """Every augmentation, for the pipeline."""

    @classmethod
    def of(cls, recipe: Augmentation) -> AllAugmentation:
        """Those of a recipe; what its kind does not have is off."""
        known = [f.name for f in dataclasses.fields(cls) if hasattr(recipe, f.name)]
        return cls(**{name: getattr(recipe, name) for name in known})


@dataclass(frozen=True)
class Optimisation:
    """Batches, the optimiser's values, warm-up and averaging."""

    ema: float = option(
        0.0,
        "share of the averaged weights that a step keeps, as 0.999; the run's model is then the averaged one",
        below=1,
        give="a share below 1, such as 0.99",
    )
    batch: int = option(64, "clips in a step", min=1)
    lr: float = option(1e-4, "peak learning rate of AdamW", above=0, max=10)
    weight_decay: float = option(5e-8, "weight decay of AdamW", max=10)
    beta1: float = option(0.95, "AdamW's decay of the mean gradient", below=1)
    beta2: float = option(0.999, "AdamW's decay of the mean squared gradient", below=1)
    clip_norm: float = option(0.0, "largest gradient norm, 0 leaves gradients as they are")
    warmup_steps: int = option(1000, "steps over which the rate rises from 0")
    warmup_every: int = option(50, "steps between two raises during warm-up", min=1)


@dataclass(frozen=True)
class RunSettings:
    """Randomness, decoding, precision and cadence, whatever the device."""

    seed: int = option(0, "seed of weights, clips, crops and masks", max=2**63 - 1)
    workers: int = option(
        0, "threads or processes that decode audio, 0: as many as there are cores, up to 16", max=1024
    )
    precision: str = option("auto", "auto is bf16 on a GPU that has it and fp32 elsewhere", ("auto", "fp32", "bf16"))
    save_minutes: float = option(2.0, "minutes between two saved states")
    log_every: int = option(10, "steps between two lines of the log", min=1)
