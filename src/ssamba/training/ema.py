"""An exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ssamba.models.encoder import Encoder


class EmaModel(nn.Module):
    """A copy of an encoder with averaged weights: mean <- decay * mean + (1 - decay) * weights.

    Early on, when a long mean would still be mostly the initial weights, the decay is (1 + step) / (10 + step).
    """

    def __init__(self, model: Encoder, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    def train(self, mode: bool = True) -> EmaModel:
        """Stays in evaluation mode: averaged weights have no stochastic depth."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: Encoder, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], 1 - decay)
