"""Run a classifier over a set and compute its metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssamba.audio.front_end import FrontEnd
from ssamba.data.examples import Example
from ssamba.data.loaders.audio_cache import MAX_UNPACKED, bytes_on_disk
from ssamba.data.loaders.labelled import LabelledBatch, LabelledLoader
from ssamba.data.loaders.workers import AudioCache, choose_workers
from ssamba.data.samplers.labelled import EvaluationPlan
from ssamba.data.scan import SkipList
from ssamba.evaluation import metrics
from ssamba.evaluation.calibration import HeldOut
from ssamba.models import losses
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.model_dir import load_tensors
from ssamba.training.features import batch_features
from ssamba.training.finetune.auto import FREE_FEATURE_BYTES
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.utils.progress import Bar
from ssamba.utils.tensor_file import read_header, write_tensors

FEATURE_BYTES = 4 << 30
"""Features of a set are kept on the model's device between evaluations when they are no larger."""
MIN_BATCH = 16
MIN_PROBABILITY = 1e-300
"""A mean probability that rounds to 0 would have the logit -inf, and 0 x -inf in the loss is no number."""
JOINED = 32
"""Parts of a result that are kept apart at most."""


@dataclass(frozen=True)
class ClassifierOutputs:
    """A classifier's outputs for a set, on the CPU.

    Attributes:
        logits: (N, classes), or (N, seconds, classes), float32; for windows, those of their mean probability.
        targets: (N, classes) float32, or (N, seconds) int64.
        examples: (N,) int64, numbers of the examples; unreadable ones are left out.
    """

    logits: Tensor
    targets: Tensor
    examples: Tensor

    def save(self, path: Path, epoch: int | None = None) -> None:
        """Write a safetensors file, with the epoch of the model where one is known."""
        tensors = {"logits": self.logits, "targets": self.targets, "examples": self.examples}
        write_tensors(path, tensors, {} if epoch is None else {"epoch": str(epoch)})

    @staticmethod
    def epoch_of(path: Path) -> int | None:
        """The epoch of stored outputs; None where the file names none. Raises ``CheckpointError``."""
        epoch = read_header(path).metadata.get("epoch", "")
        return int(epoch) if epoch.isdecimal() else None

    @classmethod
    def load(cls, path: Path) -> ClassifierOutputs:
        """The reverse of ``save``. Raises ``CheckpointError``."""
        tensors = load_tensors(path)
        return cls(tensors["logits"], tensors["targets"], tensors["examples"])

    def held_out(self) -> HeldOut:
        """Logits and class vectors (rows, classes), a row for each example, or for each labelled second."""
        logits, targets = self.logits, self.targets
        if logits.dim() == 3:
            seconds = min(logits.shape[1], targets.shape[1])
            labels, logits = targets[:, :seconds].flatten(), logits[:, :seconds].flatten(0, 1)
            logits, labels = logits[labels >= 0], labels[labels >= 0]
            targets = torch.nn.functional.one_hot(labels, logits.shape[1])
        return HeldOut(logits.numpy(), targets.numpy().astype("float64"))

    def rows(self, kind: str) -> tuple[metrics.Array, metrics.Array]:
        """Probabilities and class vectors of the rows of :meth:`held_out`."""
        squash = metrics.sigmoid if kind == "bce" else metrics.softmax
        logits, targets = self.held_out()
        return squash(logits), targets

    def summary(self, kind: str, multi_label: bool) -> dict[str, float]:
        """``loss``, ``mAP``, ``AUC`` and ``d_prime``, and with one label a row ``accuracy``."""
        scores, truth = self.rows(kind)
        out = {"loss": float(losses.classification_loss(self.logits, self.targets, kind))}
        if not multi_label:
            out["accuracy"] = metrics.accuracy(scores, truth)
        out["mAP"] = metrics.mean(metrics.average_precision(scores, truth))
        out["AUC"] = metrics.mean(metrics.auc(scores, truth))
        out["d_prime"] = metrics.d_prime(out["AUC"])
        return out


def longest_seconds(recipe: FinetuneRecipe, front_end: FrontEnd, scenes: bool) -> float:
    """Seconds of a clip that the model reads at once; of scenes whole ones, since they have a label each."""
    seconds = front_end.seconds_of_frames(recipe.frames)
    return float(math.floor(seconds)) if scenes else recipe.window or seconds


class Evaluation:
    """A set of examples to ask models about: features are made once where they are kept.

    Args:
        loader: its batches, in the examples' order.
        config: of the models, which decides the features.
        device: where the models are.
        loss: that the models are trained with: ``ce`` or ``bce``.
        keep: features stay on the device between evaluations.
        windows: how many there are, for the progress bar; 0 where that is not known.
    """

    def __init__(
        self, loader: LabelledLoader, config: Config, device: torch.device, loss: str, keep: bool, windows: int = 0
    ) -> None:
        self.loader, self.config, self.device, self.loss, self.keep = loader, config, device, loss, keep
        self.windows = windows
        self._kept: list[tuple[Tensor, LabelledBatch]] = []

    def _batches(self, label: str, step: Callable[[], None] | None = None) -> Iterator[tuple[Tensor, LabelledBatch]]:
        """Features and batches with a progress bar; ``step`` is called before each, and may raise to end it."""
        done = 0
        with Bar(label, "windows") as bar, contextlib.closing(self._features()) as batches:
            for features, batch in batches:
                if step is not None:
                    step()
                yield features, batch
                done += len(batch.keys)
                bar.update(done, max(done, self.windows))

    def _features(self) -> Generator[tuple[Tensor, LabelledBatch], None, None]:
        if self._kept:
            yield from self._kept
            return
        made = []
        for batch in self.loader:
            with torch.autocast(self.device.type, enabled=False):
                features = batch_features(batch.waveforms.to(self.device), batch.lengths.to(self.device), self.config)
            # A copy: a view would keep all samples of the batch in memory.
            pair = (features, batch._replace(waveforms=batch.waveforms[:0].clone()))
            if self.keep:
                made.append(pair)
            yield pair
        self._kept = made

    @torch.no_grad()
    def values(self, model: Encoder) -> tuple[Tensor, Tensor]:
        """What the classifier's linear layer reads of every window (N, values), and the windows' examples (N,).

        Both on the CPU, in the examples' order. The caller chooses evaluation mode and precision.
        """
        values: list[Tensor] = []
        examples: list[Tensor] = []
        for features, batch in self._batches("features for the classifier"):
            _add(values, model.classifier_values(features))
            _add(examples, batch.examples)
        return torch.cat(values).cpu(), torch.cat(examples)

    @torch.no_grad()
    def outputs(self, model: Encoder, step: Callable[[], None] | None = None) -> ClassifierOutputs:
        """The model's logits and the targets, in the examples' order. The caller chooses mode and precision.

        ``step`` is called before each batch; what it raises ends the evaluation, and nothing of it is kept.
        """
        logits: list[Tensor] = []
        targets: list[Tensor] = []
        examples: list[Tensor] = []
        for features, batch in self._batches("evaluating", step):
            _add(logits, model.classify(features).float())  # read below, all at once
            _add(targets, batch.targets)
            _add(examples, batch.examples)
        width = max(part.shape[1] for part in targets)
        all_targets = torch.cat([_widened(part, width) for part in targets])
        return by_example(torch.cat(logits).cpu(), all_targets, torch.cat(examples), self.loss)


def make_evaluation(
    examples: Sequence[Example],
    recipe: FinetuneRecipe,
    model: Encoder,
    cache: AudioCache | None,
    skip: SkipList,
    again: bool = True,
    most_windows: int = 0,
) -> Evaluation:
    """A set of examples for models like ``model``. With windows all headers are read here.

    ``again``: it is asked more than once, so features are kept where they fit. ``most_windows`` bounds the windows of a
    clip, 0 does not. Raises ``DataError`` as ``EvaluationPlan``.
    """
    assert model.classifier is not None
    seconds = longest_seconds(recipe, model.config.front_end, examples[0].per_second is not None)
    batch = recipe.eval_batch or max(recipe.batch, MIN_BATCH)
    workers = choose_workers(recipe.workers)
    rate = model.config.sample_rate
    plan = EvaluationPlan(examples, batch, seconds, bool(recipe.window), skip, workers, sample_rate=rate)
    if most_windows:
        plan.thin(most_windows)
    loader = LabelledLoader(plan, len(model.classifier.task.classes), workers, skip=skip)
    loader.cache = cache
    size = plan.steps * batch * model.config.frames * model.config.mel_bins * 4
    keep = again and may_keep(size, examples, recipe)
    return Evaluation(loader, model.config, model.device, recipe.loss, keep, plan.windows)


def may_keep(size: float, examples: Sequence[Example], recipe: FinetuneRecipe) -> bool:
    """Whether features of ``size`` bytes are kept: where the cache of audio is kept small, so are they.

    Hours of near silence in a few megabytes are not worth gigabytes: they are decoded again for each evaluation.
    """
    most = min(FEATURE_BYTES, recipe.cache_gb * 1e9) if 0 < recipe.cache_gb < 4 else FEATURE_BYTES
    if size > most or size <= FREE_FEATURE_BYTES:
        return size <= most
    on_disk = bytes_on_disk({part.path for example in examples for part in example.parts})
    return size <= FREE_FEATURE_BYTES + MAX_UNPACKED * on_disk


def _add(parts: list[Tensor], part: Tensor) -> None:
    """Append rows, joining those before now and then.

    Thousands of small tensors, each made between two large buffers, keep the allocator from using the memory of these
    again: 2 MB for each window.
    """
    parts.append(part)
    if len(parts) >= JOINED and len({p.shape[1:] for p in parts}) == 1:
        parts[:] = [torch.cat(parts)]


def _widened(targets: Tensor, width: int) -> Tensor:
    """Scenes of a shorter batch end in unlabelled seconds."""
    return torch.nn.functional.pad(targets, (0, width - targets.shape[1]), value=-1)


def by_example(logits: Tensor, targets: Tensor, examples: Tensor, kind: str) -> ClassifierOutputs:
    """The outputs of a set whose windows (W, classes) belong to ``examples`` (W,), one row for each example.

    Several windows of one become the logits of the mean of their probabilities, of ``kind`` ``ce`` or ``bce``.
    """
    known, place, count = examples.unique(return_inverse=True, return_counts=True)
    if len(known) == len(examples):
        return ClassifierOutputs(logits, targets, examples)
    scores = logits.double().sigmoid() if kind == "bce" else logits.double().softmax(dim=1)
    mean = (
        torch.zeros(len(known), logits.shape[1], dtype=torch.float64, device="cpu").index_add_(0, place, scores)
        / count[:, None]
    )
    first = torch.full((len(known),), len(examples), dtype=torch.int64, device="cpu").scatter_reduce_(
        0, place, torch.arange(len(place), device="cpu"), "amin"
    )
    merged = mean.logit(1e-12) if kind == "bce" else mean.clamp_min(MIN_PROBABILITY).log()
    return ClassifierOutputs(merged.float(), targets[first], known)
