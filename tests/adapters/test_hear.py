"""The common API of HEAR: its conditions restated, and its validator where that is installed."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssamba.adapters import hear
from ssamba.utils.errors import AudioError, CheckpointError, ConfigError, SsambaError


def test_a_model_says_its_rate_and_sizes(folder: str) -> None:
    model = hear.load_model(folder)
    assert isinstance(model, nn.Module)
    assert model.sample_rate in {16000, 22050, 44100, 48000}
    assert type(model.scene_embedding_size) is int is type(model.timestamp_embedding_size)
    assert (model.scene_embedding_size, model.timestamp_embedding_size) == (16, 16)


def test_without_a_path_it_is_the_model_in_the_package(batch: Tensor, one_thread: None) -> None:
    model = hear.load_model()
    assert hear.get_scene_embeddings(batch[:1], model).shape == (1, 192)


@pytest.mark.parametrize(("sounds", "seconds"), [(2, 1.07), (2, 1.98), (2, 4.0), (16, 2.0), (8, 3.74)])
def test_timestamps_are_even_close_and_inside(folder: str, sounds: int, seconds: float) -> None:
    model = hear.load_model(folder)
    audio = 2 * torch.rand(sounds, int(seconds * model.sample_rate), generator=torch.Generator().manual_seed(1)) - 1
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == times.dtype == torch.float32
    assert embeddings.shape == (*times.shape, model.timestamp_embedding_size)
    assert len(times) == sounds
    steps = np.diff(times.numpy().astype(np.float64))
    assert np.abs(steps - 40).max() < 1e-3
    assert 0 < float(times.min()) < 100
    assert 1000 * seconds - 50 <= float(times.max()) <= 1000 * seconds


def test_timestamps_do_not_drift(folder: str) -> None:
    _, times = hear.get_timestamp_embeddings(torch.zeros(1, 16000 * 300), hear.load_model(folder, hop_ms=160))
    n = np.arange(times.shape[1])
    np.testing.assert_array_equal(times[0].double().numpy(), 87.5 + 160 * n)


@pytest.mark.parametrize("samples", [1, 399, 400, 560, 2000, 16000, 33700])
def test_a_batch_is_its_members_at_any_length(folder: str, samples: int) -> None:
    model = hear.load_model(folder)
    audio = 0.1 * torch.randn(3, samples, generator=torch.Generator().manual_seed(samples))
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.dtype == torch.float32
    assert embeddings.shape[1] >= 1
    for i in range(3):
        alone, at = hear.get_timestamp_embeddings(audio[i : i + 1], model)
        torch.testing.assert_close(alone[0], embeddings[i], rtol=1e-5, atol=1e-5)
        assert torch.equal(at[0], times[i])
        torch.testing.assert_close(
            hear.get_scene_embeddings(audio[i : i + 1], model)[0], scenes[i], rtol=1e-5, atol=1e-5
        )


def test_they_are_the_numbers_of_embed(folder: str, batch: Tensor) -> None:
    model = hear.load_model(folder)
    dense = model.encoder.embed(list(batch), 16000, hop_ms=40)
    embeddings, times = hear.get_timestamp_embeddings(batch, model)
    n = embeddings.shape[1]
    torch.testing.assert_close(embeddings, dense.frames[:, :n], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(times[0].double(), 1000 * dense.times[:n], rtol=0, atol=1e-3)
    plain = model.encoder.embed(list(batch), 16000)
    torch.testing.assert_close(hear.get_scene_embeddings(batch, model), plain.clip, rtol=1e-5, atol=1e-5)
    coarse, _ = hear.get_timestamp_embeddings(batch, hear.load_model(folder, hop_ms=160))
    torch.testing.assert_close(coarse, embeddings[:, ::4], rtol=1e-5, atol=1e-5)


def test_scenes_of_rows_of_patches(folder: str, batch: Tensor) -> None:
    model = hear.load_model(folder, pool="rows")
    found = hear.get_scene_embeddings(batch, model)
    assert found.shape == (3, model.scene_embedding_size) == (3, 2 * 8 * 16)
    patches = model.encoder.embed(list(batch), 16000).patches  # (B, F, T, d)
    expected = torch.cat([patches.mean(dim=2).flatten(1), patches.std(dim=2, correction=0).flatten(1)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("audio", "problem"),
    [
        (torch.zeros(8000), r"shape \(8000,\): give a tensor \(n_sounds, n_samples\)"),
        (torch.zeros(0, 8000), "no recording"),
        (torch.zeros(2, 0), "recording 1 of 2: holds no samples"),
        (torch.zeros(2, 8000, 2), r"shape \(2, 8000, 2\)"),
        ("sound.wav", "'sound.wav': give a tensor"),
        ([[0.0] * 800], "give a tensor"),
    ],
)
def test_other_audio_is_refused_in_one_line(folder: str, audio: Any, problem: str) -> None:
    model = hear.load_model(folder)
    for call in (hear.get_timestamp_embeddings, hear.get_scene_embeddings):
        with pytest.raises(AudioError, match=problem) as raised:
            call(audio, model)
        assert "\n" not in str(raised.value)


def test_bad_values_and_models_are_refused(folder: str, bats: str, damaged: Tensor) -> None:
    with pytest.raises(AudioError, match="recording 2 of 2: holds NaN at sample 77"):
        hear.get_scene_embeddings(damaged, hear.load_model(folder))
    with pytest.raises(ConfigError, match="reads audio of 96000 Hz"):
        hear.load_model(bats)
    with pytest.raises(ConfigError, match="hop is 30 ms"):
        hear.load_model(folder, hop_ms=30)
    with pytest.raises(ConfigError, match="pool is 'men': give one of mean, mean_std, rows, did you mean"):
        hear.load_model(folder, pool="men")
    with pytest.raises(ConfigError, match="model is 'Linear'"):
        hear.get_scene_embeddings(torch.zeros(1, 800), nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="nowhere"):
        hear.load_model("nowhere.pth")
    assert issubclass(AudioError, SsambaError)


@pytest.mark.skipif(importlib.util.find_spec("hearvalidator") is None, reason="hearvalidator is not installed")
def test_the_validator_of_hear(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """hear-validator as published; of TensorFlow, which it imports, it asks the class ``Module`` alone."""
    if importlib.util.find_spec("tensorflow") is None:
        stand_in = ModuleType("tensorflow")
        stand_in.Module = type("Module", (), {})  # type: ignore[attr-defined]
        stand_in.config = SimpleNamespace(list_physical_devices=lambda kind: [])  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    from hearvalidator.validate import ValidateModel

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ValidateModel("ssamba.adapters.hear", folder, "cpu")()
    # It asks for timestamps within 50 ms of each other and of the end.
    assert not [w for w in warned if "imestamps" in str(w.message)]
