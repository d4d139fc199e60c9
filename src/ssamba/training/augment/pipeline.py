"""The augmentations that a recipe asks for: drawn for a step beforehand, applied where the features are made.

Draws depend on (seed, step) alone and are made for the whole batch, of which a process takes its rows. They are applied
in this order: speed, room, mixing to waveforms; frequency response, masks, noise and roll to their features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssamba.models.config import Config
from ssamba.training.augment import transforms
from ssamba.training.recipes.groups import AllAugmentation, Augmentation
from ssamba.training.seeds import torch_generator
from ssamba.training.tensors import TensorGroup


@dataclass
class Draws(TensorGroup):
    """One step's draws, as the functions of ``transforms`` take them; None for each augmentation that is off."""

    speed: Tensor | None = None
    rooms: Tensor | None = None
    mix_other: Tensor | None = None
    mix_level: Tensor | None = None
    response: Tensor | None = None
    masks: Tensor | None = None
    noise_and_roll: Tensor | None = None


class Augment:
    """A recipe's augmentations of clips for a model.

    Args:
        recipe: which, and how strong.
        seed: of all draws.
        config: the model's: its mel bins, and the mean and deviation that features are normalised with.
        device: where they are applied.
        samples: of a clip, once its speed is changed.
        read_samples: of a clip before; shorter batches are padded to it. None: they have the right length already.
    """

    def __init__(
        self,
        recipe: Augmentation,
        seed: int,
        config: Config,
        device: torch.device,
        samples: int,
        read_samples: int | None = None,
    ) -> None:
        self.values, self.seed, self.config = AllAugmentation.of(recipe), seed, config
        self.samples, self.read_samples = samples, read_samples
        self.mask_fill = config.front_end.pad_value
        self.noise_bank: Tensor | None = None
        if self.values.reverb:
            noises = transforms.make_noise_bank(torch_generator(seed, "rooms' noises"), config.sample_rate)
            self.noise_bank = noises.to(device)

    @property
    def needs_whole_batch(self) -> bool:
        """Whether a process needs the waveforms of all rows for its own: any two may be mixed."""
        return self.values.mix > 0

    def draws(self, step: int, clips: int, rows: slice, speeds: Tensor | None = None) -> Draws:
        """The draws for a process's rows of a batch of ``clips``.

        ``speeds`` (clips,) are the plan's, where it has chosen them already; else they are drawn here.
        """
        values, drawn = self.values, Draws()
        needed = slice(None) if self.needs_whole_batch else rows

        def source(purpose: str) -> torch.Generator:
            return torch_generator(self.seed, purpose, step)

        if values.speed > 1:
            speeds = transforms.sample_speeds(clips, values.speed, source("speed")) if speeds is None else speeds
            drawn.speed = speeds[needed].contiguous()
        if values.reverb:
            rooms = transforms.sample_rooms(clips, values.reverb, self.config.sample_rate, source("rooms"))
            drawn.rooms = rooms[:, needed].contiguous()
        if values.mix:
            drawn.mix_other, drawn.mix_level = transforms.sample_mixing(clips, values.mix, source("mixing"))
        if values.gain_db or values.response_db:
            response = transforms.sample_frequency_response(
                clips, values.gain_db, values.response_db, self.config.mel_bins, source("response")
            )
            drawn.response = response[rows]
        if values.freq_mask or values.time_mask:
            drawn.masks = transforms.sample_masks(clips, source("masks"))[..., rows].contiguous()
        if values.noise:
            drawn.noise_and_roll = transforms.sample_noise_and_roll(clips, source("roll"))[:, rows].contiguous()
        return drawn

    def apply_speed(self, waveforms: Tensor, lengths: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Waveforms (B, read samples) and lengths (B,) at the speeds drawn: (B, samples), (B,)."""
        if draws.speed is None:
            return waveforms, lengths
        if self.read_samples is not None:
            # Equal widths for every batch and process: the transform that changes speeds is as long as its input.
            waveforms = nn.functional.pad(waveforms, (0, self.read_samples - waveforms.shape[1]))
        return transforms.change_speed(waveforms, lengths, draws.speed, self.samples)

    def apply_to_waveforms(self, waveforms: Tensor, lengths: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Rooms and mixing of waveforms (B, samples) with lengths (B,), which are returned as they are afterwards."""
        if draws.rooms is not None and self.noise_bank is not None:
            waveforms, lengths = transforms.reverberate(waveforms, lengths, draws.rooms, self.noise_bank)
        if draws.mix_other is not None and draws.mix_level is not None:
            waveforms, lengths = transforms.mix_waveforms(waveforms, lengths, draws.mix_other, draws.mix_level)
        return waveforms, lengths

    def apply_to_features(self, features: Tensor, draws: Draws, step: int, clips: int, rows: slice) -> Tensor:
        """Normalised features (B, frames, mel_bins) of ``rows`` of a batch of ``clips``, changed as drawn.

        Noise is drawn here, on the features' device, from the seed and the step.
        """
        values = self.values
        if draws.response is not None:
            features = transforms.apply_frequency_response(features, draws.response, self.config.std)
        if draws.masks is not None:
            features = transforms.mask_stretches(
                features, draws.masks, values.freq_mask, values.time_mask, self.mask_fill
            )
        if draws.noise_and_roll is not None:
            noise = torch_generator(self.seed, "noise", step, features.device)
            features = transforms.noise_and_roll(features, draws.noise_and_roll, noise, clips, rows)
        return features
