"""Models for transformers around ssamba's encoders: the plain classes with the fast kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssamba.inference import model as models
from ssamba.inference.hf.configuration import SsambaConfig
from ssamba.inference.hf.plain import modeling_ssamba as plain
from ssamba.models import ssast
from ssamba.models.bimamba import MambaPair
from ssamba.models.block_pair import BLOCKS, BlockPair, InferencePlan, PairWeights, ResidualState
from ssamba.models.classifier import Classification
from ssamba.models.pretrained.model_dir import WEIGHTS_FILE, load_tensors
from ssamba.models.pretrained.tensor_checks import check_tensors
from ssamba.models.pretrained.transformers_files import MODEL_MAP
from ssamba.utils.errors import ConfigError
from ssamba.utils.torch_defaults import weights_in


class CheckpointedPair(MambaPair):
    """A pair whose activations transformers can have computed again in the backward pass."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def forward(
        self,
        state: ResidualState,
        drop_scale_KB: Tensor | None = None,
        inplace: bool = False,
        fuse_next_norm: bool = False,
        plan: InferencePlan | None = None,
        next_pair: BlockPair | None = None,
        prepared: Mapping[BlockPair, PairWeights] | None = None,
    ) -> ResidualState:
        """As ``BlockPair``."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return super().forward(state, drop_scale_KB, inplace, fuse_next_norm, plan, next_pair, prepared)

        def step(
            x_BLd: Tensor, stream_BLd: Tensor | None, drop_scale_KB: Tensor | None
        ) -> tuple[Tensor, Tensor | None]:
            out = MambaPair.forward(self, ResidualState(x_BLd, stream_BLd), drop_scale_KB)
            return out.x_BLd, out.stream_BLd

        return ResidualState(*self._gradient_checkpointing_func(step, state.x_BLd, state.stream_BLd, drop_scale_KB))


class CheckpointedBlock(ssast.Block):
    """A block of SSAST, as ``CheckpointedPair``."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def forward(self, x_BLd: Tensor, keep_2B: Tensor | None) -> Tensor:
        """As ``Block``."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return super().forward(x_BLd, keep_2B)
        out: Tensor = self._gradient_checkpointing_func(super().forward, x_BLd, keep_2B)
        return out


class CheckpointedSSAMBA(models.SSAMBA):
    """``ssamba.SSAMBA`` of pairs that can be checkpointed."""

    def _make_layers(self) -> None:
        super()._make_layers()
        self.pairs = nn.ModuleList(CheckpointedPair(self.config) for _ in range(self.config.depth // BLOCKS))


class CheckpointedSSAST(models.SSAST):
    """``ssamba.SSAST`` of blocks that can be checkpointed."""

    def _make_layers(self) -> None:
        super()._make_layers()
        self.blocks = nn.ModuleList(CheckpointedBlock(self.config) for _ in range(self.config.depth))


CHECKPOINTED: dict[str, type[models.Encoder]] = {"ssamba": CheckpointedSSAMBA, "ssast": CheckpointedSSAST}
"""The class of each kind of encoder."""


class SsambaBase(plain.SsambaPreTrainedModel):
    """What all models share: ssamba's encoder in ``encoder``, and its folders."""

    config_class = SsambaConfig
    _no_split_modules = ["CheckpointedPair", "CheckpointedBlock"]  # noqa: RUF012 - as in the base class
    with_heads = False
    """Whether the encoder has its pretraining heads."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises ``CheckpointError`` for weights that are damaged or that no model has."""
        path = Path(str(pretrained_model_name_or_path)) / WEIGHTS_FILE
        local = path.exists()
        if local:
            check_tensors(load_tensors(path), path)  # transformers knows no digest, and would cast other types
        made = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if not local:
            model = made[0] if isinstance(made, tuple) else made
            values = {k: v for k, v in model.state_dict().items() if v.device.type == "cpu" and v.is_floating_point()}
            check_tensors(values, pretrained_model_name_or_path)
        return made

    def make_encoder(self, config: Any, task: dict[str, Any] | None) -> models.Encoder:
        """The encoder of ssamba. Its dtype is torch's default one, by which transformers asks for it."""
        wanted = None if task is None else Classification.from_dict(task, "config.json")
        with weights_in(torch.get_default_dtype()):
            return CHECKPOINTED[config.encoder](config.to_ssamba(), self.with_heads, wanted)

    def fresh_encoder(self) -> models.Encoder:
        """An encoder of the same form on the CPU with new weights, drawn from torch's global generator."""
        with torch.device("cpu"):
            encoder: models.Encoder = self.make_encoder(self.config, self.task)
            encoder.reset_parameters(self._generator())
        return encoder

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, remote_code: bool = True, **kwargs: Any
    ) -> None:
        """As in transformers; ``ssamba.load`` reads the folder, too.

        With ``remote_code`` modules in plain torch are written into the folder, with which ``trust_remote_code=True``
        loads it where ssamba is not installed; they are many times slower. ``preprocessor_config.json`` is written
        where there is none.
        """
        if remote_code:
            self.config.auto_map = dict(MODEL_MAP)
        else:
            self.config.__dict__.pop("auto_map", None)
        if Path(save_directory).is_file():
            raise ConfigError(f"{save_directory}: is a file; give a folder")
        super().save_pretrained(save_directory, *args, **{**kwargs, "max_shard_size": "1TB"})  # ssamba reads one file


class SsambaModel(SsambaBase, plain.SsambaModel):
    """Log-mel features -> tokens and their mean (docs/huggingface.md)."""


class SsambaForAudioClassification(SsambaBase, plain.SsambaForAudioClassification):
    """Log-mel features -> class logits, the scores of ``predict`` (docs/huggingface.md)."""

    error = ConfigError
