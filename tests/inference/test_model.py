"""The public models: networks with the methods that take recordings, copied and stored like any module."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ssamba
from ssamba.inference.model import KINDS, Encoder, make_encoder
from ssamba.models import encoder, registry
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.decoder import Decoder
from ssamba.models.pretrained.model_dir import save_model
from ssamba.models.token_chain import TokenChain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["ssamba", "ssast"])
def model(request: pytest.FixtureRequest) -> Encoder:
    config = Config(encoder=request.param, width=64, depth=2, frames=64, decoder_depth=2)
    return make_encoder(config, heads=True, classification=Classification(("dog", "rain"))).eval()


def noise() -> Tensor:
    return 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))


def test_kinds(model: Encoder) -> None:
    assert isinstance(model, (ssamba.SSAMBA, ssamba.SSAST))
    assert isinstance(model, ssamba.Encoder)
    assert isinstance(model, encoder.Encoder)
    assert isinstance(model, registry.KINDS[model.config.encoder])
    assert set(KINDS) == set(registry.KINDS)
    assert isinstance(model.with_grid(frames=96), type(model))


def test_weights_are_those_of_the_network_alone(model: Encoder) -> None:
    alone = registry.make_encoder(model.config, True, Classification(("dog", "rain")))
    ours, theirs = model.state_dict(), alone.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_decoder_is_a_chain_without_patches(model: Encoder) -> None:
    assert isinstance(model.decoder, Decoder)
    chain = model.decoder.chain
    assert isinstance(chain, TokenChain)
    assert not isinstance(chain, encoder.Encoder)
    tokens = {name for name, _ in model.named_parameters() if name.endswith("_token") and "." not in name}
    assert {name.split(".")[0] for name in chain.state_dict()} == {"positions", "norm", model.chain} | tokens


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_copies_compute_the_same_and_are_independent(model: Encoder, way: str) -> None:
    expected, scores = model.embed(noise()), model.predict(noise())[0].scores
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    elif way == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        twin = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert type(twin) is type(model)
    assert twin._graphed is None
    assert torch.equal(twin.embed(noise()).patches, expected.patches)
    assert torch.equal(twin.predict(noise())[0].scores, scores)
    with torch.no_grad():
        twin.norm.bias.add_(1.0)
    assert not torch.equal(twin.embed(noise()).patches, expected.patches)
    assert torch.equal(model.embed(noise()).patches, expected.patches)


def test_state_dicts_go_from_one_to_the_other(model: Encoder, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = make_encoder(
        model.config, True, Classification(("dog", "rain")), generator=torch.Generator().manual_seed(9)
    ).eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(other.embed(noise()).patches, model.embed(noise()).patches)
    save_model(tmp_path / "model", model)
    loaded = ssamba.load(tmp_path / "model", device="cpu", heads=True)
    assert type(loaded) is type(model)
    assert torch.equal(loaded.embed(noise()).patches, model.embed(noise()).patches)
