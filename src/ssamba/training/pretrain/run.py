"""Self-supervised pretraining of masked log-mel patches, from folders of audio to a run directory."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ssamba.data.folders import Problems
from ssamba.data.manifest import read_sources
from ssamba.data.scan import SkipList
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.file_checks import CHECKS_FILE, changed_files, record_files
from ssamba.models.pretrained.model_dir import CONFIG_FILE, describe_model, save_config
from ssamba.training.distributed import DistContext, distributed_context
from ssamba.training.loop import Loop, LoopSettings, precision
from ssamba.training.optim import make_optimizer
from ssamba.training.pretrain.data import PretrainData, decode_to_gpu, decode_validation, prepare_data
from ssamba.training.pretrain.model import build_model
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.training.pretrain.task import PretrainTask
from ssamba.training.resume.content import content_digest
from ssamba.training.run_folder import (
    RECIPE_FILE,
    check_same_content,
    check_same_data,
    check_same_recipe,
    skipped_file,
    write_recipe,
)
from ssamba.training.run_state import has_state
from ssamba.training.schedule import CosineSchedule, PlateauSchedule, Schedule
from ssamba.utils.atomic_write import clear_leftovers, make_folder
from ssamba.utils.errors import ConfigError
from ssamba.utils.lock import lock_folder
from ssamba.utils.terminal import printable

_log = logging.getLogger(__name__)
PRETRAIN_MAY_CHANGE = ("epochs", "steps", "workers", "save_minutes")
"""Values that a resumed run may be given anew: they do not change the steps, only how many and how they are fed."""


def pretrain(
    data: list[str],
    out: Path,
    recipe: PretrainRecipe,
    source: str | None = None,
    device: str = "auto",
    problems: Problems | None = None,
) -> None:
    """Pretrain on ``data`` into the run directory ``out``, or go on with the run that is there.

    ``data`` are folders, manifests or files, each with an optional weight (docs/data.md). ``source`` is a run or an
    official checkpoint to start from: it decides the size, the recipe's ``frames`` the grid. The directory then holds
    config.json and model.safetensors (best by validation), state.safetensors (for resume), log.csv, tensorboard/,
    recipe.yaml, state.json and skipped.csv. One of several processes that torchrun or ``--devices`` has started takes
    its part of each batch (docs/pretraining.md). Raises ``SsambaError`` for what the user can put right, and after
    Ctrl-C ``Interrupted``. Folders that may not be read are logged, and added to ``problems`` as (path, reason).
    """
    with distributed_context(device) as (dist, chosen), lock_folder(out, dist.main):
        _check_batch(recipe, dist.world)
        met: Problems = []
        sources = read_sources(data, met)
        for path, reason in met if dist.main else ():
            _log.warning("left out %s: %s", printable(path), reason)
        if problems is not None:
            problems += met
        resuming = _enter(out, recipe, source, dist)
        prepared = prepare_data(sources, recipe, SkipList(skipped_file(out, dist.rank)))
        if resuming:
            check_same_data(out, prepared.plan.fingerprint)
        content = content_digest(pretraining_files(prepared)) if dist.main else ""
        if resuming and dist.main:
            check_same_content(out, content)
        model = build_model(recipe, prepared, source, resume=out if resuming else None)
        task = build_task(recipe, prepared, model.to(chosen), dist)
        if not resuming and dist.main:
            write_recipe(out, recipe.to_dict(), source, list(data), prepared.plan.fingerprint, content)
            save_config(out, describe_model(model))  # after the recipe: a folder with a model alone is no run
        loop = make_loop(task, out, chosen)
        if resuming and dist.main:
            save_config(out, describe_model(model))  # the state agrees with it; what else was damaged is good again
        loop.run()


def pretraining_files(data: PretrainData) -> dict[str, str]:
    """The files of a run, by their names in their sources: the same on every machine."""
    clips = [*data.plan.clips, *data.held_out]
    return {f"{number} {clip.key}": clip.path for number, clip in enumerate(clips)}


def _check_batch(recipe: PretrainRecipe, world: int) -> None:
    """Refuse a batch that cannot be shared out to the processes. Raises ``ConfigError``."""
    if recipe.batch < world:
        raise ConfigError(f"batch: {recipe.batch} clips for {world} processes, give one to each at least")
    if recipe.views > 1 and recipe.batch % (recipe.views * world):
        raise ConfigError(
            f"batch: {recipe.batch} clips for {world} processes; with {recipe.views} views of each, give a "
            f"multiple of {recipe.views * world}"
        )


def _enter(out: Path, recipe: PretrainRecipe, source: str | None, dist: DistContext) -> bool:
    """Make the run directory, or check that the run in it is this one; whether there is a state to go on from."""
    make_folder(out)
    resuming = has_state(out)
    if resuming:
        if dist.main and CHECKS_FILE in changed_files(out):
            record_files(out, [RECIPE_FILE])  # which is compared with the command now
        # A cosine ends with the run: with more steps, those before would have had another rate.
        plateau = recipe.schedule == "plateau"
        free = [name for name in PRETRAIN_MAY_CHANGE if plateau or name not in ("epochs", "steps")]
        check_same_recipe(out, recipe, source, tuple(free))
    elif (out / CONFIG_FILE).exists() and not (out / RECIPE_FILE).exists():
        raise ConfigError(f"{out}: holds a model that is no pretraining run; choose another --out")
    dist.barrier()  # nobody writes before all have looked
    if dist.main:
        clear_leftovers(out)
    return resuming


def build_task(
    recipe: PretrainRecipe, data: PretrainData, model: Encoder, dist: DistContext | None = None
) -> PretrainTask:
    """The task of training ``model``, which is on its device; decodes what is needed before the first step."""
    dist = dist or DistContext()
    resident = decode_to_gpu(data.plan, model.device)
    validation = decode_validation(data, recipe, model.config) if dist.main else None
    return PretrainTask(recipe, model, data.plan, data.skip, validation, resident, dist)


def make_loop(task: PretrainTask, out: Path, device: torch.device) -> Loop:
    """The loop that runs a task in ``out``, from its saved state where there is one."""
    recipe = task.recipe
    heads = () if task.latent is None else task.latent.parameters()
    return Loop(
        task,
        out,
        make_optimizer(recipe.optimizer, [*task.model.parameters(), *heads], recipe, device),
        make_schedule(recipe, task.total_steps),
        LoopSettings(
            recipe.validate_every,
            recipe.log_every,
            recipe.save_minutes,
            recipe.clip_norm,
            keep_last=recipe.keep == "last",
        ),
        precision(recipe.precision, device),
    )


def make_schedule(recipe: PretrainRecipe, total_steps: int) -> Schedule:
    """The learning rate by step."""
    if recipe.schedule == "cosine":
        return CosineSchedule(recipe.lr, recipe.warmup_steps, recipe.warmup_every, total_steps)
    return PlateauSchedule(recipe.lr, recipe.warmup_steps, recipe.warmup_every, recipe.patience, recipe.lr_decay)
