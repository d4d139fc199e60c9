"""The model that a pretraining run begins with: new, from a source, or of the form that a saved state has."""

from __future__ import annotations

from pathlib import Path

from torch import Generator

from ssamba.audio.front_end import PUBLISHED
from ssamba.data.loaders.workers import choose_workers
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.load import read_model_source
from ssamba.models.pretrained.model_dir import Description, build, read_config
from ssamba.models.registry import make_encoder
from ssamba.training.features import measure_statistics
from ssamba.training.pretrain.data import PretrainData
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.training.seeds import torch_generator
from ssamba.utils.errors import ConfigError


def build_model(
    recipe: PretrainRecipe, data: PretrainData, source: str | None = None, resume: Path | None = None
) -> Encoder:
    """An encoder with heads: from ``source``, or with weights that depend on the recipe's seed alone.

    ``resume`` is a run directory to go on in: the model then has the form of the run's, whose saved state has the
    weights. Raises ``ConfigError`` for a source whose patches are not the recipe's, ``CheckpointError`` for one that
    cannot be read, ``DataError`` where statistics are measured and clips cannot be read.
    """
    if resume is not None:
        return make_encoder(read_config(resume).config, heads=True)
    first = torch_generator(recipe.seed, "weights")
    if source is None:
        model = make_encoder(recipe.config(), heads=True, generator=first)
    else:
        model = _from_source(recipe, source, first)
    if recipe.statistics == "measure" or (source is None and not model.config.front_end.same_bands(PUBLISHED)):
        threads = choose_workers(recipe.workers)
        model.config = measure_statistics(data.training, model.config, recipe.seed, threads, data.skip)
    return model


def _from_source(recipe: PretrainRecipe, source: str, first: Generator) -> Encoder:
    """The source's encoder on the recipe's grid; heads and decoder too where it has those that the recipe asks for."""
    description, tensors = read_model_source(source)
    config = description.config
    recipe_patch = (recipe.patch_frequency, recipe.patch_time)
    if recipe_patch != (config.patch_frequency, config.patch_time):
        raise ConfigError(
            f"{source}: has patches of {config.patch_frequency} x {config.patch_time}, the recipe says "
            f"{recipe_patch[0]} x {recipe_patch[1]}"
        )
    if not config.front_end.same_bands(front_end := recipe.config().front_end):
        raise ConfigError(
            f"{source}: reads {config.front_end.description}, the recipe says {front_end.description}; give "
            f"--sample-rate {config.sample_rate} --mel-bins {config.mel_bins}"
        )
    if (config.stride_frequency, config.stride_time) != recipe_patch:
        raise ConfigError(f"{source}: its patches overlap, pretraining needs stride equal to patch size")
    rate = config.drop_path if recipe.drop_path == -1 else recipe.drop_path
    same_heads = description.heads and config.decoder_depth == recipe.decoder_depth
    config = config.replace(drop_path=rate, decoder_depth=recipe.decoder_depth)
    model = build(Description(config, same_heads), tensors)
    if not same_heads:
        fresh = make_encoder(config, heads=True, generator=first)
        fresh.load_state_dict(model.state_dict(), strict=False)
        model = fresh
    return model.with_grid(frames=recipe.frames) if recipe.frames != config.frames else model
