"""CUDA graphs for inference: the same tokens, new weights seen, copies and moved models on their own."""

from __future__ import annotations

import copy

import pytest
import torch

from ssamba.inference.model import make_encoder
from ssamba.models.config import Config

CONFIG = Config(width=64, depth=4, frames=256)


@pytest.mark.parametrize("kind", ["ssamba", "ssast"])
def test_on_a_cpu_infer_is_encode(kind: str, rng: torch.Generator) -> None:
    model = make_encoder(CONFIG.replace(encoder=kind, depth=0).replace(depth=2)).eval()
    features = torch.randn(2, 64, 128, generator=rng)
    assert torch.equal(model.infer(features), model.encode(features))
    assert not model.infer(features).requires_grad
    assert copy.deepcopy(model)._graphed is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ssamba", "ssast"])
def test_replays_equal_encode(kind: str, rng: torch.Generator) -> None:
    model = make_encoder(CONFIG.replace(encoder=kind)).cuda().eval()
    for frames in (64, 160, 64, 64, 160, 160, 64):
        features = torch.randn(3, frames, 128, generator=rng).cuda()
        with torch.no_grad():
            expected = model.encode(features)
        found = model.infer(features)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    graphed = model._graphed
    assert graphed is not None
    assert len(graphed._graphs) == 2
    with torch.no_grad():
        model.norm.bias.add_(1.0)  # in place: the next replay sees it
    with torch.no_grad():
        torch.testing.assert_close(model.infer(features), model.encode(features), rtol=1e-5, atol=1e-5)
    model.bfloat16()  # moved: made anew
    model.infer(features)
    assert not graphed._graphs
    twin = copy.deepcopy(model)
    assert torch.equal(twin.infer(features), model.infer(features))


@pytest.mark.gpu
def test_only_so_many_graphs(rng: torch.Generator) -> None:
    model = make_encoder(CONFIG).cuda().eval()
    for frames in range(16, 16 * 13, 16):
        for _ in range(2):
            model.infer(torch.randn(1, frames, 128, generator=rng).cuda())
    assert model._graphed is not None
    assert len(model._graphed._graphs) == 8


@pytest.mark.gpu
def test_a_graph_made_in_inference_mode_serves_outside_of_it(rng: torch.Generator) -> None:
    model = make_encoder(CONFIG).cuda().eval()
    features = torch.randn(2, 64, 128, generator=rng).cuda()
    with torch.inference_mode():
        model.infer(features)
        expected = model.infer(features)
    assert torch.equal(model.infer(features), expected)
