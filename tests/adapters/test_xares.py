"""The encoder of X-ARES: its conditions restated, and its own checker where that is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssamba.adapters import xares
from ssamba.utils.errors import AudioError, ConfigError


def test_an_encoder_says_what_it_is(folder: str, bats: str) -> None:
    encoder = xares.SsambaEncoder(folder, device="cpu")
    assert isinstance(encoder, nn.Module)
    assert type(encoder).__name__.endswith("Encoder")
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16000, 16, 40)
    assert xares.SsambaEncoder(folder, hop_ms=160, device="cpu").hop_size_in_ms == 160
    # Its programs import ssamba/adapters/xares.py as a module and take the only name of that ending.
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["SsambaEncoder"]
    assert xares.SsambaEncoder(bats, device="cpu").sampling_rate == 96000  # X-ARES resamples to it


@pytest.mark.parametrize("samples", [1, 800, 2561, 50000])
def test_a_batch_is_its_members_at_any_length(folder: str, samples: int) -> None:
    encoder = xares.SsambaEncoder(folder, device="cpu")
    audio = 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(samples))
    out = encoder(audio)
    assert out.dtype == torch.float32
    assert out.shape[::2] == (2, encoder.output_dim)
    seconds = samples / encoder.sampling_rate
    assert abs(out.shape[1] - 1000 * seconds / encoder.hop_size_in_ms) <= 1
    for row, expected in zip(audio, out, strict=True):
        torch.testing.assert_close(encoder(row[None])[0], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoder(row)[0], expected, rtol=1e-5, atol=1e-5)


def test_they_are_the_numbers_of_embed(folder: str, batch: Tensor) -> None:
    encoder = xares.SsambaEncoder(folder, device="cpu")
    expected = encoder.encoder.embed(list(batch), 16000, hop_ms=40).frames
    torch.testing.assert_close(encoder(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("audio", [torch.zeros(2, 3, 800), torch.zeros(0, 800), "x.wav", None, torch.zeros(1, 0)])
def test_other_audio_is_refused(folder: str, audio: Any) -> None:
    with pytest.raises(AudioError, match=r"give a tensor|holds no samples"):
        xares.SsambaEncoder(folder, device="cpu")(audio)


def test_bad_values_are_refused(folder: str, damaged: Tensor) -> None:
    with pytest.raises(AudioError, match="recording 2 of 2: holds NaN at sample 77"):
        xares.SsambaEncoder(folder, device="cpu")(damaged)
    with pytest.raises(ConfigError, match="hop is 33 ms"):
        xares.SsambaEncoder(folder, hop_ms=33)


@pytest.mark.skipif(
    importlib.util.find_spec("xares") is None or importlib.util.find_spec("loguru") is None,
    reason="xares, or loguru which it logs with, is not installed",
)
def test_the_checker_of_xares(folder: str) -> None:
    """Its file alone: the package imports torchaudio, whose wheels do not load beside a torch without CUDA."""
    found = importlib.util.find_spec("xares")
    assert found is not None
    assert found.submodule_search_locations is not None
    path = f"{next(iter(found.submodule_search_locations))}/audio_encoder_checker.py"
    spec = importlib.util.spec_from_file_location("audio_encoder_checker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.check_audio_encoder(xares.SsambaEncoder(folder, device="cpu")) is True
    assert module.check_audio_encoder(nn.Linear(1, 1)) is False
