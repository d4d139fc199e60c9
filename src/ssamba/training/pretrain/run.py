"""Self-supervised pretraining: masked log-mel patches, named by one head and drawn by the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from ssamba.audio.front_end import PUBLISHED
from ssamba.data.loaders.gpu_resident import CropOffsets, ResidentAudio, ResidentLoader, resident_bytes
from ssamba.data.loaders.prefetch import prepare_ahead
from ssamba.data.loaders.pretraining import Batch, CropLoader, load_crops
from ssamba.data.loaders.workers import choose_workers
from ssamba.data.manifest import Clip, Source, read_sources
from ssamba.data.samplers.pretraining import PretrainPlan, centre_crops, split_validation
from ssamba.data.scan import SkipList, scan_sources
from ssamba.data.statistics import compute_statistics
from ssamba.models import masking
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.load import read_model_source
from ssamba.models.pretrained.model_dir import CONFIG_FILE, Description, build, describe_model, read_config, save_config
from ssamba.models.registry import make_encoder
from ssamba.training.augment.transforms import (
    change_speed,
    draw_mixing,
    draw_noises,
    draw_response,
    draw_rooms,
    mix_waveforms,
    repeat_short,
    respond,
    reverberate,
)
from ssamba.training.distributed import Ranks, joined
from ssamba.training.features import batch_features
from ssamba.training.loop import Loop, LoopSettings, Task, precision
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.training.pretrain.teacher_targets import AveragedModel, LatentHeads, latent_losses, targets
from ssamba.training.run_folder import RECIPE_FILE, check_same_data, check_same_recipe, skipped_file, write_recipe
from ssamba.training.run_state import STATE_FILE
from ssamba.training.schedule import CosineSchedule, PlateauSchedule, Schedule
from ssamba.training.seeds import generator
from ssamba.utils.atomic_write import clear_leftovers, make_folder
from ssamba.utils.errors import ConfigError, DataError
from ssamba.utils.progress import Bar

MAY_CHANGE = ("epochs", "steps", "workers", "save_minutes")
"""Values that a resumed run may be given anew: they do not change the steps, only how many and how they are fed."""
METRICS = {
    "joint": ("loss", "nce", "accuracy", "mse"),
    "discriminative": ("loss", "nce", "accuracy"),
    "generative": ("loss", "mse"),
}
STATISTICS_CLIPS = 1000
STEPS_AHEAD = 3
RESIDENT_BYTES = 4 << 30
"""Decoded audio kept on a GPU, where the whole set fits: 37 hours."""
CACHE_BYTES = 2 << 30
"""Decoded audio kept in memory between epochs: 18 hours."""


class Inputs(NamedTuple):
    """One step's audio and draws: waveforms (B, samples), lengths (B,), masks (B, M), stochastic depth, augmentation.

    With several masks for each clip, those of a clip follow one another.
    Where the set lies on the device, ``waveforms`` holds the crops' first samples (B,) and ``scale`` (B,) their scale.
    ``other``, ``level``, ``response`` and ``rooms`` are those of ``training.augment``, ``speed`` is the plan's.
    """

    waveforms: Tensor
    lengths: Tensor
    scale: Tensor | None
    mask_a: Tensor
    mask_b: Tensor | None
    keep_a: Tensor | None
    keep_b: Tensor | None
    other: Tensor | None
    level: Tensor | None
    response: Tensor | None
    speed: Tensor | None
    rooms: Tensor | None


class PretrainTask(Task):
    """Masked-patch pretraining as the training loop sees it."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        model: Encoder,
        plan: PretrainPlan,
        held_out: list[Clip],
        skip: SkipList,
        ranks: Ranks | None = None,
    ) -> None:
        self.recipe, self.model, self.plan, self.skip = recipe, model, plan, skip
        self.ranks = ranks or Ranks()
        # Clips that are mixed may be any two of the batch: then each process needs all of it.
        self.part = (0, 1) if recipe.mix else (self.ranks.rank, self.ranks.world)
        self.metrics = self.validation_metrics = METRICS[recipe.objective]
        self.averaged = AveragedModel(model, recipe.ema) if recipe.ema else None
        self.latent: LatentHeads | None = None
        if recipe.teaches:
            # Runs from before "contrast" was there go on with the columns that their logs have.
            self.metrics = (*self.metrics, "latent", "latent_clip", *(("contrast",) if recipe.contrast else ()))
            heads = LatentHeads(model.config.width, generator(recipe.seed, "latent heads"))
            self.latent = heads.to(model.device)
        self.batch_size = recipe.batch
        self.steps_per_epoch = plan.steps_per_epoch
        self.total_steps = recipe.steps or max(1, math.ceil(recipe.epochs * plan.crops_per_epoch / recipe.batch))
        self.sample_rate = plan.sample_rate
        self.noises: Tensor | None = None
        if recipe.reverb:
            noises = draw_noises(generator(recipe.seed, "rooms' noises"), self.sample_rate)
            self.noises = noises.to(model.device)
        self.resident: ResidentAudio | None = None
        if model.device.type == "cuda" and resident_bytes(plan.clips, self.sample_rate) <= RESIDENT_BYTES:
            with Bar("decoding all recordings once") as bar:
                self.resident = ResidentAudio(plan.clips, model.device, bar.update, self.sample_rate)
        if not self.ranks.main:
            return
        specs = centre_crops(held_out[: recipe.validation_clips], plan.crop_seconds, self.sample_rate)
        waveforms, lengths = load_crops(specs, skip, choose_workers(recipe.workers), self.sample_rate)
        if recipe.short_clips == "repeat":
            waveforms, lengths = repeat_short(waveforms, lengths)
        parts = zip(waveforms.split(recipe.batch), lengths.split(recipe.batch), strict=True)
        self.validation = torch.cat([batch_features(w, n, model.config) for w, n in parts])
        self.validation_masks = self._masks(len(self.validation), "validation", 0, recipe.hidden_in_validation)

    def _masks(self, batch: int, purpose: str, step: int, count: int) -> tuple[Tensor, Tensor | None]:
        """The masks of one step's passes."""
        recipe, grid = self.recipe, self.model.config.grid

        def draw(index: int) -> Tensor:
            source = generator(recipe.seed, f"{purpose} mask {index}", step)
            if recipe.mask_kind == "frame":
                return masking.frame_masks(batch, grid, count, source)
            return masking.cluster_masks(batch, grid, count, source, recipe.reference_quirks)

        two = recipe.objective == "joint" and recipe.passes == 2
        return draw(0), draw(1) if two else None

    def batches(self, start: int) -> Iterator[Inputs]:
        """The steps' inputs, decoded and drawn ahead."""
        if self.resident is not None:
            offsets = ResidentLoader(self.plan, self.resident, start, self.total_steps, self.skip, self.part)
            return prepare_ahead(offsets, self._prepare, STEPS_AHEAD)
        loader = CropLoader(
            self.plan,
            workers=choose_workers(self.recipe.workers),
            start_step=start,
            stop_step=self.total_steps,
            skip=self.skip,
            cache_bytes=CACHE_BYTES,
            part=self.part,
        )
        return prepare_ahead(loader, self._prepare, STEPS_AHEAD)

    def _prepare(self, batch: Batch | CropOffsets) -> Inputs:
        """What a step needs besides the waveforms; masks and stochastic depth depend on (seed, step) alone.

        They are drawn for the whole batch, of which this process takes its rows.
        """
        clips, each = self.recipe.batch, self.recipe.masks_per_clip
        rows = self.ranks.rows(clips)
        masked = slice(rows.start * each, rows.stop * each)
        mask_a, mask_b = self._masks(clips * each, "training", batch.step, self.recipe.mask)
        drop = generator(self.recipe.seed, "stochastic depth", batch.step)
        keeps = (self.model.draw_keep(clips * each, drop), self.model.draw_keep(clips * each, drop))
        keep_a, keep_b = (None if keep is None else keep[:, masked].contiguous() for keep in keeps)
        mask_a, mask_b = mask_a[masked], None if mask_b is None else mask_b[masked]
        if isinstance(batch, CropOffsets):
            waveforms, lengths, scale = batch.first, batch.lengths, batch.scale
        else:
            waveforms, lengths, scale = batch.waveforms, batch.lengths, None
            if self.recipe.short_clips == "repeat":
                waveforms, lengths = repeat_short(waveforms, lengths)
        drawn = self._augmentation(clips, rows, batch.step)
        inputs = Inputs(waveforms, lengths, scale, mask_a, mask_b, keep_a, keep_b, *drawn)
        if self.model.device.type != "cuda":
            return inputs
        # From pinned memory the copies to the GPU run beside its work, and nobody waits for them.
        return Inputs(*(x if x is None else x.pin_memory() for x in inputs))  # type: ignore[arg-type]

    def _augmentation(self, clips: int, rows: slice, step: int) -> list[Tensor | None]:
        """One step's draws of mixing, frequency response, speed and rooms, None for what the recipe leaves out.

        The response is for the process's own rows; speed and rooms are for all that it hears.
        """
        recipe = self.recipe
        other, level, response, speed, rooms = None, None, None, None, None
        heard = slice(None) if recipe.mix else rows
        if recipe.mix:
            other, level = draw_mixing(clips, recipe.mix, generator(recipe.seed, "mixing", step))
        if recipe.gain_db or recipe.response_db:
            source = generator(recipe.seed, "response", step)
            response = draw_response(clips, recipe.gain_db, recipe.response_db, self.model.config.mel_bins, source)
            response = response[rows]
        if recipe.speed > 1:
            speed = torch.from_numpy(self.plan.speeds(step))[heard].contiguous()
        if recipe.reverb:
            rooms = draw_rooms(clips, recipe.reverb, self.sample_rate, generator(recipe.seed, "rooms", step))
            rooms = rooms[:, heard].contiguous()
        return [other, level, response, speed, rooms]

    def inputs(self, number: int, batch: Inputs) -> list[Tensor | None]:
        """Features (B, frames, mel_bins), masks and stochastic depth of each pass, on the model's device.

        Last come the features that the averaged model hears, where they are others.
        """
        config, device = self.model.config, self.model.device
        here = Inputs(*(x if x is None else x.to(device, non_blocking=True) for x in batch))  # type: ignore[arg-type]
        waveforms, lengths = here.waveforms, here.lengths
        if self.resident is not None and here.scale is not None:
            samples, repeat = round(self.plan.read_seconds * self.sample_rate), self.recipe.short_clips == "repeat"
            waveforms = self.resident.cut(waveforms, lengths, here.scale, samples, repeat)
            lengths = torch.full_like(lengths, samples) if repeat else lengths
        if here.speed is not None:
            samples = round(self.plan.crop_seconds * self.sample_rate)
            waveforms, lengths = change_speed(waveforms, lengths, here.speed, samples)
        rows = self.ranks.rows(len(lengths)) if here.other is not None else slice(None)
        clean = batch_features(waveforms[rows], lengths[rows], config) if self.recipe.clean_targets else None
        if here.rooms is not None and self.noises is not None:
            waveforms, lengths = reverberate(waveforms, lengths, here.rooms, self.noises)
        if here.other is not None and here.level is not None:
            waveforms, lengths = mix_waveforms(waveforms, lengths, here.other, here.level)
        features = batch_features(waveforms[rows], lengths[rows], config)
        if here.response is not None:
            features = respond(features, here.response, config.std)
        return [features, here.mask_a, here.mask_b, here.keep_a, here.keep_b, clean]

    def share(self, number: int) -> float:
        """The share of a batch that this process works on."""
        return self.ranks.share(self.recipe.batch)

    def losses(self, inputs: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """One step's losses."""
        recipe = self.recipe
        features, mask_a, mask_b, keep_a, keep_b, clean = inputs
        assert features is not None
        assert mask_a is not None
        seen: list[masking.MaskedForward] = []
        masked = features.repeat_interleave(recipe.masks_per_clip, dim=0) if recipe.masks_per_clip > 1 else features
        out = self.model.losses(masked, mask_a, mask_b, recipe.objective, (keep_a, keep_b), seen)
        if self.latent is not None and self.averaged is not None:
            wanted = targets(self.averaged.model, features if clean is None else clean, recipe.latent_layers)
            found = latent_losses(self.latent, seen[0], mask_a, wanted, recipe.views, recipe.contrast > 0)
            for name, value in found.items():
                out["loss"] = out["loss"] + getattr(recipe, name) * value
            out |= found
        return out

    def companions(self) -> dict[str, nn.Module]:
        """The averaged model, and the heads that predict its tokens."""
        found = {"averaged": self.averaged, "latent": self.latent}
        return {name: module for name, module in found.items() if module is not None}

    def stepped(self, step: int) -> None:
        """The averaged weights follow."""
        if self.averaged is not None:
            self.averaged.follow(self.model, step)

    @property
    def judged(self) -> Encoder:
        """The model that validation judges and the run keeps: the averaged one, where there is one."""
        return self.model if self.averaged is None else self.averaged.model

    def weights(self) -> dict[str, Tensor]:
        """The judged model's."""
        return self.judged.state_dict()

    def validate(self, step: int) -> dict[str, float]:
        """Losses on the held-out clips with fixed masks, averaged over clips."""
        sums = dict.fromkeys(self.validation_metrics, 0.0)
        mask_a, mask_b = self.validation_masks
        for start in range(0, len(self.validation), self.recipe.batch):
            rows = slice(start, start + self.recipe.batch)
            features = self.validation[rows]
            losses = self.judged.losses(
                features, mask_a[rows], None if mask_b is None else mask_b[rows], self.recipe.objective
            )
            for key, value in losses.items():
                sums[key] += float(value) * len(features)
        return {k: v / len(self.validation) for k, v in sums.items()}

    def score(self, step: int, metrics: dict[str, float]) -> float:
        """The accuracy of naming patches; for the generative objective, less error."""
        return metrics.get("accuracy", -metrics["loss"])


def pretrain(
    data: list[str],
    out: Path,
    recipe: PretrainRecipe,
    source: str | None = None,
    device: str = "auto",
) -> None:
    """Pretrain on ``data`` into the run directory ``out``, or go on with the run that is there.

    ``data`` are folders, manifests or files, each with an optional weight (docs/data.md). ``source`` is a run or an
    official checkpoint to start from: it decides the size, the recipe's ``frames`` the grid. The directory then holds
    config.json and model.safetensors (best by validation), state.safetensors (for resume), log.csv, tensorboard/,
    recipe.yaml, state.json and skipped.csv. One of several processes that torchrun or ``--devices`` has started takes
    its part of each batch (docs/pretraining.md). Raises ``SsambaError`` for what the user can mend, and after Ctrl-C
    ``Interrupted``.
    """
    with joined(device) as (ranks, chosen):
        _pretrain(data, out, recipe, source, chosen, ranks)


def _pretrain(
    data: list[str], out: Path, recipe: PretrainRecipe, source: str | None, chosen: torch.device, ranks: Ranks
) -> None:
    if recipe.batch < ranks.world:
        raise ConfigError(f"batch: {recipe.batch} clips for {ranks.world} processes, give one to each at least")
    if recipe.views > 1 and recipe.batch % (recipe.views * ranks.world):
        raise ConfigError(
            f"batch: {recipe.batch} clips for {ranks.world} processes; with {recipe.views} views of each, give a "
            f"multiple of {recipe.views * ranks.world}"
        )
    listed = read_sources(data)
    make_folder(out)
    resuming = (out / STATE_FILE).exists()
    if resuming:
        # A cosine ends with the run: with more steps, those before would have had another rate.
        free = [name for name in MAY_CHANGE if recipe.schedule == "plateau" or name not in ("epochs", "steps")]
        check_same_recipe(out, recipe, source, tuple(free))
    elif (out / CONFIG_FILE).exists() and not (out / RECIPE_FILE).exists():
        raise ConfigError(f"{out}: holds a model that is no pretraining run; choose another --out")
    ranks.wait()  # nobody writes before all have looked
    if ranks.main:
        clear_leftovers(out)
    skip = SkipList(skipped_file(out, ranks.rank))
    sources = _scan(listed, skip)
    training, held_out = split_validation(sources, fraction=recipe.validation, seed=recipe.seed)
    if not held_out:
        raise DataError(f"{data[0]}: one file alone leaves none for validation; give two or more")
    front_end = recipe.config().front_end
    plan = PretrainPlan(
        training,
        recipe.batch,
        recipe.seed,
        front_end.seconds_of_frames(recipe.frames),
        views=recipe.views,
        view_shift=recipe.view_shift,
        speed=recipe.speed,
        sample_rate=front_end.sample_rate,
    )
    if resuming:
        check_same_data(out, plan.fingerprint)
        model = make_encoder(read_config(out).config, heads=True)
    else:
        model = _new_model(recipe, training, source, skip)
    task = PretrainTask(recipe, model.to(chosen), plan, held_out, skip, ranks)
    if not resuming and ranks.main:
        save_config(out, describe_model(model))
        write_recipe(out, recipe.to_dict(), source, list(data), plan.fingerprint)
    loop = Loop(
        task,
        out,
        torch.optim.AdamW(
            [*model.parameters(), *(task.latent.parameters() if task.latent is not None else ())],
            lr=recipe.lr,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
            fused=chosen.type == "cuda",
        ),
        _schedule(recipe, task.total_steps),
        LoopSettings(
            recipe.validate_every,
            recipe.log_every,
            recipe.save_minutes,
            recipe.clip_norm,
            keep_last=recipe.keep == "last",
        ),
        precision(recipe.precision, chosen),
        ranks,
    )
    loop.run()


def _schedule(recipe: PretrainRecipe, total_steps: int) -> Schedule:
    if recipe.schedule == "cosine":
        return CosineSchedule(recipe.lr, recipe.warmup_steps, recipe.warmup_every, total_steps)
    return PlateauSchedule(recipe.lr, recipe.warmup_steps, recipe.warmup_every, recipe.patience, recipe.lr_decay)


def _scan(sources: list[Source], skip: SkipList) -> list[Source]:
    with Bar("reading lengths") as bar:
        return scan_sources(sources, skip, progress=bar.update)


def _new_model(recipe: PretrainRecipe, training: list[Source], source: str | None, skip: SkipList) -> Encoder:
    first = generator(recipe.seed, "weights")
    if source is None:
        model = make_encoder(recipe.config(), heads=True, generator=first)
    else:
        model = _from_source(recipe, source, first)
    if recipe.statistics == "measure" or (source is None and not model.config.front_end.same_bands(PUBLISHED)):
        with Bar("measuring log-mel statistics") as bar:
            measured = compute_statistics(
                training,
                model.config.front_end,
                max_clips=STATISTICS_CLIPS,
                seed=recipe.seed,
                skip=skip,
                progress=bar.update,
            )
        model.config = model.config.replace(mean=measured.mean, std=measured.std)
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
