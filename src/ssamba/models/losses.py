"""Objectives of pretraining and fine-tuning: tensors in, scalars out.

Pretraining's are SSAST's (arXiv 2110.09784, section 3; REFERENCE.md, "Pretraining" and "Fine-tuning").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OBJECTIVES = ("joint", "discriminative", "generative")
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
    """Mean squared error between drawn and raw patches."""
    return F.mse_loss(prediction_BMp.float(), target_BMp.float())


def classification(logits: Tensor, targets: Tensor, kind: str = "ce", smoothing: float = 0.0) -> Tensor:
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
