"""Fine-tuning on a labelled data set: every fold of it, one model to keep, and a report."""

from __future__ import annotations

import copy
import dataclasses
import gc
import shutil
from pathlib import Path
from typing import Any

import torch

from ssamba.data.examples import Fold
from ssamba.data.loaders.workers import AudioCache
from ssamba.data.manifest import Clip
from ssamba.data.scan import SkipList, scan_clips
from ssamba.evaluation.calibration import Calibration
from ssamba.evaluation.rejection_fit import UNUSED, BackgroundCounts
from ssamba.inference.rejection.file import REJECTION_FILE
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.model_dir import (
    CONFIG_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    build,
    describe_model,
    read_config,
    read_model,
    save_config,
)
from ssamba.models.registry import make_encoder
from ssamba.training.distributed import DistContext, distributed_context
from ssamba.training.finetune.check_folds import check_finished_folds, check_kept_folds
from ssamba.training.finetune.evaluate import ClassifierOutputs, make_evaluation
from ssamba.training.finetune.facts import (
    Say,
    timed_labels,
)
from ssamba.training.finetune.head_init import init_by_probe
from ssamba.training.finetune.keep import KeptModel, keep_calibrated, keep_model
from ssamba.training.finetune.model import make_classification, measured_config
from ssamba.training.finetune.prepare import FinetuneSetup, prepare_run
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.finetune.report import (
    FoldResult,
    Results,
    chosen_text,
    read_results,
    write_results,
)
from ssamba.training.finetune.task import EPOCHS_FOLDER, FinetuneTask, FoldData, Scores, epoch_file, prepare_fold
from ssamba.training.log import check_log, read_log
from ssamba.training.loop import Loop, LoopSettings, precision
from ssamba.training.optim import make_optimizer, parameter_groups
from ssamba.training.resume.run_files import check_config, check_model_files, is_good, read_summary
from ssamba.training.run_folder import (
    skipped_file,
)
from ssamba.training.run_state import has_state, read_state_values, remove_states
from ssamba.training.schedule import EpochSchedule
from ssamba.utils.atomic_write import clear_leftovers, make_folder
from ssamba.utils.errors import CheckpointError
from ssamba.utils.lock import lock_folder
from ssamba.utils.progress import Bar

OUTPUTS_FILE = "answers.safetensors"
SAMPLE_BYTES = 2
COLUMNS = 80


def finetune(
    recipe: FinetuneRecipe,
    data: Path,
    out: Path,
    source: str | None = None,
    device: str = "auto",
    say: Say = lambda line: None,
    labels: Path | None = None,
    background: str | Path | None = None,
) -> dict[str, Any]:
    """Fine-tune on the labelled set in ``data`` into the run directory ``out``, or go on with the run that is there.

    ``source`` is a run or an official checkpoint; None begins with random weights. Every fold is a run directory
    ``out/fold-N`` of its own; a finished one is not trained again. ``out`` then holds the model of the last fold
    (config.json, model.safetensors), results.json, results.md, classes.csv, predictions.csv and confusion.png
    (docs/finetuning.md). Returns what results.json holds; of several processes that torchrun or ``--devices`` has
    started only the first does, the others return nothing. ``say`` gets lines for the user. ``labels`` are label files
    with times for the recordings in ``data``. ``background`` is a folder of recordings that have no class
    (docs/fit.md), or the class of stretches without label.
    Raises ``SsambaError`` for what the user can put right, ``Interrupted`` after Ctrl-C.
    """
    with distributed_context(device) as (dist, chosen), lock_folder(out, dist.main):
        options = timed_labels(recipe, labels, background)
        setup = prepare_run(recipe, data, out, source, chosen, dist, say, options, background)
        run = FoldRuns(setup, out, chosen, dist)
        if dist.main:
            check_finished_folds(run.folders)
        if not (out / RESULTS_FILE).exists():
            for number in range(run.count):
                run.train_fold(number)
                gc.collect()  # loop and task refer to one another: without it each fold leaves eight times its weights
        elif dist.main and not run.complete():
            return read_results(out)  # its folds have been removed since
        if not dist.main:
            return {}
        # Of a finished run, too: what was damaged since is good again.
        results = run.results(source)
        calibration, counts = run.keep()
        if counts is not None:
            say(counts.line())
        elif setup.data.background and not (out / REJECTION_FILE).exists():
            say(UNUSED)
        write_results(out, dataclasses.replace(results, calibration=calibration, background=counts), run.outputs())
        for folder in run.folders:
            remove_states(folder)
            shutil.rmtree(folder / EPOCHS_FOLDER, ignore_errors=True)
        return read_results(out)


class FoldRuns:
    """The folds of one run, each in a folder of its own."""

    def __init__(self, setup: FinetuneSetup, out: Path, device: torch.device, dist: DistContext) -> None:
        self.recipe, self.data, self.initial = setup.recipe, setup.data, setup.model
        self.out, self.device, self.dist = out, device, dist
        self.skip = SkipList(skipped_file(out, dist.rank))
        self.count = len(self.data.folds)
        self.folders = [out / f"fold-{number + 1}" for number in range(self.count)]
        self._cache: AudioCache | None = None

    def folder(self, number: int) -> Path:
        """A fold's run directory."""
        return self.folders[number]

    def train_fold(self, number: int) -> None:
        """Train a fold to its end, unless that is done, and keep its model's outputs for the test clips."""
        folder, fold = self.folder(number), self.data.folds[number]
        self.dist.barrier()  # until the first process has finished the fold before
        if self._finished(number):
            return
        resuming = has_state(folder)
        self.dist.barrier()  # nobody writes before all have looked
        if self.dist.main:
            clear_leftovers(make_folder(folder))
        model = self._model(folder, fold, resuming)
        data = prepare_fold(self.recipe, model, fold, self._audio(model.config), self.skip)
        earlier = [self._scores(n) for n in range(number)] if self.recipe.choose == "folds" else []
        loop = self._loop(FinetuneTask(self.recipe, model, data, folder, earlier, self.dist), number)
        if resuming and self.dist.main:
            save_config(folder, describe_model(model))  # the state agrees with it
        loop.run()
        if self.recipe.choose != "folds" and self.dist.main:
            epoch = None
            if self.recipe.choose != "average" and loop.best is not None:
                epoch = round(loop.best["step"] / loop.task.steps_per_epoch)
            with loop.autocast:
                self._test(folder, data).save(folder / OUTPUTS_FILE, epoch)

    def _finished(self, number: int) -> bool:
        """Whether a fold has been trained to its end, and all that is needed of it is there and good.

        Raises ``CheckpointError`` for a log that no longer holds what the run wrote, where the choice of an epoch
        depends on it.
        """
        folder = self.folder(number)
        if not read_summary(folder).get("finished", False) or check_model_files(folder) is not None:
            return False  # going on from the state, which is at its end, writes them again
        values = read_state_values(folder)
        if values is not None:
            check_config(folder, values, read_config(folder).config)
        if self.recipe.choose != "folds":
            return is_good(folder / OUTPUTS_FILE)
        problem = None if values is None else check_log(folder, values.log)
        if problem is not None:
            raise CheckpointError(f"{problem}; restore it from a copy, or remove {folder}: it is then trained again")
        return values is not None or is_good(folder / OUTPUTS_FILE)

    def complete(self) -> bool:
        """Whether the outputs and models of all folds of a finished run are still there."""
        names = (OUTPUTS_FILE, WEIGHTS_FILE, CONFIG_FILE, SUMMARY_FILE)
        return all((self.folder(n) / name).exists() for n in range(self.count) for name in names)

    def _model(self, folder: Path, fold: Fold, resuming: bool) -> Encoder:
        """The fold's model on the device, new or of the form that its saved state has."""
        recipe = self.recipe
        if resuming:
            task = make_classification(recipe, self.data)
            model = make_encoder(read_config(folder).config, classification=task)
        else:
            model = copy.deepcopy(self.initial)
            if recipe.statistics == "measure":
                model.config = measured_config(fold.train, model.config, recipe, self.skip)
            if self.dist.main:
                save_config(folder, describe_model(model))
        if recipe.freeze:
            model.requires_grad_(False)
            assert model.classifier is not None
            model.classifier.requires_grad_(True)
        model = model.to(self.device)
        if recipe.head_init == "probe" and not resuming:  # a saved state has the classifier already
            with precision(recipe.precision, self.device):
                init_by_probe(model, fold, self.data, recipe, self._audio(model.config), self.skip)
        return model

    def _loop(self, task: FinetuneTask, number: int) -> Loop:
        recipe, every, folds = self.recipe, task.steps_per_epoch, len(self.data.folds)
        groups = parameter_groups(task.model, recipe.head_lr, recipe.layer_decay)
        schedule = EpochSchedule(
            recipe.lr,
            recipe.warmup_steps,
            recipe.warmup_every,
            recipe.decay_start,
            recipe.decay_every,
            recipe.decay,
            every,
        )
        average = (recipe.average_from * every, recipe.average_to * every) if recipe.choose == "average" else None
        settings = LoopSettings(
            validate_every=every,
            log_every=recipe.log_every,
            save_minutes=recipe.save_minutes,
            clip_norm=recipe.clip_norm,
            accumulate=recipe.accumulate,
            save_at_validation=False,
            average=average,
            label=f"fold {number + 1} of {folds}" if folds > 1 else "",
            columns=COLUMNS,
            may_lose_best=False,
        )
        optimizer = make_optimizer(recipe.optimizer, groups, recipe, self.device)
        autocast = precision(recipe.precision, self.device)
        return Loop(task, self.folder(number), optimizer, schedule, settings, autocast)

    def _test(self, folder: Path, data: FoldData) -> ClassifierOutputs:
        """The outputs of a fold's model, as it is stored, for its test clips."""
        model = build(*read_model(folder)).to(self.device).eval()
        if not data.fold.validation:  # the test clips are those that were validated on
            return data.validation.outputs(model)
        return make_evaluation(data.fold.test, self.recipe, model, data.cache, data.skip).outputs(model)

    def _audio(self, config: Config) -> AudioCache | None:
        """Decoded audio, shared by all folds and evaluations. Files beyond the budget are not even looked at."""
        budget = round(self.recipe.cache_gb * 1e9)
        if self._cache is None and budget:
            examples = (e for f in self.data.folds for part in (f.train, f.validation, f.test) for e in part)
            paths = list(dict.fromkeys(part.path for example in examples for part in example.parts))
            with Bar("reading lengths", "files") as bar:
                clips = [Clip(path) for path in paths[: max(1, budget // (SAMPLE_BYTES * config.sample_rate))]]
                scanned = scan_clips(clips, self.skip, progress=bar.update)
            self._cache = AudioCache(scanned, budget, config.sample_rate)
        return self._cache

    def _scores(self, number: int) -> Scores:
        """A finished fold's score and loss after each epoch, from its log."""
        column = f"val_{self.recipe.metric}"
        rows = [row for row in read_log(self.folder(number)) if row[column]]
        return {round(float(row["epoch"])): (float(row[column]), float(row["val_loss"])) for row in rows}

    def _epoch(self, number: int) -> int | None:
        """The epoch that is reported of a fold; None for averaged weights. Raises ``CheckpointError``."""
        if self.recipe.choose == "average":
            return None
        # With one choice for all folds, the last fold's best epoch is it: its scores are averages over all of them.
        folder = self.folder(self.count - 1 if self.recipe.choose == "folds" else number)
        values, state = read_state_values(folder), read_summary(folder)
        try:
            best: Any = state["best"] if values is None else values.best
            return round(best["step"] * state["epochs_done"] / state["step"])
        except (KeyError, TypeError, ZeroDivisionError):
            raise CheckpointError(f"{folder / SUMMARY_FILE}: is damaged; remove {folder} to train it again") from None

    def results(self, source: str | None) -> Results:
        """What came out of all folds, which began with ``source``. Raises ``CheckpointError``."""
        folds = []
        for number, fold in enumerate(self.data.folds):
            path = self.folder(number) / OUTPUTS_FILE
            if self.recipe.choose == "folds" and has_state(self.folder(self.count - 1)):
                epoch = self._epoch(number)
                if epoch is not None and (chosen := epoch_file(self.folder(number), epoch)).exists():
                    ClassifierOutputs.load(chosen).save(path, epoch)
            outputs, epoch = ClassifierOutputs.load(path), ClassifierOutputs.epoch_of(path)
            if epoch is None:  # outputs of an earlier version do not say it
                epoch = self._epoch(number)
            sizes = (len(fold.train), len(fold.validation), len(fold.test))
            found = outputs.summary(self.recipe.loss, self.data.multi_label)
            folds.append(FoldResult(fold.name, *sizes, epoch, found))
        config, kept = read_config(self.folder(0)).config, self.folder(len(folds) - 1).name
        return Results(self.recipe, source, self.data, tuple(folds), config, chosen_text(self.recipe), kept)

    def keep(self) -> tuple[Calibration | None, BackgroundCounts | None]:
        """Make the last fold's model the run's; tells how it was calibrated, where the recipe says so.

        And what came of background recordings.
        """
        check_kept_folds(self.out, self.folders)
        folder, fold = self.folders[-1], self.data.folds[-1]
        if self.recipe.calibrate != "yes":
            keep_model(folder, self.out)
            return None, None
        with precision(self.recipe.precision, self.device):
            cache = self._audio(self.initial.config)
            kept = KeptModel(folder, fold, self.recipe, self.device, cache, self.skip, self.data.background)
            return keep_calibrated(kept, folder, self.out, self.outputs())

    def outputs(self) -> list[ClassifierOutputs]:
        """The outputs of all folds for their test clips, at the epochs of :meth:`results`."""
        return [ClassifierOutputs.load(self.folder(n) / OUTPUTS_FILE) for n in range(len(self.data.folds))]
