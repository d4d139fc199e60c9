"""Embedding recordings in memory: any length, any rate, alone or together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from plain_windows import window_starts
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.audio.front_end import PUBLISHED
from ssamba.inference.model import SSAMBA
from ssamba.models import patches
from ssamba.models.config import Config
from ssamba.utils.errors import AudioError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> SSAMBA:
    """0.64 s of context: 8 x 4 patches."""
    generator = torch.Generator().manual_seed(3)
    model = SSAMBA(Config(width=16, depth=2, frames=64, state_size=4), generator=generator)
    with torch.no_grad():
        model.positions.add_(torch.randn(model.positions.shape, generator=generator), alpha=0.5)
    return model.eval()


def noise(seconds: float, rate: int = 16000, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=within, atol=within)


def test_one_pass_for_what_fits(model: SSAMBA) -> None:
    audio = noise(0.5)
    out = model.embed(audio)
    mels = log_mel.features(audio)  # 48 frames, 3 columns
    tokens = model.encode(mels)[0, 1:].unflatten(0, (8, 3))
    assert out.lengths.tolist() == [3]
    close(out.patches[0], tokens)
    close(out.frames[0], tokens.mean(dim=0))
    close(out.clip[0], tokens.mean(dim=(0, 1)))


def test_the_last_column_is_filled_with_silence_of_the_front_end(model: SSAMBA) -> None:
    audio = noise(0.4)  # 38 frames: two columns and 6 frames of a third
    padded = log_mel.features(audio, target_length=48)
    assert PUBLISHED.frame_count(len(audio)) == 38
    close(model.embed(audio).patches[0], model.encode(padded)[0, 1:].unflatten(0, (8, 3)))


def test_a_batch_of_different_lengths_is_its_members(model: SSAMBA) -> None:
    lengths = (0.3, 2.2, 0.3, 0.64, 1.0, 0.025, 5.0)
    recordings = [noise(seconds, seed=i) for i, seconds in enumerate(lengths)]
    together = model.embed(recordings)
    assert together.patches.shape[:2] == (7, 8)
    for i, recording in enumerate(recordings):
        alone = model.embed(recording)
        n = int(alone.lengths[0])
        assert together.lengths[i] == n
        close(together.clip[i], alone.clip[0])
        close(together.frames[i, :n], alone.frames[0])
        close(together.patches[i, :, :n], alone.patches[0])
        close(together.times[:n], alone.times)
        assert (together.frames[i, n:] == 0).all()
        assert (together.patches[i, :, n:] == 0).all()
    assert together.times.shape == (int(together.lengths.max()),)


def test_times_are_frame_centres(model: SSAMBA) -> None:
    times = model.embed(noise(2.0)).times
    # 16 log-mel frames of 25 ms every 10 ms: the first column reaches from 0 to 0.175 s.
    close(times[:2], torch.tensor([0.0875, 0.2475], dtype=torch.float64))
    close(times.diff(), torch.full((len(times) - 1,), 0.16, dtype=torch.float64))
    overlapping = model.with_grid(stride=10)
    close(overlapping.embed(noise(2.0)).times.diff()[:3], torch.full((3,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("seconds", [0.8, 1.5, 2.0, 3.1])
def test_long_recordings_are_cross_faded_windows(model: SSAMBA, seconds: float) -> None:
    audio = noise(seconds)
    out = model.embed(audio)
    columns = patches.columns(PUBLISHED.frame_count(len(audio)), model.config)
    mels = log_mel.features(audio, target_length=patches.covered_frames(columns, model.config))
    total, weights = torch.zeros(8, columns, 16), torch.zeros(columns)
    fade = torch.tensor([1.0, 2.0, 2.0, 1.0])
    for start in window_starts(columns, 4):
        tokens = model.encode(mels[:, 16 * start : 16 * start + 64])[0, 1:].unflatten(0, (8, 4))
        total[:, start : start + 4] += tokens * fade[:, None]
        weights[start : start + 4] += fade
    close(out.patches[0], total / weights[:, None])


def test_whole_is_one_pass(model: SSAMBA) -> None:
    audio = noise(2.0)
    out = model.embed(audio, whole=True)
    mels = log_mel.features(audio, target_length=208)
    close(out.patches[0], model.encode(mels)[0, 1:].unflatten(0, (8, 13)))
    assert out.lengths.tolist() == [13]
    assert (out.clip - model.embed(audio).clip).abs().max() > 1e-4
    close(model.embed(noise(0.5), whole=True).clip, model.embed(noise(0.5)).clip)


@pytest.mark.parametrize("whole", [False, True])
def test_columns_come_in_time_order(model: SSAMBA, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def means(self: SSAMBA, features: Tensor) -> Tensor:
        tokens = patches.patchify(features, self.config).mean(dim=2, keepdim=True).expand(-1, -1, 16)
        return torch.cat([torch.full((len(features), 1, 16), 1e9), tokens], dim=1)

    monkeypatch.setattr(SSAMBA, "encode", means)
    audio = noise(2.5) * torch.linspace(0.01, 1, 40000)
    mels = log_mel.features(audio, target_length=256)
    expected = patches.patchify(mels, model.config).mean(dim=2).unflatten(1, (8, 16))
    out = model.embed([audio, noise(0.1)], whole=whole)
    close(out.patches[0, :, :, 0], expected[0], 1e-4)
    close(out.clip[0, 0], expected.mean(), 1e-4)


def test_numpy_torch_and_lists_are_the_same(model: SSAMBA) -> None:
    audio = noise(0.5)
    expected = model.embed(audio).clip
    for kind in (audio.numpy(), audio.tolist(), audio.double(), [audio], audio[None], [audio.tolist()]):
        close(model.embed(kind).clip, expected, 1e-6)


def test_int16_is_the_float_that_it_stands_for(model: SSAMBA) -> None:
    samples = (noise(0.5) * 32768).round().clamp(-32768, 32767)
    for kind in (samples.to(torch.int16), samples.numpy().astype(np.int16)):
        close(model.embed(kind).clip, model.embed(samples / 32768).clip, 1e-6)


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_other_rates_are_resampled(model: SSAMBA, rate: int) -> None:
    audio = noise(1.0, rate)
    out = model.embed(audio, rate)
    assert out.lengths.tolist() == [7]
    close(out.clip, model.embed(log_mel.to_waveform(audio, rate)).clip)
    close(out.times, model.embed(noise(1.0)).times)


def test_the_shortest_recording(model: SSAMBA) -> None:
    out = model.embed(noise(0.025))  # 400 samples, one log-mel frame
    assert out.lengths.tolist() == [1]
    assert out.clip.isfinite().all()
    with pytest.raises(AudioError, match="399 samples"):
        model.embed(noise(0.025)[:399])
    with pytest.raises(AudioError, match="399 samples"):
        model.embed([noise(1.0), noise(0.025)[:399]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_samples(model: SSAMBA, bad: float) -> None:
    audio: Any = noise(1.0)
    audio[777] = bad
    with pytest.raises(AudioError, match=r"NaN|an infinite value"):
        model.embed([noise(1.0), audio])


def test_the_models_statistics_and_bins_are_used() -> None:
    config = Config(width=16, depth=2, frames=64, mel_bins=64, state_size=4, mean=-1.0, std=2.0)
    model = SSAMBA(config).eval()
    mels = log_mel.log_mel(noise(0.5), 64)
    tokens = model.encode(((mels + 1) / 4)[None])[0, 1:].unflatten(0, (4, 3))
    close(model.embed(noise(0.5)).patches[0], tokens)


def test_nothing_asks_for_gradients(model: SSAMBA) -> None:
    out = model.embed(noise(1.0))
    assert not any(x.requires_grad for x in (out.clip, out.frames, out.patches))
