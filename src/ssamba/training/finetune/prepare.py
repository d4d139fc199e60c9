"""A fine-tuning run before its first fold: recipe, set and model, checked, and the run directory entered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssamba.data.examples import LabelledData
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.file_checks import changed_files
from ssamba.models.pretrained.model_dir import CONFIG_FILE
from ssamba.training.distributed import DistContext
from ssamba.training.finetune.facts import Say, fill_open, read_data, report_choices, stored_values, with_background
from ssamba.training.finetune.model import make_classification, new_model, start_digest
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.finetune.resolve import data_files, fingerprint, resolve_auto
from ssamba.training.resume.content import content_digest
from ssamba.training.run_folder import (
    RECIPE_FILE,
    check_same_content,
    check_same_data,
    check_same_recipe,
    check_same_weights,
    write_recipe,
)
from ssamba.utils.atomic_write import clear_leftovers, make_folder
from ssamba.utils.errors import ConfigError

FINETUNE_MAY_CHANGE = ("workers", "save_minutes")
"""Values that a resumed run may be given anew: they do not change its results."""


@dataclass(frozen=True)
class FinetuneSetup:
    """A run before its first fold: a recipe without open values, the labelled set, the model that folds begin with."""

    recipe: FinetuneRecipe
    data: LabelledData
    model: Encoder


def prepare_run(
    recipe: FinetuneRecipe,
    root: Path,
    out: Path,
    source: str | None,
    device: torch.device,
    dist: DistContext,
    say: Say,
    options: Mapping[str, Any] | None = None,
    background: str | Path | None = None,
) -> FinetuneSetup:
    """Read the set, decide what the recipe leaves open, build the model, and enter the run directory.

    Everything that may not fit is refused before anything is written. ``options`` are those of the set's reader,
    ``background`` may be a place of recordings of no class.
    """
    given, data = read_data(stored_values(recipe, out), root, options)
    filled, facts = fill_open(given, data, source, device) if given.open else (given, None)
    resolved = resolve_auto(filled, data)
    data = _read_background(resolved, data, background)
    for note in data.notes if dist.main else ():
        say(note)
    model = new_model(resolved, make_classification(resolved, data), source)
    if dist.main:
        _enter(out, filled, source, root, data)
        if facts is not None:
            report_choices(resolved, facts, model, device, say)
    dist.barrier()
    if facts is not None and not dist.main:
        # Another process may find other memory free: the first one's values hold.
        resolved = resolve_auto(stored_values(given, out), data)
        model = new_model(resolved, make_classification(resolved, data), source)
    return FinetuneSetup(resolved, data, model)


def _read_background(recipe: FinetuneRecipe, data: LabelledData, background: str | Path | None) -> LabelledData:
    if background is not None and recipe.calibrate == "no":
        raise ConfigError(f"{background}: background goes with the calibration of custom sets; give --calibrate yes")
    return with_background(
        data, background, recipe.window or recipe.config().front_end.seconds_of_frames(recipe.frames)
    )


def _enter(out: Path, recipe: FinetuneRecipe, source: str | None, root: Path, data: LabelledData) -> None:
    """Make the run directory, or see that the run in it is this one."""
    clear_leftovers(make_folder(out))
    digest, content, weights = fingerprint(data), content_digest(data_files(data)), start_digest(source)
    if (out / RECIPE_FILE).exists():
        changed_files(out)
        check_same_recipe(out, recipe, source, FINETUNE_MAY_CHANGE)
        check_same_data(out, digest)
        check_same_content(out, content)
        check_same_weights(out, source, weights)
    elif (out / CONFIG_FILE).exists():
        raise ConfigError(f"{out}: holds a model that is no fine-tuning run; choose another --out")
    else:
        write_recipe(out, recipe.to_dict(), source, [str(root)], digest, content, weights)
