"""The two pretraining heads: contrastive (``discriminative``, InfoNCE) and reconstruction (``generative``, MSE)."""

from __future__ import annotations

import math

import torch
from torch import Generator, nn

from ssamba.models.config import Config
from ssamba.ops.linear_layer.module import LinearLayer
from ssamba.utils.torch_defaults import of_new_weights


class PretrainingHeads(nn.Module):
    """Two MLPs d -> d -> patch values (docs/reference.md, "Pretraining")."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.width
        self.discriminative = nn.Sequential(
            LinearLayer(d, d, **of_new_weights()), nn.ReLU(), LinearLayer(d, config.patch_size, **of_new_weights())
        )
        self.generative = nn.Sequential(
            LinearLayer(d, d, **of_new_weights()), nn.ReLU(), LinearLayer(d, config.patch_size, **of_new_weights())
        )

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """PyTorch's default weights, biases 0, from an explicit generator."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()
