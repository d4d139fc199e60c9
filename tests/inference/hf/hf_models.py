"""What the tests of ``ssamba.hf`` share besides fixtures: class names, and models whose weights all differ."""

from __future__ import annotations

import torch

from ssamba.inference.model import Encoder

CLASSES = ("cat", "dog", "rain")


def shaken(model: Encoder, seed: int = 3) -> Encoder:
    """The model with weights that differ in all places, none of them at its initial value."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return model.eval()
