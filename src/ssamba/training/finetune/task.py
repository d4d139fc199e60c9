"""Fine-tuning on one fold as the training loop sees it: batches, augmentation, losses, judging, choosing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ssamba.audio.front_end import FrontEnd
from ssamba.data.examples import Example, Fold
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.loaders.labelled import LabelledBatch, LabelledLoader
from ssamba.data.loaders.prefetch import prepare_ahead
from ssamba.data.loaders.workers import choose_workers
from ssamba.data.samplers.labelled import EpochPlan
from ssamba.data.scan import SkipList
from ssamba.models import losses
from ssamba.models.encoder import Encoder
from ssamba.training.augment.transforms import (
    change_speed,
    draw_masks,
    draw_noise,
    draw_noises,
    draw_response,
    draw_rooms,
    draw_speed,
    mask_stretches,
    noise_and_roll,
    respond,
    reverberate,
)
from ssamba.training.distributed import Ranks
from ssamba.training.features import batch_features
from ssamba.training.finetune.evaluate import Answers, Evaluation, longest_seconds
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.loop import Task
from ssamba.training.pretrain.teacher_targets import AveragedModel
from ssamba.training.seeds import generator

BATCHES_AHEAD = 3
ANSWERS_FILE, EPOCHS_FOLDER = "answers.safetensors", "answers"


def epoch_file(folder: Path, epoch: int) -> Path:
    """Where a fold keeps its answers to the test clips after an epoch, until one epoch is chosen."""
    return folder / EPOCHS_FOLDER / f"epoch-{epoch:04d}.safetensors"


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


class Inputs(NamedTuple):
    """One batch's audio, labels and draws: as in ``LabelledBatch``, and for masks, for noise and roll, for depth.

    ``response``, ``speed`` and ``rooms`` are those of ``training.augment``.
    """

    waveforms: Tensor
    lengths: Tensor
    targets: Tensor
    masks: Tensor | None
    rolls: Tensor | None
    keep: Tensor | None
    response: Tensor | None
    speed: Tensor | None
    rooms: Tensor | None


class FinetuneTask(Task):
    """One fold. ``recipe`` has no value left at "auto"; ``earlier`` are score and loss by epoch of the folds before."""

    metrics: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        recipe: FinetuneRecipe,
        model: Encoder,
        fold: Fold,
        folder: Path,
        cache: AudioCache | None,
        skip: SkipList,
        earlier: Sequence[Mapping[int, tuple[float, float]]] = (),
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        assert model.classifier is not None
        self.recipe, self.model, self.folder, self.earlier = recipe, model, folder, earlier
        self.cache, self.skip, self.fold = cache, skip, fold
        self.averaged = AveragedModel(model, recipe.ema) if recipe.ema else None
        self.answer = model.classifier.task
        shown = ("mAP", "AUC") if self.answer.multi_label else ("accuracy", "mAP")
        self.validation_metrics: tuple[str, ...] = ("loss", *shown)
        self.plan = training_plan(recipe, model.config.front_end, fold)
        self.batch_size = recipe.batch * recipe.accumulate
        self.steps_per_epoch = self.plan.steps_per_epoch // recipe.accumulate
        self.total_steps = recipe.epochs * self.steps_per_epoch
        held_out = fold.test if recipe.choose == "folds" else fold.validation or fold.test
        self.judged = self.judge(held_out)
        self.noises: Tensor | None = None
        if recipe.reverb:
            noises = draw_noises(generator(recipe.seed, "rooms' noises"), self.plan.sample_rate)
            self.noises = noises.to(model.device)
        self.fill = model.config.front_end.pad_value

    def judge(self, examples: Sequence[Example]) -> Evaluation:
        """A set to ask the model about."""
        classes = len(self.answer.classes)
        return Evaluation(examples, self.recipe, self.model.config, classes, self.model.device, self.cache, self.skip)

    def batches(self, start: int) -> Iterator[Inputs]:
        """The batches' inputs, decoded and drawn ahead."""
        loader = LabelledLoader(
            self.plan,
            len(self.answer.classes),
            choose_workers(self.recipe.workers),
            start,
            self.total_steps * self.recipe.accumulate,
            skip=self.skip,
            part=(self.ranks.rank, self.ranks.world),
        )
        loader.cache = self.cache
        return prepare_ahead(loader, self._prepare, BATCHES_AHEAD)

    def _prepare(self, batch: LabelledBatch) -> Inputs:
        """A batch with its draws, which depend on (seed, number of the batch) alone.

        They are drawn for the whole batch, of which this process takes its rows.
        """
        recipe, clips = self.recipe, self.plan.size(batch.step)
        rows = self.ranks.rows(clips)
        masks = rolls = keep = response = speed = rooms = None
        if recipe.freq_mask or recipe.time_mask:
            masks = draw_masks(clips, generator(recipe.seed, "masks", batch.step))[..., rows].contiguous()
        if recipe.noise:
            rolls = draw_noise(clips, generator(recipe.seed, "roll", batch.step))[:, rows].contiguous()
        if not recipe.freeze:
            keep = self.model.draw_keep(clips, generator(recipe.seed, "stochastic depth", batch.step))
            keep = None if keep is None else keep[:, rows].contiguous()
        if recipe.gain_db or recipe.response_db:
            source, bins = generator(recipe.seed, "response", batch.step), self.model.config.mel_bins
            response = draw_response(clips, recipe.gain_db, recipe.response_db, bins, source)[rows]
        if recipe.speed > 1:
            speed = draw_speed(clips, recipe.speed, generator(recipe.seed, "speed", batch.step))[rows]
        if recipe.reverb:
            source = generator(recipe.seed, "rooms", batch.step)
            rooms = draw_rooms(clips, recipe.reverb, self.plan.sample_rate, source)[:, rows].contiguous()
        inputs = Inputs(batch.waveforms, batch.lengths, batch.targets, masks, rolls, keep, response, speed, rooms)
        if self.model.device.type != "cuda":
            return inputs
        # From pinned memory the copies to the GPU run beside its work, and nobody waits for them.
        return Inputs(*(x if x is None else x.pin_memory() for x in inputs))  # type: ignore[arg-type]

    def inputs(self, number: int, batch: Inputs) -> list[Tensor | None]:
        """Features made and augmented on the model's device, targets, stochastic depth."""
        device = self.model.device
        here = Inputs(*(x if x is None else x.to(device, non_blocking=True) for x in batch))  # type: ignore[arg-type]
        waveforms, lengths = here.waveforms, here.lengths
        if here.speed is not None:
            # Equal widths for every batch and process: the transform that changes speeds is as long as its input.
            seconds = longest_seconds(self.recipe, self.model.config.front_end, scenes=False)
            width, samples = (round(x * self.plan.sample_rate) for x in (self.recipe.speed * seconds, seconds))
            waveforms = nn.functional.pad(waveforms, (0, width - waveforms.shape[1]))
            waveforms, lengths = change_speed(waveforms, lengths, here.speed, samples)
        if here.rooms is not None and self.noises is not None:
            waveforms, lengths = reverberate(waveforms, lengths, here.rooms, self.noises)
        features = self.augmented(number, batch_features(waveforms, lengths, self.model.config), here)
        return [features, here.targets, here.keep]

    def companions(self) -> dict[str, nn.Module]:
        """The averaged model."""
        return {} if self.averaged is None else {"averaged": self.averaged}

    def stepped(self, step: int) -> None:
        """The averaged weights follow."""
        if self.averaged is not None:
            self.averaged.follow(self.model, step)

    @property
    def kept(self) -> Encoder:
        """The model that is judged and kept: the averaged one, where there is one."""
        return self.model if self.averaged is None else self.averaged.model

    def weights(self) -> dict[str, Tensor]:
        """The kept model's."""
        return self.kept.state_dict()

    def share(self, number: int) -> float:
        """The share of a batch that this process works on."""
        return self.ranks.share(self.plan.size(number))

    def losses(self, inputs: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """The loss of one batch."""
        features, targets, keep = inputs
        assert features is not None
        assert targets is not None
        logits = self.model.classify(features, keep)
        return {"loss": losses.classification_loss(logits, targets, self.recipe.loss, self.recipe.label_smoothing)}

    def augmented(self, number: int, features: Tensor, draws: Inputs) -> Tensor:
        """Features of a batch, of another loudness and colour, masked, with noise and rolled, as the recipe says."""
        recipe = self.recipe
        if draws.response is not None:
            features = respond(features, draws.response, self.model.config.std)
        if draws.masks is not None:
            features = mask_stretches(features, draws.masks, recipe.freq_mask, recipe.time_mask, self.fill)
        if draws.rolls is not None:
            noise, clips = generator(recipe.seed, "noise", number, features.device), self.plan.size(number)
            features = noise_and_roll(features, draws.rolls, noise, clips, self.ranks.rows(clips))
        return features

    def validate(self, step: int) -> dict[str, float]:
        """Metrics on the held-out clips; where all folds share the choice, the answers are kept for it."""
        answers = self.judged.answers(self.kept)
        if self.recipe.choose == "folds":
            answers.save(epoch_file(self.folder, step // self.steps_per_epoch))
        found = answers.summary(self.recipe.loss, self.answer.multi_label)
        return {name: found[name] for name in self.validation_metrics}

    def score(self, step: int, metrics: dict[str, float]) -> float:
        """The recipe's metric, for ``folds`` averaged with that of earlier folds; later is better for ``last``."""
        if self.recipe.choose in ("last", "average"):
            return float(step)
        own = metrics[self.recipe.metric]
        if self.recipe.choose == "validation":
            return own
        epoch = step // self.steps_per_epoch
        return sum([*(scores[epoch][0] for scores in self.earlier), own]) / (len(self.earlier) + 1)

    def tie_break(self, step: int, metrics: dict[str, float]) -> float:
        """Of epochs with equal scores the one with the lower loss is better; averaged over folds as the score is."""
        if self.recipe.choose in ("last", "average"):
            return 0.0
        earlier = self.earlier if self.recipe.choose == "folds" else ()
        epoch = step // self.steps_per_epoch
        return -sum([*(scores[epoch][1] for scores in earlier), metrics["loss"]]) / (len(earlier) + 1)

    def test(self, model: Encoder) -> Answers:
        """The answers of the run's model to the test clips."""
        same = self.recipe.choose == "folds" or not self.fold.validation
        return (self.judged if same else self.judge(self.fold.test)).answers(model)
