"""``ssamba.load``: one way in for every kind of weights."""

from __future__ import annotations

import dataclasses
import os

import torch

from ssamba.inference.model import KINDS, Encoder
from ssamba.inference.rejection.file import read_rejection
from ssamba.models.pretrained.load import ModelSource, locate, read_model_source
from ssamba.models.pretrained.model_dir import build_as
from ssamba.models.pretrained.weights import DEFAULT
from ssamba.utils.device import pick_device, pick_dtype
from ssamba.utils.errors import CheckpointError


def load(
    source: ModelSource | None = None,
    device: str | torch.device = "auto",
    heads: bool = False,
    stride: int | None = None,
    frames: int | None = None,
    attention_heads: int | None = None,
    dtype: str | torch.dtype = "fp32",
) -> Encoder:
    """A model, ready to use (evaluation mode).

    ``source`` is a run directory, a converted model directory, an official SSAMBA or SSAST `.pth`, or a name: ``tiny``
    comes with the package and is the default, ``ssamba-{tiny,small,base}-{250,300,400}`` are the official checkpoints,
    downloaded once (docs/embedding.md). A name never means a path: give ``./tiny`` for a folder. ``heads`` keeps
    the two pretraining heads; a fine-tuned run comes with its classifier. ``stride`` (both axes) and ``frames`` (10 ms
    each) choose another patch grid: positions are resized as for fine-tuning. ``attention_heads`` is for an official
    SSAST of another width than the published. ``dtype`` is that of the weights and of all products: fp32, bf16, fp16,
    or auto, which is bf16 on a GPU that has it and fp32 elsewhere. Raises ``CheckpointError`` or ``ConfigError`` with
    one line that names the file.
    """
    chosen = pick_device(device)
    kind = pick_dtype(dtype, chosen)
    description, tensors = read_model_source(source, attention_heads)
    if heads and not description.heads:
        name = DEFAULT if source is None else source
        raise CheckpointError(f"{name}: has no pretraining heads: load it without heads=True")
    model = build_as(KINDS, dataclasses.replace(description, heads=heads), tensors)
    if stride is not None or frames is not None:
        model = model.with_grid(stride, frames)  # another grid, other features: nothing is known of unlike ones
    elif model.classifier is not None and (folder := locate(source)).is_dir():
        model.rejection = read_rejection(folder, model.classifier.linear.in_features)
    model.source = os.fspath(DEFAULT if source is None else source)
    return model.to(chosen, kind).eval()
