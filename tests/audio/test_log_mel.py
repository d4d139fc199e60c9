"""Waveform -> log-mel: values are compared with the reference in ``test_golden``, here are the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.audio.checks import LOUDEST
from ssamba.audio.front_end import PUBLISHED, normalise_log_mel
from ssamba.utils.errors import AudioError, ConfigError

FLOOR = math.log(torch.finfo(torch.float32).eps)


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def tone(seconds: float, rate: int, hertz: float = 1000.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998)])
def test_only_whole_frames_count(samples: int, frames: int) -> None:
    assert PUBLISHED.frame_count(samples) == frames
    if frames:
        assert log_mel.log_mel(noise(samples)).shape == (frames, 128)
        assert PUBLISHED.frame_count(PUBLISHED.samples_of_frames(frames)) == frames
        assert PUBLISHED.frame_count(PUBLISHED.samples_of_frames(frames) - 1) == frames - 1


def test_under_one_frame_is_refused() -> None:
    with pytest.raises(AudioError, match="399 samples at 16 kHz"):
        log_mel.log_mel(noise(399))


def test_batch_equals_single() -> None:
    batch = torch.stack([noise(5000, seed) for seed in range(3)]) + torch.tensor([[0.0], [0.5], [-1.0]])
    together = log_mel.log_mel(batch)
    assert together.shape == (3, 29, 128)
    for row, one in zip(together, batch, strict=True):
        torch.testing.assert_close(row, log_mel.log_mel(one), rtol=0, atol=1e-5)


def test_chunks_of_time_change_nothing() -> None:
    """Three clips take more than one chunk, each alone a single one."""
    frames = log_mel.FRAMES_AT_ONCE // 3 + 50
    batch = torch.stack([noise(400 + 160 * (frames - 1), seed) for seed in range(3)])
    together = log_mel.log_mel(batch)
    assert together.shape == (3, frames, 128)
    for row, one in zip(together, batch, strict=True):
        torch.testing.assert_close(row, log_mel.log_mel(one), rtol=0, atol=1e-5)


def test_silence_gives_the_floor_and_a_constant_is_silence() -> None:
    for waveform in (torch.zeros(4000), torch.full((4000,), 0.25)):
        torch.testing.assert_close(log_mel.log_mel(waveform), torch.full((23, 128), FLOOR), rtol=0, atol=1e-4)


def test_a_tone_peaks_in_its_filter() -> None:
    # HTK mel: filter centres lie at equal steps of 1127 ln(1 + f / 700) between 20 Hz and 8 kHz.
    low, high = (1127 * math.log1p(f / 700) for f in (20, 8000))
    for hertz in (300.0, 1000.0, 5000.0):
        expected = round((1127 * math.log1p(hertz / 700) - low) / (high - low) * 129 - 1)
        mels = log_mel.log_mel(torch.from_numpy(tone(0.5, 16000, hertz)))
        assert abs(int(mels.mean(dim=0).argmax()) - expected) <= 1


def test_other_numbers_of_bins() -> None:
    assert log_mel.log_mel(noise(4000), 64).shape == (23, 64)
    filters = log_mel.mel_filters(64)
    assert filters.shape == (257, 64)
    assert float(filters[-1].abs().max()) == 0  # Nyquist
    assert float(filters.max()) <= 1


def test_autocast_does_not_touch_the_filter_bank() -> None:
    plain = log_mel.log_mel(noise(4000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = log_mel.log_mel(noise(4000))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


def test_length_is_cut_or_padded_before_normalisation() -> None:
    mels = log_mel.log_mel(noise(4000))
    padded = log_mel.features(noise(4000), target_length=30, mean=-4.0, std=2.0)
    torch.testing.assert_close(padded[0, :23], (mels + 4) / 4)
    assert (padded[0, 23:] == 1.0).all()  # (0 + 4) / (2 * 2): padding is not 0 afterwards
    torch.testing.assert_close(log_mel.features(noise(4000), target_length=5)[0], normalise_log_mel(mels[:5]))


def test_the_longest_decides_without_a_target() -> None:
    both = log_mel.features([noise(4000), noise(2000)])
    assert both.shape == (2, 23, 128)
    torch.testing.assert_close(both[1, :11], log_mel.features(noise(2000))[0])


@pytest.mark.parametrize("length", [0, -4])
def test_target_below_one_frame_is_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=f"target_length is {length}"):
        log_mel.features(noise(4000), target_length=length)


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [("int16", 2**15, 0), ("int32", 2**31, 0), ("int8", 2**7, 0), ("uint8", 2**7, 2**7), ("uint16", 2**15, 2**15)],
)
def test_integers_are_scaled_by_their_type(dtype: str, scale: int, offset: int) -> None:
    limits = np.iinfo(dtype)
    audio = np.array([limits.min, offset, offset + scale // 2, limits.max], dtype=dtype)
    expected = torch.tensor([-1.0, 0.0, 0.5, 1 - 1 / scale])
    torch.testing.assert_close(log_mel.to_waveform(audio), expected)


def test_all_kinds_of_floats_give_the_same() -> None:
    waveform = noise(1000).to(torch.float16).float()
    kinds: list[Any] = [waveform.half(), waveform.double(), waveform.numpy(), waveform.tolist()]
    for kind in [*kinds, waveform.double().numpy(), waveform.half().numpy(), waveform.clone().requires_grad_()]:
        torch.testing.assert_close(log_mel.to_waveform(kind), waveform, rtol=0, atol=0)
    rounded = waveform.bfloat16()
    torch.testing.assert_close(log_mel.to_waveform(rounded), rounded.float(), rtol=0, atol=0)


def test_the_result_shares_no_memory_with_the_input() -> None:
    audio = np.zeros(1000, dtype=np.float32)
    log_mel.to_waveform(audio).fill_(1.0)
    assert audio.max() == 0


def test_batches_and_lists() -> None:
    one, two = noise(900, 1), noise(1000, 2)
    batch = torch.stack([one, two[:900]])
    for audio in (batch, batch.numpy(), [one, two[:900]], (one.numpy(), two[:900]), batch.tolist()):
        ours = log_mel.to_waveforms(audio)
        assert [x.shape for x in ours] == [(900,), (900,)]
        torch.testing.assert_close(torch.stack(ours), batch)
    assert [len(x) for x in log_mel.to_waveforms([one, two])] == [900, 1000]
    assert [len(x) for x in log_mel.to_waveforms(one.tolist())] == [900]


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        ("clip.wav", "no such file"),
        (["a.wav", "b.wav"], "recording 1 of 2: no such file"),
        (np.array(["a.wav", "b.wav"]), "holds text"),
        (np.zeros((2, 3, 400)), r"shape \(2, 3, 400\)"),
        (np.float32(0), r"shape \(\)"),
        (np.zeros((0, 400)), "no recording"),
        ([], "0 samples"),
        (np.zeros(400, dtype=complex), "complex128"),
        (np.zeros(400, dtype=bool), "bool"),
        ([0, 1] * 400, "int64 samples have no known full scale"),
        (None, "object"),
        ([0.1, [0.2]], "neither samples nor recordings"),
        (np.array([0.0, np.nan] * 400), "NaN"),
        (torch.tensor([0.0, -math.inf] * 400), "infinite"),
        (np.full(400, 1e25), "1e[+]25"),
        (np.full(400, -1e25), "1e[+]25"),
    ],
)
def test_refuses_what_is_no_audio(audio: Any, reason: str) -> None:
    with pytest.raises(AudioError, match=reason) as caught:
        log_mel.features(audio)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, -16000, 0.5, math.nan, math.inf])
def test_refuses_sample_rates_that_are_none(rate: float) -> None:
    with pytest.raises(AudioError, match=r"sample_rate is .*: give 1000 to 768000 Hz"):
        log_mel.to_waveform(noise(1000), rate)  # type: ignore[arg-type]


def test_the_loudest_that_passes_stays_finite() -> None:
    assert log_mel.features(noise(1000) / noise(1000).abs().max() * LOUDEST * 0.99).isfinite().all()


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 192000])
def test_resampling_keeps_length_and_pitch(rate: int) -> None:
    ours = log_mel.to_waveform(tone(1.0, rate), rate)
    assert abs(len(ours) - 16000) <= 1
    middle = slice(2000, -2000)
    expected = torch.from_numpy(tone(1.0, 16000)).float()[: len(ours)]
    torch.testing.assert_close(ours[middle], expected[middle], rtol=0, atol=2e-3)


def test_frame_centres() -> None:
    assert PUBLISHED.seconds_of_frame(0) == pytest.approx(0.0125)
    assert PUBLISHED.seconds_of_frame(10.5) == pytest.approx(0.1175)


def test_filters_made_in_inference_mode_carry_gradients() -> None:
    log_mel.mel_filters.cache_clear()
    log_mel._filters_on.cache_clear()
    with torch.inference_mode():
        expected = log_mel.log_mel(torch.ones(800))
    waveform = torch.ones(800, requires_grad=True)
    found = log_mel.log_mel(waveform)
    found.sum().backward()
    assert torch.equal(found.detach(), expected)
    assert waveform.grad is not None
