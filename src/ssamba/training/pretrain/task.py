"""Pretraining as the training loop sees it: batches, masks, augmentation, losses, validation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssamba.data.loaders.gpu_resident import CropOffsets, ResidentAudio, ResidentLoader
from ssamba.data.loaders.prefetch import prepare_ahead
from ssamba.data.loaders.pretraining import Batch, CropLoader
from ssamba.data.loaders.workers import choose_workers
from ssamba.data.samplers.pretraining import PretrainPlan
from ssamba.data.scan import SkipList
from ssamba.models import masking
from ssamba.models.encoder import Encoder, masked_losses
from ssamba.models.losses import OBJECTIVES
from ssamba.training.augment.pipeline import Augment, Draws
from ssamba.training.augment.transforms import repeat_short
from ssamba.training.distributed import DistContext
from ssamba.training.features import batch_features
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.training.pretrain.teacher_targets import LatentHeads, active_losses, predict, teacher_targets
from ssamba.training.seeds import torch_generator
from ssamba.training.task import ACTIVATIONS, Task, clip_activations
from ssamba.training.tensors import TensorGroup
from ssamba.utils.errors import ConfigError
from ssamba.utils.graph_capture import compiler_problem

STEPS_AHEAD = 3
CACHE_BYTES = 2 << 30
"""Decoded audio kept in memory between epochs: 18 hours."""


@dataclass
class PretrainBatch(TensorGroup):
    """One step's audio and draws, for the rows of one process.

    With several masks for each clip, those of a clip follow one another.

    Attributes:
        waveforms: (B, samples); where the set lies on the device, the crops' first samples (B,).
        lengths: (B,) samples.
        scale: (B,) of crops on the device, else None.
        mask_a, mask_b: (B, M) masked patches of the passes; without ``mask_b`` there is one pass.
        keep_a, keep_b: stochastic depth of the passes.
        draws: of augmentation.
    """

    waveforms: Tensor
    lengths: Tensor
    scale: Tensor | None
    mask_a: Tensor
    mask_b: Tensor | None
    keep_a: Tensor | None
    keep_b: Tensor | None
    draws: Draws


@dataclass
class PretrainInputs(TensorGroup):
    """What the losses take: features (B, frames, mel_bins), and the passes' masks and stochastic depth.

    ``clean_features`` are those that the teacher sees, where they are others.
    """

    features: Tensor
    mask_a: Tensor
    mask_b: Tensor | None = None
    keep_a: Tensor | None = None
    keep_b: Tensor | None = None
    clean_features: Tensor | None = None

    def of_clips(self, clips: slice, masks_per_clip: int) -> PretrainInputs:
        """Those of some clips of the batch."""
        masked = slice(clips.start * masks_per_clip, clips.stop * masks_per_clip)
        mask_b, keep_a, keep_b, clean = self.mask_b, self.keep_a, self.keep_b, self.clean_features
        return PretrainInputs(
            self.features[clips],
            self.mask_a[masked],
            None if mask_b is None else mask_b[masked],
            None if keep_a is None else keep_a[:, masked],
            None if keep_b is None else keep_b[:, masked],
            None if clean is None else clean[clips],
        )


@dataclass(frozen=True)
class ValidationSet:
    """Held-out clips: normalised features (N, frames, mel_bins) on the model's device, and fixed masks (N, M)."""

    features: Tensor
    mask_a: Tensor
    mask_b: Tensor | None


def draw_masks(
    recipe: PretrainRecipe, grid: tuple[int, int], batch: int, purpose: str, step: int, count: int
) -> tuple[Tensor, Tensor | None]:
    """Masks (batch, count) of one step's passes; the second is None with one pass."""

    def draw(index: int) -> Tensor:
        source = torch_generator(recipe.seed, f"{purpose} mask {index}", step)
        if recipe.mask_kind == "frame":
            return masking.frame_masks(batch, grid, count, source)
        return masking.cluster_masks(batch, grid, count, source, recipe.reference_quirks)

    two = OBJECTIVES[recipe.objective].uses_two_masks and recipe.passes == 2
    return draw(0), draw(1) if two else None


def choose_pass_clips(recipe: PretrainRecipe, model: Encoder) -> int:
    """Clips of a forward and backward pass.

    What the recipe says, or on a processor as many as keep at most ``ACTIVATIONS`` bytes for the backward pass, or the
    whole batch: on a GPU, and where a loss reads all clips of the batch at once.
    """
    if recipe.clips_per_pass or recipe.needs_teacher or model.device.type != "cpu":
        return min(recipe.batch, recipe.clips_per_pass or recipe.batch)
    config = model.config
    blocks = config.depth + config.decoder_depth
    of_clip = clip_activations(config.width, blocks, math.prod(config.grid) + 1) * recipe.masks_per_clip
    two = OBJECTIVES[recipe.objective].uses_two_masks and recipe.passes == 2
    return max(1, min(recipe.batch, int(ACTIVATIONS / (of_clip * (2 if two else 1)))))


class PretrainTask(Task[PretrainBatch, PretrainInputs]):
    """Masked-patch pretraining.

    Args:
        recipe: its values.
        model: an encoder with heads, on its device.
        plan: the order of the crops.
        skip: where unreadable files are noted.
        validation: the held-out clips; only the first process needs them.
        resident: the whole set on the model's device, or None to decode as it is needed.
        dist: this process among those of the run.

    Raises ``ConfigError`` where the recipe asks for ``torch.compile`` and that does not work.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        model: Encoder,
        plan: PretrainPlan,
        skip: SkipList,
        validation: ValidationSet | None = None,
        resident: ResidentAudio | None = None,
        dist: DistContext | None = None,
    ) -> None:
        super().__init__(model, recipe.ema, dist)
        self.recipe, self.plan, self.skip = recipe, plan, skip
        self.validation, self.resident = validation, resident
        self._masked_losses = masked_losses
        if recipe.compile:
            reason = compiler_problem(model.device)
            if reason is not None:
                raise ConfigError(f"compile: torch.compile does not work here ({reason}); leave it out")
            self._masked_losses = torch.compile(masked_losses, dynamic=False)
        self.objective, self.teacher_losses = OBJECTIVES[recipe.objective], active_losses(recipe)
        self.validation_metrics = self.objective.metrics
        self.metrics = (*self.objective.metrics, *(loss.name for loss in self.teacher_losses))
        self.progress = (*self.objective.metrics, "val_accuracy", "lr")
        self.latent: LatentHeads | None = None
        if recipe.needs_teacher:
            heads = LatentHeads(model.config.width, torch_generator(recipe.seed, "latent heads"))
            self.latent = heads.to(model.device)
        self.batch_size = recipe.batch
        self.pass_clips = choose_pass_clips(recipe, model)
        self.steps_per_epoch = plan.steps_per_epoch
        self.total_steps = recipe.steps or max(1, math.ceil(recipe.epochs * plan.crops_per_epoch / recipe.batch))
        samples = round(plan.crop_seconds * plan.sample_rate)
        self.augment = Augment(recipe, recipe.seed, model.config, model.device, samples)

    def clips_in_batch(self, number: int) -> int:
        """Every batch is full."""
        return self.recipe.batch

    def batches(self, start: int) -> Iterator[PretrainBatch]:
        """The steps' batches, decoded and drawn ahead."""
        part = (0, 1) if self.augment.needs_whole_batch else (self.dist.rank, self.dist.world)
        if self.resident is not None:
            offsets = ResidentLoader(self.plan, self.resident, start, self.total_steps, self.skip, part)
            return prepare_ahead(offsets, self._prepare, STEPS_AHEAD)
        loader = CropLoader(
            self.plan,
            workers=choose_workers(self.recipe.workers),
            start_step=start,
            stop_step=self.total_steps,
            skip=self.skip,
            cache_bytes=CACHE_BYTES,
            part=part,
        )
        return prepare_ahead(loader, self._prepare, STEPS_AHEAD)

    def _prepare(self, batch: Batch | CropOffsets) -> PretrainBatch:
        """A step's audio with its draws, which are made for the whole batch; this process takes its rows."""
        recipe, each, step = self.recipe, self.recipe.masks_per_clip, batch.step
        rows = self.dist.rows(recipe.batch)
        masked = slice(rows.start * each, rows.stop * each)
        mask_a, mask_b = draw_masks(recipe, self.model.config.grid, recipe.batch * each, "training", step, recipe.mask)
        drop = torch_generator(recipe.seed, "stochastic depth", step)
        keeps = [self.model.draw_keep(recipe.batch * each, drop) for _ in range(2)]
        keep_a, keep_b = (None if keep is None else keep[:, masked].contiguous() for keep in keeps)
        if isinstance(batch, CropOffsets):
            waveforms, lengths, scale = batch.first, batch.lengths, batch.scale
        else:
            waveforms, lengths, scale = batch.waveforms, batch.lengths, None
            if recipe.short_clips == "repeat":
                waveforms, lengths = repeat_short(waveforms, lengths)
        # Where speeds change, the plan has chosen them: it reads crops as long as they need.
        speeds = torch.from_numpy(self.plan.speeds(step)) if recipe.speed > 1 else None
        draws = self.augment.draws(step, recipe.batch, rows, speeds)
        mask_b = None if mask_b is None else mask_b[masked]
        return self.pinned(PretrainBatch(waveforms, lengths, scale, mask_a[masked], mask_b, keep_a, keep_b, draws))

    def inputs(self, number: int, batch: PretrainBatch) -> PretrainInputs:
        """Features made and augmented on the model's device, masks and stochastic depth of each pass."""
        here, config = batch.to(self.model.device), self.model.config
        waveforms, lengths = self._waveforms(here)
        waveforms, lengths = self.augment.apply_speed(waveforms, lengths, here.draws)
        rows = self.dist.rows(self.recipe.batch)
        # Mixing has needed the whole batch: from here on the rows of this process alone.
        part = rows if self.augment.needs_whole_batch else slice(None)
        clean = batch_features(waveforms[part], lengths[part], config) if self.recipe.clean_targets else None
        waveforms, lengths = self.augment.apply_to_waveforms(waveforms, lengths, here.draws)
        features = batch_features(waveforms[part], lengths[part], config)
        features = self.augment.apply_to_features(features, here.draws, number, self.recipe.batch, rows)
        return PretrainInputs(features, here.mask_a, here.mask_b, here.keep_a, here.keep_b, clean)

    def _waveforms(self, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
        """A batch's crops (B, samples) and lengths (B,), cut out of the set where that lies on the device."""
        if self.resident is None or batch.scale is None:
            return batch.waveforms, batch.lengths
        samples, repeat = round(self.plan.read_seconds * self.plan.sample_rate), self.recipe.short_clips == "repeat"
        waveforms = self.resident.cut(batch.waveforms, batch.lengths, batch.scale, samples, repeat)
        return waveforms, torch.full_like(batch.lengths, samples) if repeat else batch.lengths

    @property
    def splits(self) -> bool:
        """Whether a batch takes several passes."""
        rows = self.dist.rows(self.recipe.batch)
        return self.pass_clips < rows.stop - rows.start

    def passes(self, inputs: PretrainInputs) -> Iterator[tuple[PretrainInputs, float]]:
        """The batch by ``pass_clips`` clips. Every loss that allows it is a mean over clips."""
        clips, each = len(inputs.features), self.recipe.masks_per_clip
        for start in range(0, clips, self.pass_clips):
            rows = slice(start, start + self.pass_clips)
            part = inputs if self.pass_clips >= clips else inputs.of_clips(rows, each)
            yield part, len(part.features) / clips

    def losses(self, inputs: PretrainInputs) -> dict[str, Tensor]:
        """The objective's scalars and those of additional losses, whose weighted sum is ``loss``."""
        recipe, features = self.recipe, inputs.features
        masked = features.repeat_interleave(recipe.masks_per_clip, dim=0) if recipe.masks_per_clip > 1 else features
        keeps = (inputs.keep_a, inputs.keep_b)
        out, passes = self._masked_losses(self.model, masked, inputs.mask_a, inputs.mask_b, recipe.objective, keeps)
        if self.latent is not None and self.ema is not None:
            whole = features if inputs.clean_features is None else inputs.clean_features
            targets = teacher_targets(self.ema.model, whole, recipe.latent_layers)
            predictions = predict(self.latent, passes[0], inputs.mask_a, targets, recipe.views)
            for name, loss, _ in self.teacher_losses:
                out[name] = loss(predictions)
                out["loss"] = out["loss"] + getattr(recipe, name) * out[name]
        return out

    def auxiliary_modules(self) -> dict[str, nn.Module]:
        """The averaged model, and the heads that predict its tokens."""
        return super().auxiliary_modules() | ({} if self.latent is None else {"latent": self.latent})

    def validate(self, step: int) -> dict[str, float]:
        """Losses on the held-out clips with fixed masks, averaged over clips."""
        assert self.validation is not None
        features, mask_a, mask_b = self.validation.features, self.validation.mask_a, self.validation.mask_b
        sums = dict.fromkeys(self.validation_metrics, 0.0)
        for start in range(0, len(features), self.recipe.batch):
            self.check_stop()
            rows = slice(start, start + self.recipe.batch)
            two = None if mask_b is None else mask_b[rows]
            losses = self.eval_model.losses(features[rows], mask_a[rows], two, self.recipe.objective)
            for key, value in losses.items():
                sums[key] += float(value) * len(features[rows])
        return {k: v / len(features) for k, v in sums.items()}

    def score(self, step: int, metrics: dict[str, float]) -> float:
        """The objective's."""
        return self.objective.score(metrics)
