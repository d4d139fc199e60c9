"""Losses of pretraining and fine-tuning (tensors in, scalars out), and the table of pretraining objectives.

Pretraining's are SSAST's (arXiv 2110.09784, section 3; docs/reference.md, "Pretraining" and "Fine-tuning"). A new
objective is a class with the members of ``Objective``, in a module of its own, and a row in ``OBJECTIVES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.models.heads import PretrainingHeads
from ssamba.models.masking import MaskedPasses

GENERATIVE_WEIGHT = 10.0
"""Weight of the mean squared error in the joint loss."""


def info_nce(prediction_BMp: Tensor, target_BMp: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE over the masked patches of each clip: (loss, accuracy).

    logits[i, j] = target_i . prediction_j; the loss is -mean of the diagonal of log-softmax over j; the accuracy counts
    the j whose highest log-softmax value over i lies on the diagonal.
    """
    # Mixed precision would round the products of this one matrix, whose differences are the loss.
    with torch.autocast(prediction_BMp.device.type, enabled=False):
        logits_Bij = target_BMp.float() @ prediction_BMp.float().transpose(1, 2)
    log_probability_Bij = logits_Bij.log_softmax(dim=2)
    loss = -log_probability_Bij.diagonal(dim1=1, dim2=2).mean()
    best_Bj = log_probability_Bij.argmax(dim=1)
    hits = best_Bj == torch.arange(best_Bj.shape[1], device=best_Bj.device)
    return loss, hits.float().mean()


def reconstruction(prediction_BMp: Tensor, target_BMp: Tensor) -> Tensor:
    """Mean squared error between predicted and raw patches."""
    return F.mse_loss(prediction_BMp.float(), target_BMp.float())


def classification_loss(logits: Tensor, targets: Tensor, kind: str = "ce", smoothing: float = 0.0) -> Tensor:
    """Softmax (``ce``) or sigmoid (``bce``) cross entropy of logits (B, classes) with class vectors (B, classes).

    Logits (B, seconds, classes) go with class numbers (B, seconds): softmax, averaged over the seconds that have a
    label (not below 0) and an answer. Class vectors may be mixed. For ``ce``, ``smoothing`` of each class vector is
    shared out to all classes evenly (arXiv 1512.00567).
    """
    logits = logits.float()
    if logits.dim() == 3:
        seconds = min(logits.shape[1], targets.shape[1])
        labels = targets[:, :seconds].flatten()
        rows = logits[:, :seconds].flatten(0, 1)
        each = F.cross_entropy(rows, labels.clamp_min(0), reduction="none", label_smoothing=smoothing)
        labelled = labels >= 0
        return (each * labelled).sum() / labelled.sum().clamp_min(1)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


class Objective(Protocol):
    """What the pretraining heads are trained for."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scalars that ``losses`` gives, in the order of a log, ``loss`` first."""

    @property
    def uses_two_masks(self) -> bool:
        """Whether there may be a second pass with a mask of its own."""

    def losses(self, heads: PretrainingHeads, passes: MaskedPasses) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is what is minimised. Passes are run as they are asked for."""

    def score(self, metrics: Mapping[str, float]) -> float:
        """How good a model with these validation metrics is: the more, the better."""


class Joint:
    """InfoNCE of one pass and 10 times the mean squared error of another, or of the same without a second mask."""

    metrics = ("loss", "nce", "accuracy", "mse")
    uses_two_masks = True

    def losses(self, heads: PretrainingHeads, passes: MaskedPasses) -> dict[str, Tensor]:
        """See ``Objective``."""
        tokens, raw = passes.first()
        nce, accuracy = info_nce(heads.discriminative(tokens), raw)
        tokens, raw = passes.second()
        mse = reconstruction(heads.generative(tokens), raw)
        return {"nce": nce, "accuracy": accuracy, "mse": mse, "loss": nce + GENERATIVE_WEIGHT * mse}

    def score(self, metrics: Mapping[str, float]) -> float:
        """The accuracy of the discriminative head."""
        return metrics["accuracy"]


class Discriminative:
    """InfoNCE alone: which raw patch of the clip belongs at which masked place."""

    metrics = ("loss", "nce", "accuracy")
    uses_two_masks = False

    def losses(self, heads: PretrainingHeads, passes: MaskedPasses) -> dict[str, Tensor]:
        """See ``Objective``."""
        tokens, raw = passes.first()
        nce, accuracy = info_nce(heads.discriminative(tokens), raw)
        return {"nce": nce, "accuracy": accuracy, "loss": nce}

    def score(self, metrics: Mapping[str, float]) -> float:
        """The accuracy of the discriminative head."""
        return metrics["accuracy"]


class Generative:
    """The mean squared error of reconstruction alone."""

    metrics = ("loss", "mse")
    uses_two_masks = False

    def losses(self, heads: PretrainingHeads, passes: MaskedPasses) -> dict[str, Tensor]:
        """See ``Objective``."""
        tokens, raw = passes.second()
        mse = reconstruction(heads.generative(tokens), raw)
        return {"mse": mse, "loss": mse}

    def score(self, metrics: Mapping[str, float]) -> float:
        """The less error, the better."""
        return -metrics["loss"]


OBJECTIVES: Mapping[str, Objective] = {
    "joint": Joint(),
    "discriminative": Discriminative(),
    "generative": Generative(),
}
"""The objectives of pretraining by name."""
