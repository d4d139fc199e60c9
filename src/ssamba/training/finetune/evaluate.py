"""Asking a model about every example of a set once, and how well it answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssamba.audio.front_end import FrontEnd
from ssamba.data.examples import Example
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.loaders.labelled import LabelledBatch, LabelledLoader
from ssamba.data.loaders.workers import choose_workers
from ssamba.data.samplers.labelled import EvaluationPlan
from ssamba.data.scan import SkipList
from ssamba.evaluation import metrics
from ssamba.models import losses
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.model_dir import load_tensors, save_tensors
from ssamba.training.features import batch_features
from ssamba.training.finetune.recipe import FinetuneRecipe

FEATURE_BYTES = 4 << 30
"""Features of a set are kept on the model's device between evaluations when they are no larger."""
LEAST_BATCH = 16


@dataclass(frozen=True)
class Answers:
    """What a model said of a set, on the CPU.

    Attributes:
        logits: (N, classes), or (N, seconds, classes), float32; for windows, those of their mean probability.
        targets: (N, classes) float32, or (N, seconds) int64.
        examples: (N,) int64, numbers of the examples; unreadable ones are left out.
    """

    logits: Tensor
    targets: Tensor
    examples: Tensor

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_tensors(path, {"logits": self.logits, "targets": self.targets, "examples": self.examples})

    @classmethod
    def load(cls, path: Path) -> Answers:
        """The reverse of ``save``. Raises ``CheckpointError``."""
        tensors = load_tensors(path)
        return cls(tensors["logits"], tensors["targets"], tensors["examples"])

    def rows(self, kind: str) -> tuple[metrics.Array, metrics.Array]:
        """Probabilities and class vectors (rows, classes), a row for each example, or for each labelled second."""
        logits, targets = self.logits, self.targets
        if logits.dim() == 3:
            seconds = min(logits.shape[1], targets.shape[1])
            labels, logits = targets[:, :seconds].flatten(), logits[:, :seconds].flatten(0, 1)
            logits, labels = logits[labels >= 0], labels[labels >= 0]
            targets = torch.nn.functional.one_hot(labels, logits.shape[1])
        squash = metrics.sigmoid if kind == "bce" else metrics.softmax
        return squash(logits.numpy()), targets.numpy().astype("float64")

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
    """A set of examples to be judged again and again: features are made once where they fit into memory."""

    def __init__(
        self,
        examples: Sequence[Example],
        recipe: FinetuneRecipe,
        config: Config,
        classes: int,
        device: torch.device,
        cache: AudioCache | None,
        skip: SkipList,
        again: bool = True,
    ) -> None:
        seconds = longest_seconds(recipe, config.front_end, examples[0].per_second is not None)
        batch = recipe.eval_batch or max(recipe.batch, LEAST_BATCH)
        workers = choose_workers(recipe.workers)
        self.plan = EvaluationPlan(
            examples, batch, seconds, bool(recipe.window), skip, workers, sample_rate=config.sample_rate
        )
        self.loader = LabelledLoader(self.plan, classes, workers, skip=skip)
        self.loader.cache = cache
        self.config, self.device, self._kind = config, device, recipe.loss
        self._keep = self.plan.steps * batch * config.frames * config.mel_bins * 4 <= _feature_bytes(recipe)
        self._keep = self._keep and again
        self._kept: list[tuple[Tensor, LabelledBatch]] = []

    def _batches(self) -> Iterator[tuple[Tensor, LabelledBatch]]:
        if self._kept:
            yield from self._kept
            return
        made = []
        for batch in self.loader:
            with torch.autocast(self.device.type, enabled=False):
                features = batch_features(batch.waveforms.to(self.device), batch.lengths.to(self.device), self.config)
            pair = (features, batch._replace(waveforms=batch.waveforms[:0]))
            if self._keep:
                made.append(pair)
            yield pair
        self._kept = made

    @torch.no_grad()
    def values(self, model: Encoder) -> tuple[Tensor, Tensor]:
        """What the classifier's linear layer reads of every window (N, values), and the windows' examples (N,).

        Both on the CPU, in the examples' order. The caller chooses evaluation mode and precision.
        """
        values, examples = [], []
        for features, batch in self._batches():
            values.append(model.classifier_values(features))
            examples.append(batch.examples)
        return torch.cat(values).cpu(), torch.cat(examples)

    @torch.no_grad()
    def answers(self, model: Encoder) -> Answers:
        """The model's answers, in the examples' order. The caller chooses evaluation mode and precision."""
        logits, batches = [], []
        for features, batch in self._batches():
            logits.append(model.classify(features).float())  # read below, all at once
            batches.append(batch)
        examples = torch.cat([b.examples for b in batches])
        width = max(b.targets.shape[1] for b in batches)
        targets = torch.cat([_widened(b.targets, width) for b in batches])
        return _by_example(torch.cat(logits).cpu(), targets, examples, self._kind)


def _feature_bytes(recipe: FinetuneRecipe) -> float:
    """Where the cache of audio is kept small, so are the features."""
    return min(FEATURE_BYTES, recipe.cache_gb * 1e9) if 0 < recipe.cache_gb < 4 else FEATURE_BYTES


def _widened(targets: Tensor, width: int) -> Tensor:
    """Scenes of a shorter batch end in unlabelled seconds."""
    return torch.nn.functional.pad(targets, (0, width - targets.shape[1]), value=-1)


def _by_example(logits: Tensor, targets: Tensor, examples: Tensor, kind: str) -> Answers:
    """Windows of one example become one row: logits of the mean of their probabilities."""
    known, place, count = examples.unique(return_inverse=True, return_counts=True)
    if len(known) == len(examples):
        return Answers(logits, targets, examples)
    scores = logits.double().sigmoid() if kind == "bce" else logits.double().softmax(dim=1)
    mean = torch.zeros(len(known), logits.shape[1], dtype=torch.float64).index_add_(0, place, scores) / count[:, None]
    first = torch.full((len(known),), len(examples)).scatter_reduce_(0, place, torch.arange(len(place)), "amin")
    return Answers((mean.logit(1e-12) if kind == "bce" else mean.log()).float(), targets[first], known)
