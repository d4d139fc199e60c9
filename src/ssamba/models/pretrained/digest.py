"""What an encoder computes, as a hash: two models with one hash give the same tokens."""

from __future__ import annotations

import hashlib
import json

import torch

from ssamba.models.encoder import Encoder


def model_key(model: Encoder) -> str:
    """A hash of what the encoder computes: configuration and weights, without heads and classifier."""
    digest = hashlib.blake2b(json.dumps(model.config.to_dict(), sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(("heads.", "classifier.")):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
