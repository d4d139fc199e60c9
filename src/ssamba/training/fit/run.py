"""``ssamba fit``: a labelled set and a frozen encoder in, a run directory with a classifier out."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.data.examples import Example, LabelledData
from ssamba.data.scan import SkipList
from ssamba.evaluation.calibration import Calibration
from ssamba.evaluation.probe.probe import ProgressBars, no_bar
from ssamba.evaluation.probe.protocol import Division, all_examples, divisions, target_matrix
from ssamba.evaluation.rejection_fit import UNUSED, OtherSounds, make_rejection
from ssamba.inference.model import KINDS, Encoder
from ssamba.inference.rejection.file import REJECTION_FILE, write_rejection
from ssamba.inference.rejection.noise import noise_values
from ssamba.inference.rejection.silence import silence_values
from ssamba.models.classifier import Classification, Classifier
from ssamba.models.pretrained.file_checks import changed_files
from ssamba.models.pretrained.load import read_model_source
from ssamba.models.pretrained.model_dir import CONFIG_FILE, RESULTS_FILE, Description, build_as, save_model
from ssamba.training.finetune.auto import choose_frames
from ssamba.training.finetune.facts import Say, clip_lengths, recording_numbers, with_background
from ssamba.training.finetune.report import FoldResult, Results, read_results, record_results, write_results
from ssamba.training.finetune.resolve import data_files, fingerprint
from ssamba.training.fit.cross_validation import Bank, Validated, cross_validate
from ssamba.training.fit.data import read_fit_data
from ssamba.training.fit.expectation import expectation
from ssamba.training.fit.features import FeatureParts, collect_features, parts_folder
from ssamba.training.fit.heads import LinearHead, choose_head
from ssamba.training.fit.held_out import fit_calibration, trials_of
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.resume.content import content_digest
from ssamba.training.resume.run_files import check_model_files
from ssamba.training.run_folder import (
    RECIPE_FILE,
    check_same_content,
    check_same_data,
    check_same_recipe,
    skipped_file,
    write_recipe,
)
from ssamba.utils.atomic_write import clear_leftovers, make_folder
from ssamba.utils.device import pick_device
from ssamba.utils.errors import CheckpointError, ConfigError, DataError
from ssamba.utils.lock import lock_folder
from ssamba.utils.tensor_file import verify_tensors


@dataclasses.dataclass(frozen=True)
class ReportedFit:
    """What a report says of a fit, as ``ReportedRecipe``."""

    name: str
    metric: str
    choose: str
    loss: str


@dataclasses.dataclass(frozen=True)
class FitSetup:
    """A fit before its first pass: the recipe in numbers, the set, every clip once, the model with a new classifier."""

    recipe: FitRecipe
    data: LabelledData
    examples: list[Example]
    model: Encoder
    head: LinearHead
    source: str

    @property
    def tested(self) -> bool:
        """Whether any clip can be held out."""
        return bool(self.data.folds[0].test)

    @property
    def keeps_split(self) -> bool:
        """Whether the set has a test split of its own, which the kept model is then not fitted on."""
        return self.tested and len(self.data.folds) == 1 and not self.data.divided


def fit(
    recipe: FitRecipe,
    data: Path,
    out: Path,
    source: str,
    device: str = "auto",
    say: Say = lambda line: None,
    bars: ProgressBars | None = None,
    labels: Path | None = None,
    background: str | Path | None = None,
) -> dict[str, Any]:
    """Fit a classifier on a frozen encoder for the labelled set in ``data``, into the run directory ``out``.

    The directory is that of a fine-tuning run without folds of its own (docs/finetuning.md): config.json,
    model.safetensors, results.json, results.md, classes.csv, predictions.csv, recipe.yaml. ``source`` is what
    ``ssamba.load`` takes. Returns what results.json holds, at once for a finished run. ``say`` gets lines for the user,
    ``bars(label)`` opens a progress bar. ``labels`` are label files with times for the recordings in ``data``,
    ``background`` is a folder of recordings that have no class (docs/fit.md), or the class of stretches without label.
    Raises ``SsambaError`` for what the user can put right; nothing is then left behind but the features of a long set,
    with which the same command goes on.
    """
    setup = prepare_fit(recipe, data, source, device, labels, background)
    with lock_folder(out):
        return _fit(setup, data, out, say, bars or no_bar)


def _fit(setup: FitSetup, data: Path, out: Path, say: Say, bars: ProgressBars) -> dict[str, Any]:
    _check_folder(out, setup)
    if (out / RESULTS_FILE).exists():
        problem = check_model_files(out)
        if problem is not None:
            raise CheckpointError(f"{problem}; or remove {out / RESULTS_FILE} to fit it again")
        if (out / REJECTION_FILE).exists():
            verify_tensors(out / REJECTION_FILE)
        record_results(out, rewritten=False)
        return read_results(out)
    for note in setup.data.notes:
        say(note)
    _report_choices(setup, say)
    silence, noise, per_window = _made_up(setup.model)
    say(expectation(setup.head, setup.data, setup.examples, setup.model, per_window))
    bank, skip, recordings = _features(setup, data, out, bars)
    negatives = bank.values[:0] if bank.negatives is None else bank.negatives
    parts = divisions(setup.data, setup.examples) if setup.tested else []
    found = _validate(bank, setup.head, parts, bars)
    numbers = parts[0].fit if setup.keeps_split else torch.arange(len(setup.examples), device="cpu")
    calibration = fit_calibration(bank, setup.head, parts, found) if setup.recipe.calibrate and parts else None
    reads = _load_classifier(setup, bank, numbers, found.best, calibration)
    values = reads(bank.values)
    rows = bank.rows(numbers)
    others = OtherSounds(reads(silence), reads(noise), reads(negatives), recordings)
    trials = trials_of(bank, values, parts)
    rejection, counts = make_rejection(values[rows], bank.targets[bank.owners[rows]], trials, others)
    if counts is not None:
        say(counts.line())
    elif setup.data.background and rejection is None:
        say(UNUSED)
    _enter(out, setup, data, skip)
    save_model(out, setup.model)
    if rejection is not None:
        write_rejection(out, rejection)
    results = dataclasses.replace(_results(setup, found, calibration), background=counts)
    write_results(out, results, found.outputs)
    for folder in out.glob("features-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return read_results(out)


def prepare_fit(
    recipe: FitRecipe,
    root: Path,
    source: str,
    device: str = "auto",
    labels: Path | None = None,
    background: str | Path | None = None,
) -> FitSetup:
    """Read set and model, and put numbers where the recipe leaves them open. Nothing is written."""
    description, tensors = read_model_source(source)
    config = description.config
    seconds = config.front_end.seconds_of_frames(recipe.frames) if recipe.frames else None
    data = read_fit_data(recipe, root, labels, background, seconds)
    head = choose_head(recipe, data.multi_label)
    examples = all_examples(data)
    frames, _ = choose_frames(clip_lengths(examples), config.patch_time)
    recipe = dataclasses.replace(
        recipe,
        head=head.name,
        frames=recipe.frames or frames,
        stride=recipe.stride or min(config.patch_frequency, config.patch_time),
    )
    data = with_background(data, background, config.front_end.seconds_of_frames(recipe.frames))
    model = build_as(KINDS, Description(config), tensors).with_grid(recipe.stride, recipe.frames)
    loss = "bce" if data.multi_label else "ce"
    task = Classification(data.classes, data.multi_label, recipe.pooling, False, recipe.name, loss)
    model.classifier = Classifier(model.config, task)
    return FitSetup(recipe, data, examples, model.to(pick_device(device)).eval(), head, source)


def _made_up(model: Encoder) -> tuple[Tensor, Tensor, float]:
    """What the new classifier reads of silence and of made-up sounds, and the seconds that a window of them took."""
    silence = silence_values(model)
    begin = time.perf_counter()
    noise = noise_values(model)
    return silence, noise, (time.perf_counter() - begin) / len(noise)


def _report_choices(setup: FitSetup, say: Say) -> None:
    recipe, data, head = setup.recipe, setup.data, setup.head
    assert setup.model.classifier is not None
    values = setup.model.classifier.linear.in_features
    what = "logistic regression" if head.name == "logistic" else "class means in a whitened space"
    what += " for each class" if data.multi_label else ""
    searched = setup.tested and len(head.settings) > 1
    setting = f"{head.setting} by the loss of held-out clips" if searched else f"{head.setting} {head.default:g}"
    say(f"chosen for {len(setup.examples)} clips of {len(data.classes)} classes: {what}, {setting},")
    say(f"  on {values} values of the last layer ({recipe.pooling}) of {recipe.frames} frames, stride {recipe.stride}")


def _check_folder(out: Path, setup: FitSetup) -> None:
    """See that a run in the directory is this one. Writes nothing."""
    if (out / RECIPE_FILE).exists():
        changed_files(out)
        check_same_recipe(out, setup.recipe, setup.source, ())
        check_same_data(out, fingerprint(setup.data))
        check_same_content(out, content_digest(data_files(setup.data)))
    elif (out / CONFIG_FILE).exists():
        raise ConfigError(f"{out}: holds a model that is no run of ssamba fit; choose another --out")
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose another --out")


def _enter(out: Path, setup: FitSetup, root: Path, skip: SkipList) -> None:
    """Make the run directory, and write down the run and which clips were left out."""
    clear_leftovers(make_folder(out))
    if not (out / RECIPE_FILE).exists():
        content = content_digest(data_files(setup.data))
        write_recipe(out, setup.recipe.to_dict(), setup.source, [str(root)], fingerprint(setup.data), content)
    kept = SkipList(skipped_file(out))
    for path, reason in skip.reasons.items():
        kept.record(path, reason)


def _features(setup: FitSetup, root: Path, out: Path, bars: ProgressBars) -> tuple[Bank, SkipList, Tensor]:
    """The bank, unreadable files, and for each of the bank's negatives the number of its recording (n,)."""
    skip = SkipList()
    examples = [*setup.examples, *setup.data.background]
    folder = parts_folder(out, setup.data.layout, examples, setup.model)
    parts = FeatureParts(folder, lambda: _enter(out, setup, root, skip))
    with bars("features") as progress:
        values, owners = collect_features(examples, setup.model, parts, skip, progress)
    known = owners < len(setup.examples)
    negatives = values[~known] if setup.data.background else None
    recordings = recording_numbers(examples, owners[~known])
    if negatives is not None and not len(negatives):
        raise DataError(f"{examples[-1].parts[0].path}: nor any other background recording can be read; replace them")
    values, owners = values[known], owners[known]
    targets = target_matrix(setup.examples, len(setup.data.classes))
    gone = (targets[torch.unique(owners)].sum(dim=0) == 0) & (targets.sum(dim=0) > 0)
    if gone.any():
        name = setup.data.classes[int(gone.nonzero()[0])]
        raise DataError(f"{root}: no clip of class {name} can be read; replace its files, or remove the class")
    unread = {setup.examples[n].key for n in set(range(len(setup.examples))) - set(owners.tolist())}
    for fold in setup.data.folds if setup.tested else ():
        if all(example.key in unread for example in fold.test):
            raise DataError(f"{root}: no test clip of fold {fold.name} can be read; replace its files")
    return Bank(values, owners, targets, "bce" if setup.data.multi_label else "ce", negatives), skip, recordings


def _validate(bank: Bank, head: LinearHead, parts: list[Division], bars: ProgressBars) -> Validated:
    if not parts:
        return Validated((), (), head.default)
    with bars("fitting") as progress:
        return cross_validate(bank, head, parts, lambda done, total: progress(done, total, f"{done}/{total} fits"))


def _load_classifier(
    setup: FitSetup, bank: Bank, numbers: Tensor, setting: float, calibration: Calibration | None
) -> Callable[[Tensor], Tensor]:
    """Fit the model's classifier on the examples ``numbers``; gives what its linear layer then reads of features."""
    (fitted,) = bank.fit(setup.head, numbers, [setting])
    assert setup.model.classifier is not None
    standardise = fitted.standardise
    temperature = 1.0 if calibration is None else calibration.temperature
    weight, bias = fitted.weight / temperature, fitted.bias / temperature
    setup.model.classifier.load_linear(standardise.mean, standardise.scale, weight, bias)
    return lambda features: standardise(features).float()


def _results(setup: FitSetup, found: Validated, calibration: Calibration | None) -> Results:
    """What came out, in the form of a fine-tuning run's results."""
    data, several = setup.data, setup.data.multi_label
    loss = "bce" if several else "ce"
    folds = tuple(
        FoldResult(
            fold.name, len(fold.train), len(fold.validation), len(fold.test), None, outputs.summary(loss, several)
        )
        for fold, outputs in zip(data.folds, found.outputs, strict=False)
    )
    by_loss = f"{setup.head.setting} with the lowest held-out loss"
    fitted = {
        "head": setup.head.name,
        setup.head.setting: found.best,
        "of_folds": list(found.settings),
    }
    kept = "all clips but the test split" if setup.keeps_split else "all clips"
    chosen = by_loss if folds and len(setup.head.settings) > 1 else f"{setup.head.setting} {found.best:g}"
    recipe = ReportedFit(setup.recipe.name, "mAP" if several else "accuracy", "fit", loss)
    return Results(recipe, setup.source, data, folds, setup.model.config, chosen, kept, fitted, calibration)
