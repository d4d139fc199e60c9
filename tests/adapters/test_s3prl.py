"""The upstream of s3prl: its conditions restated, and its own classes where that is installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.adapters import s3prl
from ssamba.utils.errors import AudioError, CheckpointError, ConfigError

LAYERS = 2
"""Pairs of blocks of the model in miniature."""


@pytest.mark.parametrize("hop", [10, 40, 160])
def test_states_of_all_layers_each_recording_as_alone(folder: str, unequal: list[Tensor], hop: int) -> None:
    upstream = s3prl.ssamba(folder, hop_ms=hop).eval()
    rate = upstream.get_downsample_rates("hidden_states")
    assert type(rate) is int
    assert rate == 16 * hop
    with torch.no_grad():
        out = upstream(unequal)
    states = out["hidden_states"]
    assert len(states) == LAYERS
    assert out["last_hidden_state"] is states[-1]
    longest = -(-max(map(len, unequal)) // rate)
    assert {x.shape for x in states} == {torch.Size([len(unequal), longest, 16])}
    for i, wav in enumerate(unequal):
        frames = -(-len(wav) // rate)
        with torch.no_grad():
            alone = upstream([wav])["hidden_states"]
        for state, single in zip(states, alone, strict=True):
            assert single.shape == (1, frames, 16)
            torch.testing.assert_close(state[i, :frames], single[0], rtol=1e-5, atol=1e-5)
            assert not state[i, frames:].any()


def test_the_last_layer_is_what_embed_gives(folder: str, batch: Tensor) -> None:
    upstream = s3prl.UpstreamExpert(folder).eval()
    with torch.no_grad():
        out = upstream(list(batch))
    expected = upstream.encoder.embed(list(batch), 16000, hop_ms=40).frames
    n = expected.shape[1]
    assert out["last_hidden_state"].shape[1] in (n, n + 1)
    torch.testing.assert_close(out["last_hidden_state"][:, :n], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["last_hidden_state"][:, -1], expected[:, -1], rtol=1e-5, atol=1e-5)


def test_layers_are_those_of_the_encoder(folder: str) -> None:
    """Of a recording of whole patches, in one pass."""
    upstream = s3prl.UpstreamExpert(folder, hop_ms=160).eval()
    audio = 0.1 * torch.randn(400 + 160 * 47, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = upstream([audio])["hidden_states"]
        layers = upstream.encoder.encode_layers(upstream.encoder.features(audio, 16000))
    for state, tokens in zip(states, layers, strict=True):
        torch.testing.assert_close(state[0, :3], tokens[0, 1:].unflatten(0, (8, 3)).mean(dim=0), rtol=1e-5, atol=1e-5)


def test_an_upstream_can_be_trained(folder: str, unequal: list[Tensor]) -> None:
    upstream = s3prl.UpstreamExpert(folder).train()
    upstream(unequal)["last_hidden_state"].square().sum().backward()
    gradient = upstream.encoder.patch_embed.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("wavs", [[], "x.wav", [torch.zeros(2, 800)], [torch.zeros(0)], ["x.wav"], torch.zeros(800)])
def test_other_audio_is_refused(folder: str, wavs: Any) -> None:
    with pytest.raises(AudioError, match=r"give |holds no samples"):
        s3prl.UpstreamExpert(folder)(wavs)


def test_bad_models_and_values_are_refused(folder: str, bats: str, damaged: Tensor) -> None:
    with pytest.raises(ConfigError, match="reads audio of 96000 Hz, and s3prl gives 16000"):
        s3prl.UpstreamExpert(bats)
    with pytest.raises(ConfigError, match="hop is 41 ms"):
        s3prl.UpstreamExpert(folder, hop_ms=41)
    with pytest.raises(CheckpointError, match="nowhere"):
        s3prl.UpstreamExpert("nowhere.pth")
    with pytest.raises(AudioError, match="recording 2 of 2: holds NaN"):
        s3prl.UpstreamExpert(folder)(list(damaged))


needs_s3prl = pytest.mark.skipif(importlib.util.find_spec("s3prl") is None, reason="s3prl is not installed")


def module_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A file of s3prl by itself: its packages import torchaudio, which does not load beside a torch without CUDA."""
    found = importlib.util.find_spec("s3prl")
    assert found is not None
    assert found.submodule_search_locations is not None
    helper = ModuleType("s3prl.utility.helper")
    helper.show = print  # type: ignore[attr-defined]
    hub = ModuleType("s3prl.hub")
    hub.ssamba = s3prl.ssamba  # type: ignore[attr-defined] # the name that a hubconf.py would add
    package = ModuleType("s3prl")
    package.hub = hub  # type: ignore[attr-defined]
    for key, module in (("s3prl", package), ("s3prl.hub", hub), ("s3prl.utility.helper", helper)):
        monkeypatch.setitem(sys.modules, key, module)
    utility = ModuleType("s3prl.util.pseudo_data")
    utility.get_pseudo_wavs = lambda: [torch.randn(16000), torch.randn(32000)]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "s3prl.util", ModuleType("s3prl.util"))
    monkeypatch.setitem(sys.modules, "s3prl.util.pseudo_data", utility)
    path = f"{next(iter(found.submodule_search_locations))}/{name}"
    spec = importlib.util.spec_from_file_location("s3prl_file_alone", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_s3prl
@pytest.mark.parametrize("hop", [40, 160])
def test_s3prl_s_upstream_and_featurizer(folder: str, hop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = module_alone("nn/upstream.py", monkeypatch)
    model = upstreams.S3PRLUpstream("ssamba", path_or_url=folder, extra_conf={"hop_ms": hop}).eval()
    assert (model.num_layers, model.hidden_sizes, model.downsample_rates) == (2, [16] * 2, [16 * hop] * 2)
    wavs = 0.1 * torch.randn(4, 40001, generator=torch.Generator().manual_seed(0))
    for lengths in ([40001, 33333, 2561, 800], [801, 700, 1, 640], [300, 200, 100, 1]):
        with torch.no_grad():
            states, sizes = model(wavs[:, : max(lengths)], torch.tensor(lengths))
        assert sizes[0].tolist() == [-(-n // (16 * hop)) for n in lengths]
        assert states[0].shape == (4, max(sizes[0]), 16)
    featurizer = upstreams.Featurizer(model)
    weighted, lengths_of = featurizer(states, sizes)
    assert weighted.shape == states[0].shape
    assert torch.equal(lengths_of, sizes[0])


@needs_s3prl
def test_s3prl_s_older_featurizer(folder: str, unequal: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces = module_alone("upstream/interfaces.py", monkeypatch)
    upstream = s3prl.UpstreamExpert(folder)
    featurizer = interfaces.Featurizer(upstream, "hidden_states", "cpu")
    assert (featurizer.layer_num, featurizer.output_dim, featurizer.downsample_rate) == (2, 16, 640)
    with torch.no_grad():
        found = featurizer(unequal, upstream(unequal))
    assert [len(x) for x in found] == [round(len(wav) / 640) for wav in unequal]
