"""Pretraining with transformers: masked patches named and drawn, as in ``ssamba pretrain``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from ssamba.inference.hf.modeling import SsambaBase
from ssamba.models.losses import OBJECTIVES
from ssamba.models.masking import cluster_masks
from ssamba.utils.errors import ConfigError

MASK_SEED = 0
"""Of the masks in evaluation: its losses can be compared."""


@dataclass
class SsambaForPreTrainingOutput(ModelOutput):
    """Scalars: the loss, and what the objective has of ``nce`` and ``accuracy`` (naming) and ``mse`` (drawing)."""

    loss: Tensor | None = None
    nce: Tensor | None = None
    accuracy: Tensor | None = None
    mse: Tensor | None = None


class SsambaForPreTraining(SsambaBase):
    """Log-mel features -> the losses of masked patches, with the pretraining heads."""

    with_heads = True
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - as in the base class
        r"^(encoder\.)?(extras|classifier)\."
    ]

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        masked_patches: Tensor | None = None,
        objective: str = "joint",
        return_loss: bool = True,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SsambaForPreTrainingOutput | tuple[Any, ...]:
        """The losses of ``input_values`` (B, frames, mel_bins).

        ``masked_patches`` (B, M): indices f * T + t of the patches to hide, the same for both heads. Without them
        ``config.masked`` of the patches are hidden in clusters, drawn for each head by itself from torch's global
        generator, and in evaluation always the same. Recordings of unequal length (``attention_mask``) are averaged by
        their number. ``objective``: joint, discriminative or generative. Raises ``ConfigError``.
        """
        if objective not in OBJECTIVES:
            raise ConfigError(f"objective '{objective}': choose one of {', '.join(OBJECTIVES)}")
        features, lengths = self._filled(input_values, attention_mask)
        config = self.config
        whole = (features.shape[1] - config.patch_time) // config.stride_time + 1
        counts = [whole] * len(features) if lengths is None else [self._columns(n) for n in lengths]
        if masked_patches is not None and len(set(counts)) > 1:
            raise ConfigError("masked_patches: give them for recordings of equal length, or leave them out")
        generator = self._generator() if self.training else torch.Generator().manual_seed(MASK_SEED)
        totals: dict[str, Tensor] = {}
        for n in sorted(set(counts)):
            rows = [i for i, count in enumerate(counts) if count == n]
            part = self._padded(features[rows], self._covered(n)) if lengths is not None else features
            for name, value in self._losses(part, n, masked_patches, objective, generator).items():
                totals[name] = totals.get(name, 0) + value * (len(rows) / len(counts))
        out = SsambaForPreTrainingOutput(**totals)
        return out if (config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    def _losses(
        self, features: Tensor, n: int, masked: Tensor | None, objective: str, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The losses of recordings of ``n`` columns."""
        grid = (self.config.grid[0], n)
        mask_a, mask_b = masked, None
        if mask_a is None:
            count = min(max(1, round(self.config.masked * grid[0] * n)), grid[0] * n - 1)
            mask_a, mask_b = (cluster_masks(len(features), grid, count, generator) for _ in range(2))
        keep = (None, None)
        if self.training and self.config.drop_path > 0:
            keep = tuple(self.encoder.draw_keep(len(features), generator) for _ in range(2))
        move = (None if x is None else x.to(self.device) for x in (mask_a, mask_b))
        losses: dict[str, Tensor] = self.encoder.losses(features.to(self.device), *move, objective, keep)
        return losses
