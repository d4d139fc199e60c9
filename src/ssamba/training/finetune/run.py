"""Fine-tuning on a labelled data set: every fold of it, one model to keep, and a report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssamba.data.examples import Fold, LabelledData
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.manifest import Clip
from ssamba.data.scan import SkipList, scan_clips
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
from ssamba.training.distributed import Ranks, joined
from ssamba.training.finetune.evaluate import Answers
from ssamba.training.finetune.facts import fill_open, read_data, stored_values, tell
from ssamba.training.finetune.head_init import init_by_probe
from ssamba.training.finetune.model import classification, measure_statistics, new_model
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.finetune.report import FoldResult, Results, read_results, write_results
from ssamba.training.finetune.task import ANSWERS_FILE, EPOCHS_FOLDER, FinetuneTask, epoch_file
from ssamba.training.log import read_log
from ssamba.training.loop import Loop, LoopSettings, precision
from ssamba.training.run_folder import RECIPE_FILE, check_same_data, check_same_recipe, skipped_file, write_recipe
from ssamba.training.run_state import STATE_FILE
from ssamba.training.schedule import EpochSchedule, parameter_groups
from ssamba.utils.atomic_write import atomic_write, clear_leftovers, make_folder
from ssamba.utils.errors import ConfigError
from ssamba.utils.progress import Bar

MAY_CHANGE = ("workers", "save_minutes")
"""Values that a resumed run may be given anew: they do not change its results."""
SAMPLE_BYTES = 2
COLUMNS = 80
Say = Callable[[str], None]


def finetune(
    recipe: FinetuneRecipe,
    data: Path,
    out: Path,
    source: str | None = None,
    device: str = "auto",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune on the labelled set in ``data`` into the run directory ``out``, or go on with the run that is there.

    ``source`` is a run or an official checkpoint; None begins with random weights. Every fold is a run directory
    ``out/fold-N`` of its own; a finished one is not trained again. ``out`` then holds the model of the last fold
    (config.json, model.safetensors), results.json, results.md, classes.csv, predictions.csv and confusion.png
    (docs/finetuning.md). Returns what results.json holds; of several processes that torchrun or ``--devices`` has
    started only the first does, the others return nothing. ``say`` gets lines for the user. Raises ``SsambaError`` for
    what the user can mend, ``Interrupted`` after Ctrl-C.
    """
    with joined(device) as (ranks, chosen):
        return _finetune(recipe, data, out, source, chosen, ranks, say)


def _finetune(
    recipe: FinetuneRecipe, data: Path, out: Path, source: str | None, chosen: torch.device, ranks: Ranks, say: Say
) -> dict[str, Any]:
    recipe, labelled = read_data(stored_values(recipe, out), data)
    for note in labelled.notes if ranks.main else ():
        say(note)
    open_values = recipe.open
    facts = None
    if open_values:
        recipe, facts = fill_open(recipe, labelled, source, chosen)
    settled = settle(recipe, labelled)
    # Refuse what does not fit before anything is made.
    model = new_model(settled, classification(settled, labelled), source)
    if ranks.main:
        _enter(out, recipe, source, data, fingerprint(labelled))
        if facts is not None:
            tell(settled, facts, model, chosen, say)
    del model
    ranks.wait()
    if facts is not None and not ranks.main:  # another process may find other memory free: the first one's values hold
        recipe = stored_values(dataclasses.replace(recipe, auto=" ".join(open_values)), out)
        settled = settle(recipe, labelled)
    if (out / RESULTS_FILE).exists():
        if ranks.main:
            _clear_states(out, labelled)
        return read_results(out)
    run = _Run(settled, labelled, out, source, chosen, ranks)
    for number in range(len(labelled.folds)):
        run.train_fold(number)
    if not ranks.main:
        return {}
    results = run.results()
    _keep_model(run.folder(len(labelled.folds) - 1), out)
    values = write_results(out, results, run.answers(results))
    _clear_states(out, labelled)
    return values


def settle(recipe: FinetuneRecipe, data: LabelledData) -> FinetuneRecipe:
    """The recipe with every "auto" decided by the data. Raises ``ConfigError`` for what does not fit the data."""
    changes: dict[str, Any] = {}
    if recipe.loss == "auto":
        changes["loss"] = "bce" if data.multi_label else "ce"
    if recipe.metric == "auto":
        changes["metric"] = "mAP" if data.multi_label else "accuracy"
    if recipe.choose == "auto":
        held_out = all(fold.validation for fold in data.folds)
        changes["choose"] = "validation" if held_out else "folds" if len(data.folds) > 1 else "last"
    recipe = dataclasses.replace(recipe, **changes)
    if data.multi_label and (recipe.loss != "bce" or recipe.metric != "mAP"):
        raise ConfigError(
            f"{_several_labels(data)}, and the recipe {recipe.name} (loss {recipe.loss}, metric {recipe.metric}) takes "
            "one a clip; give --loss bce --metric mAP, or each clip one label"
        )
    _check_loss(recipe, data)
    for fold in data.folds:
        if recipe.choose == "validation" and not fold.validation:
            raise ConfigError(f"choose: validation, but {data.layout} has no validation clips; give folds or last")
    if data.folds[0].train[0].per_second is not None:
        wrong = [n for n in ("mixup", "balanced", "window") if getattr(recipe, n)]
        wrong += ["speed"] if recipe.speed > 1 else []
        wrong += ["loss"] if recipe.loss != "ce" else []
        if wrong:
            raise ConfigError(f"{wrong[0]}: {getattr(recipe, wrong[0])}, not possible with a label each second")
    return recipe


def _check_loss(recipe: FinetuneRecipe, data: LabelledData) -> None:
    """Refuse what goes with softmax and one label a clip alone. Raises ``ConfigError``."""
    if recipe.label_smoothing and recipe.loss != "ce":
        raise ConfigError(f"label_smoothing: {recipe.label_smoothing}, not possible with loss {recipe.loss}; give 0")
    if recipe.head_init != "probe":
        return
    if recipe.loss != "ce":
        raise ConfigError(f"head_init: probe, not possible with loss {recipe.loss}; give --head-init random")
    if data.folds[0].train[0].per_second is not None:
        raise ConfigError("head_init: probe, not possible with a label each second; give --head-init random")


def _several_labels(data: LabelledData) -> str:
    """What makes a set multi-label: its first clip with another number of labels than one, else the set itself."""
    for example in (e for fold in data.folds for part in (fold.train, fold.validation, fold.test) for e in part):
        if len(example.labels) != 1:
            names = ", ".join(data.classes[label] for label in example.labels) or "none"
            return f"{example.parts[0].path}: has {len(example.labels)} labels ({names})"
    return f"{data.layout}: a clip may have several labels"


def fingerprint(data: LabelledData) -> str:
    """A short hash of classes, clips, labels and folds, whatever folder they lie in."""
    digest = hashlib.blake2b(repr((data.classes, data.multi_label)).encode("utf-8", "surrogateescape"), digest_size=8)
    for fold in data.folds:
        for part in (fold.train, fold.validation, fold.test):
            for example in part:
                places = [(p.start, p.seconds, p.at) for p in example.parts]
                line = repr((fold.name, example.key, example.labels, example.per_second, places))
                digest.update(line.encode("utf-8", "surrogateescape"))
            digest.update(b"|")
    return digest.hexdigest()


def _enter(out: Path, recipe: FinetuneRecipe, source: str | None, data: Path, digest: str) -> None:
    """Make the run directory, or see that the run in it is this one."""
    clear_leftovers(make_folder(out))
    if (out / RECIPE_FILE).exists():
        check_same_recipe(out, recipe, source, MAY_CHANGE)
        check_same_data(out, digest)
    elif (out / CONFIG_FILE).exists():
        raise ConfigError(f"{out}: holds a model that is no fine-tuning run; choose another --out")
    else:
        write_recipe(out, recipe.to_dict(), source, [str(data)], digest)


class _Run:
    """The folds of one run, in order."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        data: LabelledData,
        out: Path,
        source: str | None,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.recipe, self.data, self.out, self.source, self.device = recipe, data, out, source, device
        self.skip = SkipList(skipped_file(out, ranks.rank))
        self._cache: AudioCache | None = None

    def folder(self, number: int) -> Path:
        """A fold's own run directory."""
        return self.out / f"fold-{number + 1}"

    def train_fold(self, number: int) -> None:
        """Train a fold to its end, unless that is done."""
        folder, fold = self.folder(number), self.data.folds[number]
        self.ranks.wait()  # until the first process has finished the fold before
        finished = _summary(folder).get("finished", False)
        if finished and (self.recipe.choose == "folds" or (folder / ANSWERS_FILE).exists()):
            return
        resuming = (folder / STATE_FILE).exists()
        self.ranks.wait()  # nobody writes before all have looked
        if self.ranks.main:
            clear_leftovers(make_folder(folder))
        model = self._model(folder, fold, resuming)
        if self.recipe.head_init == "probe" and not resuming:  # a saved state has the classifier already
            with precision(self.recipe.precision, self.device):
                init_by_probe(model, fold, self.data, self.recipe, self._audio(model.config), self.skip)
        earlier = [self._scores(n) for n in range(number)] if self.recipe.choose == "folds" else []
        task = FinetuneTask(self.recipe, model, fold, folder, self._audio(model.config), self.skip, earlier, self.ranks)
        label = f"fold {number + 1} of {len(self.data.folds)}" if len(self.data.folds) > 1 else ""
        loop = self._loop(task, folder, label)
        loop.run()
        if self.recipe.choose != "folds" and self.ranks.main:
            final = build(*read_model(folder)).to(self.device).eval()
            with loop.autocast:
                task.test(final).save(folder / ANSWERS_FILE)

    def _model(self, folder: Path, fold: Fold, resuming: bool) -> Encoder:
        """The fold's model, new or of the form that its saved state has."""
        task = classification(self.recipe, self.data)
        if resuming:
            model = make_encoder(read_config(folder).config, classification=task)
        else:
            model = new_model(self.recipe, task, self.source)
            if self.recipe.statistics == "measure":
                mean, std = measure_statistics(fold.train, model.config, self.recipe, self.skip)
                model.config = model.config.replace(mean=mean, std=std)
            if self.ranks.main:
                save_config(folder, describe_model(model))
        if self.recipe.freeze:
            model.requires_grad_(False)
            assert model.classifier is not None
            model.classifier.requires_grad_(True)
        return model.to(self.device)

    def _loop(self, task: FinetuneTask, folder: Path, label: str) -> Loop:
        recipe = self.recipe
        optimizer = torch.optim.Adam(
            parameter_groups(task.model, recipe.head_lr, recipe.layer_decay),
            lr=recipe.lr,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
            fused=self.device.type == "cuda",
        )
        every = task.steps_per_epoch
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
            label=label,
            columns=COLUMNS,
        )
        return Loop(task, folder, optimizer, schedule, settings, precision(recipe.precision, self.device), self.ranks)

    def _audio(self, config: Config) -> AudioCache | None:
        """Decoded audio, shared by all folds and evaluations. Files beyond the budget are not even looked at."""
        budget = round(self.recipe.cache_gb * 1e9)
        if self._cache is None and budget:
            examples = (e for f in self.data.folds for part in (f.train, f.validation, f.test) for e in part)
            paths = list(dict.fromkeys(part.path for example in examples for part in example.parts))
            with Bar("reading lengths") as bar:
                clips = [Clip(path) for path in paths[: max(1, budget // (SAMPLE_BYTES * config.sample_rate))]]
                scanned = scan_clips(clips, self.skip, progress=bar.update)
            self._cache = AudioCache(scanned, budget, config.sample_rate)
        return self._cache

    def _scores(self, number: int) -> dict[int, tuple[float, float]]:
        """A finished fold's score and loss after each epoch, from its log."""
        column = f"val_{self.recipe.metric}"
        rows = [row for row in read_log(self.folder(number)) if row[column]]
        return {round(float(row["epoch"])): (float(row[column]), float(row["val_loss"])) for row in rows}

    def _epoch(self, number: int) -> int | None:
        """The epoch whose model speaks for a fold; None for averaged weights."""
        if self.recipe.choose == "average":
            return None
        # With one choice for all folds, the last fold's best epoch is it: its scores are averages over all of them.
        place = len(self.data.folds) - 1 if self.recipe.choose == "folds" else number
        state = _summary(self.folder(place))
        return round(state["best"]["step"] * state["epochs_done"] / state["step"])

    def results(self) -> Results:
        """What came out of all folds."""
        folds = []
        for number, fold in enumerate(self.data.folds):
            folder, epoch = self.folder(number), self._epoch(number)
            if self.recipe.choose == "folds" and epoch is not None:
                _copy(epoch_file(folder, epoch), folder / ANSWERS_FILE)
            found = Answers.load(folder / ANSWERS_FILE).summary(self.recipe.loss, self.data.multi_label)
            sizes = (len(fold.train), len(fold.validation), len(fold.test))
            folds.append(FoldResult(fold.name, *sizes, epoch, found))
        return Results(self.recipe, self.source, self.data, tuple(folds), read_config(self.folder(0)).config)

    def answers(self, results: Results) -> list[Answers]:
        """The answers of all folds, at the chosen epochs."""
        return [Answers.load(self.folder(number) / ANSWERS_FILE) for number in range(len(results.folds))]


def _summary(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        return values
    except (OSError, ValueError):
        return {}


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def _keep_model(folder: Path, out: Path) -> None:
    """A fold's model becomes the run's."""
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        _copy(folder / name, out / name)


def _clear_states(out: Path, data: LabelledData) -> None:
    """Remove what only a run that goes on needs."""
    for number in range(len(data.folds)):
        folder = out / f"fold-{number + 1}"
        (folder / STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder / EPOCHS_FOLDER, ignore_errors=True)
