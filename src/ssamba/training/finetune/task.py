"""Fine-tuning on one fold as the training loop sees it: batches, augmentation, loss, validation, the best epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ssamba.audio.front_end import FrontEnd
from ssamba.data.examples import Fold
from ssamba.data.loaders.labelled import LabelledBatch, LabelledLoader
from ssamba.data.loaders.prefetch import prepare_ahead
from ssamba.data.loaders.workers import AudioCache, choose_workers
from ssamba.data.samplers.labelled import EpochPlan
from ssamba.data.scan import SkipList
from ssamba.models import losses
from ssamba.models.encoder import Encoder
from ssamba.training.augment.pipeline import Augment, Draws
from ssamba.training.distributed import DistContext
from ssamba.training.features import batch_features
from ssamba.training.finetune.evaluate import Evaluation, longest_seconds, make_evaluation
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.seeds import torch_generator
from ssamba.training.task import Task
from ssamba.training.tensors import TensorGroup

BATCHES_AHEAD = 3
EPOCHS_FOLDER = "answers"
Scores = Mapping[int, tuple[float, float]]
"""Score and loss of a finished fold by epoch."""


def epoch_file(folder: Path, epoch: int) -> Path:
    """Where a fold keeps its outputs for the test clips after an epoch, until one epoch is chosen."""
    return folder / EPOCHS_FOLDER / f"epoch-{epoch:04d}.safetensors"


@dataclass(frozen=True)
class FoldData:
    """What a fold is trained and validated on.

    Attributes:
        fold: its examples.
        plan: the order of its training clips.
        validation: the examples that choose an epoch.
        cache: of decoded audio.
        skip: where unreadable files are noted.
    """

    fold: Fold
    plan: EpochPlan
    validation: Evaluation
    cache: AudioCache | None
    skip: SkipList


def prepare_fold(
    recipe: FinetuneRecipe, model: Encoder, fold: Fold, cache: AudioCache | None, skip: SkipList
) -> FoldData:
    """The data of a fold for models like ``model``."""
    held_out = fold.test if recipe.choose == "folds" else fold.validation or fold.test
    validation = make_evaluation(held_out, recipe, model, cache, skip)
    return FoldData(fold, training_plan(recipe, model.config.front_end, fold), validation, cache, skip)


def training_plan(recipe: FinetuneRecipe, front_end: FrontEnd, fold: Fold) -> EpochPlan:
    """The order of a fold's training clips. With accumulation an epoch is cut or filled up to whole steps."""
    scenes = fold.train[0].per_second is not None
    step = recipe.batch * recipe.accumulate
    whole = max(1, round(len(fold.train) / step)) * step if recipe.accumulate > 1 else None
    return EpochPlan(
        fold.train,
        recipe.batch,
        recipe.seed,
        epoch_examples=whole,
        balanced=recipe.balanced,
        mixup=recipe.mixup,
        max_seconds=recipe.speed * longest_seconds(recipe, front_end, scenes),  # what the highest speed needs
        random_crop=recipe.window > 0,
        sample_rate=front_end.sample_rate,
    )


@dataclass
class FinetuneBatch(TensorGroup):
    """One batch: audio and targets as in ``LabelledBatch``, stochastic depth, draws of augmentation."""

    waveforms: Tensor
    lengths: Tensor
    targets: Tensor
    keep: Tensor | None
    draws: Draws


@dataclass
class FinetuneInputs(TensorGroup):
    """What the loss takes: features (B, frames, mel_bins), targets, stochastic depth."""

    features: Tensor
    targets: Tensor
    keep: Tensor | None = None


class FinetuneTask(Task[FinetuneBatch, FinetuneInputs]):
    """Training a classifier on one fold.

    Args:
        recipe: without any value left at "auto".
        model: an encoder with a classifier, on its device.
        data: the fold's.
        folder: the fold's run directory.
        earlier: scores of the folds before, where all folds share the choice of an epoch.
        dist: this process among those of the run.
    """

    metrics = ("loss",)

    def __init__(
        self,
        recipe: FinetuneRecipe,
        model: Encoder,
        data: FoldData,
        folder: Path,
        earlier: Sequence[Scores] = (),
        dist: DistContext | None = None,
    ) -> None:
        super().__init__(model, recipe.ema, dist)
        assert model.classifier is not None
        self.recipe, self.data, self.folder, self.earlier = recipe, data, folder, earlier
        self.classification = model.classifier.task
        several = self.classification.multi_label
        self.validation_metrics = ("loss", "mAP", "AUC") if several else ("loss", "accuracy", "mAP")
        self.progress = ("loss", f"val_{self.validation_metrics[1]}")
        self.batch_size = recipe.batch * recipe.accumulate
        self.steps_per_epoch = data.plan.steps_per_epoch // recipe.accumulate
        self.total_steps = recipe.epochs * self.steps_per_epoch
        seconds = longest_seconds(recipe, model.config.front_end, scenes=False)
        read, samples = (round(x * model.config.sample_rate) for x in (recipe.speed * seconds, seconds))
        self.augment = Augment(recipe, recipe.seed, model.config, model.device, samples, read)

    def clips_in_batch(self, number: int) -> int:
        """The last batch of an epoch may have fewer."""
        return self.data.plan.size(number)

    def batches(self, start: int) -> Iterator[FinetuneBatch]:
        """The batches, decoded and drawn ahead."""
        loader = LabelledLoader(
            self.data.plan,
            len(self.classification.classes),
            choose_workers(self.recipe.workers),
            start,
            self.total_steps * self.recipe.accumulate,
            skip=self.data.skip,
            part=(self.dist.rank, self.dist.world),
        )
        loader.cache = self.data.cache
        return prepare_ahead(loader, self._prepare, BATCHES_AHEAD)

    def _prepare(self, batch: LabelledBatch) -> FinetuneBatch:
        """A batch with its draws, which are made for the whole batch; this process takes its rows."""
        clips = self.clips_in_batch(batch.step)
        rows = self.dist.rows(clips)
        keep = None
        if not self.recipe.freeze:
            keep = self.model.draw_keep(clips, torch_generator(self.recipe.seed, "stochastic depth", batch.step))
            keep = None if keep is None else keep[:, rows].contiguous()
        draws = self.augment.draws(batch.step, clips, rows)
        return self.pinned(FinetuneBatch(batch.waveforms, batch.lengths, batch.targets, keep, draws))

    def inputs(self, number: int, batch: FinetuneBatch) -> FinetuneInputs:
        """Features made and augmented on the model's device, targets, stochastic depth."""
        here, clips = batch.to(self.model.device), self.clips_in_batch(number)
        waveforms, lengths = self.augment.apply_speed(here.waveforms, here.lengths, here.draws)
        waveforms, lengths = self.augment.apply_to_waveforms(waveforms, lengths, here.draws)
        features = batch_features(waveforms, lengths, self.model.config)
        features = self.augment.apply_to_features(features, here.draws, number, clips, self.dist.rows(clips))
        return FinetuneInputs(features, here.targets, here.keep)

    def losses(self, inputs: FinetuneInputs) -> dict[str, Tensor]:
        """The loss of one batch."""
        logits = self.model.classify(inputs.features, inputs.keep)
        smoothing = self.recipe.label_smoothing
        return {"loss": losses.classification_loss(logits, inputs.targets, self.recipe.loss, smoothing)}

    def validate(self, step: int) -> dict[str, float]:
        """Metrics on the held-out clips; where all folds share the choice, the outputs are kept for it."""
        outputs = self.data.validation.outputs(self.eval_model, self.check_stop)
        if self.recipe.choose == "folds":
            outputs.save(epoch_file(self.folder, step // self.steps_per_epoch))
        found = outputs.summary(self.recipe.loss, self.classification.multi_label)
        return {name: found[name] for name in self.validation_metrics}

    def score(self, step: int, metrics: dict[str, float]) -> float:
        """The recipe's metric, for ``folds`` averaged with that of earlier folds; later is better for ``last``."""
        if self.recipe.choose in ("last", "average"):
            return float(step)
        value = metrics[self.recipe.metric]
        if self.recipe.choose == "validation":
            return value
        epoch = step // self.steps_per_epoch
        return sum([*(scores[epoch][0] for scores in self.earlier), value]) / (len(self.earlier) + 1)

    def tie_break(self, step: int, metrics: dict[str, float]) -> float:
        """Of epochs with equal scores the one with the lower loss is better; averaged over folds as the score is."""
        if self.recipe.choose in ("last", "average"):
            return 0.0
        earlier = self.earlier if self.recipe.choose == "folds" else ()
        epoch = step // self.steps_per_epoch
        return -sum([*(scores[epoch][1] for scores in earlier), metrics["loss"]]) / (len(earlier) + 1)
