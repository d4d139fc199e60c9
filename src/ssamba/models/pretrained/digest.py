"""What an encoder computes, as a hash: two models with one hash give the same tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ssamba.models.config import Config
from ssamba.models.encoder import Encoder


def model_key(model: Encoder) -> str:
    """A hash of what the encoder computes: configuration and weights, without heads and classifier."""
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith(("heads.", "classifier."))}
    return tensors_key(model.config, tensors)


def tensors_key(config: Config, tensors: Mapping[str, Tensor]) -> str:
    """A hash of a configuration and all of ``tensors``."""
    digest = hashlib.blake2b(json.dumps(config.to_dict(), sort_keys=True).encode(), digest_size=16)
    add_tensors(digest, tensors)
    return digest.hexdigest()


def add_tensors(digest: hashlib.blake2b, tensors: Mapping[str, Tensor]) -> None:
    """Add names, shapes, types and bytes of tensors to a hash, by name."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
