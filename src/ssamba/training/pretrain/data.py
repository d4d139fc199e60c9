"""The audio of a pretraining run: clips to train on and to hold out, and what is decoded before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ssamba.data.loaders.gpu_resident import ResidentAudio, resident_bytes
from ssamba.data.loaders.pretraining import load_crops
from ssamba.data.loaders.workers import choose_workers
from ssamba.data.manifest import Clip, Source
from ssamba.data.samplers.pretraining import PretrainPlan, centre_crops, split_validation
from ssamba.data.scan import SkipList, scan_sources
from ssamba.models.config import Config
from ssamba.training.augment.transforms import repeat_short
from ssamba.training.features import batch_features
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.training.pretrain.task import ValidationSet, draw_masks
from ssamba.utils.errors import DataError
from ssamba.utils.progress import Bar

RESIDENT_BYTES = 4 << 30
"""Decoded audio kept on a GPU, where the whole set fits: 37 hours."""


@dataclass(frozen=True)
class PretrainData:
    """The clips of a run.

    Attributes:
        training: sources whose clips are trained on, with known lengths.
        held_out: clips for validation.
        plan: the order of the training crops.
        skip: where unreadable files are noted.
    """

    training: Sequence[Source]
    held_out: Sequence[Clip]
    plan: PretrainPlan
    skip: SkipList


def prepare_data(sources: Sequence[Source], recipe: PretrainRecipe, skip: SkipList) -> PretrainData:
    """Read all lengths, hold some files out, and plan the crops. Raises ``DataError`` when none is left to hold out."""
    with Bar("reading lengths", "files") as bar:
        scanned = scan_sources(sources, skip, progress=bar.update)
    training, held_out = split_validation(scanned, fraction=recipe.validation, seed=recipe.seed)
    if not held_out:
        first = next(clip.path for source in training for clip in source.clips)
        raise DataError(f"{first}: one file alone leaves none for validation; give two or more")
    front_end = recipe.config().front_end
    plan = PretrainPlan(
        training,
        recipe.batch,
        recipe.seed,
        front_end.seconds_of_frames(recipe.frames),
        views=recipe.views,
        view_shift=recipe.view_shift,
        speed=recipe.speed,
        sample_rate=front_end.sample_rate,
    )
    return PretrainData(training, held_out, plan, skip)


def decode_validation(data: PretrainData, recipe: PretrainRecipe, config: Config) -> ValidationSet:
    """The features of the held-out clips' centres, and their masks, the same in every validation."""
    specs = centre_crops(data.held_out[: recipe.validation_clips], data.plan.crop_seconds, data.plan.sample_rate)
    waveforms, lengths = load_crops(specs, data.skip, choose_workers(recipe.workers), data.plan.sample_rate)
    if recipe.short_clips == "repeat":
        waveforms, lengths = repeat_short(waveforms, lengths)
    parts = zip(waveforms.split(recipe.batch), lengths.split(recipe.batch), strict=True)
    features = torch.cat([batch_features(w, n, config) for w, n in parts])
    masks = draw_masks(recipe, config.grid, len(features), "validation", 0, recipe.hidden_in_validation)
    return ValidationSet(features, *masks)


def decode_to_gpu(plan: PretrainPlan, device: torch.device) -> ResidentAudio | None:
    """The whole set decoded on the device, where that is a GPU and the set is small enough; else None."""
    if device.type != "cuda" or resident_bytes(plan.clips, plan.sample_rate) > RESIDENT_BYTES:
        return None
    with Bar("decoding all recordings once") as bar:
        return ResidentAudio(plan.clips, device, bar.update, plan.sample_rate)
