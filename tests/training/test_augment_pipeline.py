"""The augmentations of a recipe: drawn for a step, the same however the rows are shared out, applied in their order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssamba.audio.front_end import normalise_log_mel
from ssamba.models.config import Config
from ssamba.training.augment import transforms
from ssamba.training.augment.pipeline import Augment, Draws
from ssamba.training.recipes.groups import AllAugmentation
from ssamba.training.seeds import torch_generator

CPU = torch.device("cpu")
CONFIG = Config(width=32, depth=2, frames=64)
EVERY = AllAugmentation(
    mix=0.5, gain_db=6.0, response_db=3.0, speed=1.3, reverb=0.5, freq_mask=16, time_mask=8, noise=True
)
SAMPLES, CLIPS, STEP = 4000, 6, 3


def augment(values: AllAugmentation) -> Augment:
    return Augment(values, 7, CONFIG, CPU, SAMPLES)


def source(purpose: str) -> torch.Generator:
    return torch_generator(7, purpose, STEP)


def waveforms() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([SAMPLES, 3000, SAMPLES, 2000, SAMPLES, 3500])
    return torch.randn(CLIPS, SAMPLES, generator=draw) * (torch.arange(SAMPLES) < lengths[:, None]), lengths


def test_nothing_asked_for_is_nothing_drawn_and_nothing_changed() -> None:
    off = augment(AllAugmentation())
    draws = off.draws(STEP, CLIPS, slice(0, CLIPS))
    assert draws == Draws()
    x, lengths = waveforms()
    features = torch.randn(CLIPS, 64, 128)
    assert off.apply_speed(x, lengths, draws) == (x, lengths)
    assert off.apply_to_waveforms(x, lengths, draws) == (x, lengths)
    assert off.apply_to_features(features, draws, STEP, CLIPS, slice(0, CLIPS)) is features


def test_a_step_s_draws_and_their_order() -> None:
    """What runs have done since each augmentation was there, so that an old run goes on as it began."""
    pipeline, rows = augment(EVERY), slice(0, CLIPS)
    draws = pipeline.draws(STEP, CLIPS, rows)
    x, lengths = waveforms()
    found, after = pipeline.apply_to_waveforms(*pipeline.apply_speed(x, lengths, draws), draws)
    speeds = transforms.sample_speeds(CLIPS, 1.3, source("speed"))
    expected, longer = transforms.change_speed(x, lengths, speeds, SAMPLES)
    noise_bank = transforms.make_noise_bank(torch_generator(7, "rooms' noises"), CONFIG.sample_rate)
    rooms = transforms.sample_rooms(CLIPS, 0.5, CONFIG.sample_rate, source("rooms"))
    expected, longer = transforms.reverberate(expected, longer, rooms, noise_bank)
    mixing = transforms.sample_mixing(CLIPS, 0.5, source("mixing"))
    expected, longer = transforms.mix_waveforms(expected, longer, *mixing)
    assert torch.equal(found, expected)
    assert torch.equal(after, longer)
    features = torch.randn(CLIPS, 64, 128)
    response = transforms.sample_frequency_response(CLIPS, 6.0, 3.0, 128, source("response"))
    wanted = transforms.apply_frequency_response(features, response, CONFIG.std)
    fill = float(normalise_log_mel(torch.zeros(()), CONFIG.mean, CONFIG.std))
    wanted = transforms.mask_stretches(wanted, transforms.sample_masks(CLIPS, source("masks")), 16, 8, fill)
    rolls = transforms.sample_noise_and_roll(CLIPS, source("roll"))
    wanted = transforms.noise_and_roll(wanted, rolls, source("noise"))
    assert torch.equal(pipeline.apply_to_features(features, draws, STEP, CLIPS, rows), wanted)


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_processes_draw_as_one(mix: float) -> None:
    values = AllAugmentation(**(vars(EVERY) | {"mix": mix}))
    pipeline, rows = augment(values), slice(2, 5)
    assert pipeline.needs_whole_batch == (mix > 0)
    whole, part = (pipeline.draws(STEP, CLIPS, r) for r in (slice(0, CLIPS), rows))
    assert torch.equal(part.response, whole.response[rows])  # type: ignore[index, arg-type]
    needed = slice(None) if mix else rows  # waveforms of other rows may be mixed in
    assert torch.equal(part.speed, whole.speed[needed])  # type: ignore[index, arg-type]
    assert torch.equal(part.rooms, whole.rooms[:, needed])  # type: ignore[index, arg-type]
    features = torch.randn(CLIPS, 64, 128)
    together = pipeline.apply_to_features(features, whole, STEP, CLIPS, slice(0, CLIPS))
    alone = pipeline.apply_to_features(features[rows], part, STEP, CLIPS, rows)
    assert torch.equal(alone, together[rows])


def test_speeds_of_the_plan_and_padding_to_its_longest_clips() -> None:
    pipeline = Augment(AllAugmentation(speed=1.3), 7, CONFIG, CPU, SAMPLES, read_samples=5200)
    speeds = torch.linspace(0.8, 1.3, CLIPS)
    draws = pipeline.draws(STEP, CLIPS, slice(1, 4), speeds)
    assert torch.equal(draws.speed, speeds[1:4])  # type: ignore[arg-type]
    x, lengths = waveforms()
    found, after = pipeline.apply_speed(x[1:4], lengths[1:4], draws)
    padded = torch.nn.functional.pad(x[1:4], (0, 1200))
    expected, longer = transforms.change_speed(padded, lengths[1:4], speeds[1:4], SAMPLES)
    assert torch.equal(found, expected)
    assert torch.equal(after, longer)
