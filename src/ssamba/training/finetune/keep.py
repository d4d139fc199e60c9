"""What a fine-tuning run keeps: the last fold's model, its logits calibrated, and what tells unlike sounds."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ssamba.data.examples import Example, Fold
from ssamba.data.loaders.workers import AudioCache
from ssamba.data.scan import SkipList
from ssamba.evaluation.calibration import Calibration, calibrate
from ssamba.evaluation.probe.protocol import target_matrix
from ssamba.evaluation.rejection_fit import BackgroundCounts, OtherSounds, Trial, make_rejection
from ssamba.inference.model import KINDS
from ssamba.inference.rejection.file import write_rejection
from ssamba.inference.rejection.noise import noise_values
from ssamba.inference.rejection.score import MIN_HELD_OUT, Rejection
from ssamba.inference.rejection.silence import silence_values
from ssamba.models.pretrained.model_dir import CONFIG_FILE, WEIGHTS_FILE, build_as, read_config, read_model
from ssamba.models.pretrained.transformers_files import write_preprocessor
from ssamba.training.finetune.evaluate import ClassifierOutputs, make_evaluation
from ssamba.training.finetune.facts import recording_numbers
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.utils.atomic_write import atomic_write
from ssamba.utils.tensor_file import renew_tensors

MAX_TRAINING_CLIPS = 2000
"""Read again for the class means, evenly chosen."""
LOGITS = ("classifier.linear.weight", "classifier.linear.bias")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; one that holds the same already stays as it is."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def keep_model(folder: Path, out: Path, temperature: float = 1.0) -> None:
    """A fold's model becomes the run's, its logits divided by a temperature: the linear layer is W / T, b / T."""
    if temperature == 1.0:
        copy_file(folder / WEIGHTS_FILE, out / WEIGHTS_FILE)
    else:
        _, tensors = read_model(folder)
        renew_tensors(out / WEIGHTS_FILE, tensors | {name: tensors[name] / temperature for name in LOGITS})
    copy_file(folder / CONFIG_FILE, out / CONFIG_FILE)
    write_preprocessor(out, read_config(out).config)


class KeptModel:
    """The last fold's model as it is stored, asked about clips of its fold.

    Args:
        folder: the fold's run directory.
        fold: its clips.
        recipe: without any value left at "auto".
        device: to run on. The caller chooses precision.
        cache, skip: decoded audio, and where unreadable files are noted.
        background: clips of no class.
    """

    def __init__(
        self,
        folder: Path,
        fold: Fold,
        recipe: FinetuneRecipe,
        device: torch.device,
        cache: AudioCache | None,
        skip: SkipList,
        background: Sequence[Example] = (),
    ) -> None:
        self._model = build_as(KINDS, *read_model(folder)).to(device).eval()
        self._background = background
        self._fold, self._recipe, self._cache, self._skip = fold, recipe, cache, skip

    def calibration(self, outputs: Sequence[ClassifierOutputs]) -> Calibration:
        """From ``outputs`` for the test clips of all folds; of one fold from its validation clips, if it has some."""
        tested, loss = [found.held_out() for found in outputs], self._recipe.loss
        if len(tested) > 1:
            return calibrate(tested, loss, "cross-validation")
        if not self._fold.validation:
            return calibrate(tested, loss, "test")
        found = make_evaluation(self._fold.validation, self._recipe, self._model, self._cache, self._skip, again=False)
        return calibrate([found.outputs(self._model).held_out()], loss, "validation", tested)

    def rejection(self) -> tuple[Rejection | None, BackgroundCounts | None]:
        """From training clips, the border from validation or test clips; None with fewer than 10 of these.

        And what came of background clips, where there are some.
        """
        fold = self._fold
        held_out = fold.validation or fold.test
        if len(held_out) < MIN_HELD_OUT or fold.train[0].per_second is not None:
            return None, None
        assert self._model.classifier is not None
        train = fold.train[:: -(-len(fold.train) // MAX_TRAINING_CLIPS)]
        values, owners = self._values(train)
        classes = len(self._model.classifier.task.classes)
        targets = target_matrix(train, classes)[owners]
        held, held_owners = self._values(held_out)
        known, places = held_owners.unique(return_inverse=True)
        trial = Trial(values, targets, held, places, target_matrix(held_out, classes)[known])
        others, recordings = values[:0], torch.empty(0, dtype=torch.int64, device="cpu")
        if self._background:
            others, owners = self._values(self._background)
            recordings = recording_numbers(self._background, owners)
        sounds = OtherSounds(silence_values(self._model), noise_values(self._model), others, recordings)
        return make_rejection(values, targets, [trial], sounds)

    def _values(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        evaluation = make_evaluation(examples, self._recipe, self._model, self._cache, self._skip, again=False)
        values, owners = evaluation.values(self._model)
        return values.float(), owners


def keep_calibrated(
    model: KeptModel, folder: Path, out: Path, outputs: Sequence[ClassifierOutputs]
) -> tuple[Calibration, BackgroundCounts | None]:
    """The fold's model becomes the run's, calibrated, with the file that tells unlike sounds where it can be made.

    Tells the calibration, and what came of background clips.
    """
    calibration = model.calibration(outputs)
    keep_model(folder, out, calibration.temperature)
    rejection, counts = model.rejection()
    if rejection is not None:
        write_rejection(out, rejection)
    return calibration, counts
