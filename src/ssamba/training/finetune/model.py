"""The model that a fine-tuning run begins with: an encoder from a source or from nothing, and a new classifier."""

from __future__ import annotations

from collections.abc import Sequence

from ssamba.audio.front_end import PUBLISHED
from ssamba.data.examples import Example, LabelledData
from ssamba.data.loaders.workers import choose_workers
from ssamba.data.manifest import Clip, Source
from ssamba.data.scan import SkipList
from ssamba.models.classifier import Classification, Classifier
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.digest import tensors_key
from ssamba.models.pretrained.load import read_model_source
from ssamba.models.pretrained.model_dir import Description, build
from ssamba.models.registry import make_encoder
from ssamba.training.features import measure_statistics
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.seeds import torch_generator
from ssamba.utils.errors import ConfigError


def make_classification(recipe: FinetuneRecipe, data: LabelledData) -> Classification:
    """What the model shall answer. Raises ``ConfigError`` for a pooling that does not fit."""
    scenes = data.folds[0].train[0].per_second is not None
    return Classification(data.classes, data.multi_label, recipe.pooling, scenes, recipe.name, recipe.loss)


def new_model(recipe: FinetuneRecipe, task: Classification, source: str | None) -> Encoder:
    """An encoder from ``source`` on the recipe's grid, or a new one without source, with a new classifier.

    Both depend on the recipe's seed alone. Raises ``ConfigError`` for a source with other patches than the recipe's,
    ``CheckpointError`` for one that cannot be read.
    """
    if source is None:
        if recipe.statistics == "source":
            raise ConfigError("statistics: source, but there is none to take them from; give recipe or measure")
        config = recipe.config()
        model = make_encoder(config, classification=task, generator=torch_generator(recipe.seed, "weights"))
    else:
        description, tensors = read_model_source(source)
        config = description.config
        _check_patches(config, recipe, source)
        _check_front_end(config, recipe, source)
        if recipe.drop_path != -1:
            config = config.replace(drop_path=recipe.drop_path)
        model = build(Description(config), tensors).with_grid(recipe.stride, recipe.frames, recipe.positions)
        if recipe.statistics == "recipe":
            model.config = model.config.replace(mean=recipe.mean, std=recipe.std)
        model.classifier = Classifier(model.config, task)
    assert model.classifier is not None
    model.classifier.reset_parameters(torch_generator(recipe.seed, "classifier"))
    return model


def start_digest(source: str | None) -> str:
    """A hash of the configuration and the weights of ``source``; empty without one."""
    if source is None:
        return ""
    description, tensors = read_model_source(source)
    return tensors_key(description.config, tensors)


def _check_patches(config: Config, recipe: FinetuneRecipe, source: str) -> None:
    there = (config.patch_frequency, config.patch_time)
    if there != (recipe.patch_frequency, recipe.patch_time):
        stride = f" --stride {min(there)}" if recipe.stride > min(there) else ""
        raise ConfigError(
            f"{source}: has patches of {there[0]} x {there[1]}, the recipe says {recipe.patch_frequency} x "
            f"{recipe.patch_time}; give --patch-frequency {there[0]} --patch-time {there[1]}{stride}"
        )


def _check_front_end(config: Config, recipe: FinetuneRecipe, source: str) -> None:
    """Refuse what the recipe says of the published front end alone, for a source with another one."""
    front_end = config.front_end
    if recipe.statistics == "recipe" and not front_end.same_bands(PUBLISHED):
        raise ConfigError(
            f"{source}: reads {front_end.description}, the recipe's mean and std are those of {PUBLISHED.description}; "
            "give --statistics source or --statistics measure"
        )
    if recipe.freq_mask > front_end.mel_bins:
        raise ConfigError(
            f"freq_mask: {recipe.freq_mask}, {source} has {front_end.mel_bins} mel bins; give --freq-mask "
            f"{front_end.mel_bins} or less"
        )
    needed = front_end.frame_count(round(recipe.window * front_end.sample_rate))
    if recipe.window and not 1 <= needed <= recipe.frames:
        raise ConfigError(f"window: {recipe.window} s are {needed} frames, frames is {recipe.frames}; give less")


def measured_config(examples: Sequence[Example], config: Config, recipe: FinetuneRecipe, skip: SkipList) -> Config:
    """The model's config with the log-mel mean and standard deviation of the examples' files."""
    paths = dict.fromkeys(part.path for example in examples for part in example.parts)
    source = Source("training", tuple(Clip(path) for path in paths))
    return measure_statistics([source], config, recipe.seed, choose_workers(recipe.workers), skip)
