"""Pretraining objectives: tensors in, scalars out (SSAST, arXiv 2110.09784, section 3; REFERENCE.md, "Pretraining")."""

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
