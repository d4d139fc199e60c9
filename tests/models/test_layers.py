"""Tokens after each step of an encoder's chain."""

from __future__ import annotations

import pytest
import torch

from ssamba.models.config import Config
from ssamba.models.registry import make_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("kind", "layers"), [("ssamba", 3), ("ssast", 6)])
def test_layers_are_those_of_shorter_chains(kind: str, layers: int) -> None:
    config = Config(encoder=kind, width=32, depth=6, frames=64)
    model = make_encoder(config).eval()
    features = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = model.encode(features)
        out = model.encode_layers(features)
        assert model.n_layers == len(out) == layers
        assert torch.equal(out[-1], tokens)
        assert all(x.shape == tokens.shape for x in out)
        # A chain cut off behind a step ends with that step's tokens, normed.
        chain = getattr(model, "pairs" if kind == "ssamba" else "blocks")
        for n in range(1, layers):
            del chain[layers - n]
            expected = model.norm(model.norm(out[-1 - n])) if kind == "ssamba" else model.norm(out[-1 - n])
            torch.testing.assert_close(model.encode(features), expected)
