"""The front end at the published rate and at others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssamba.audio.checks import check_length
from ssamba.audio.feature_stream import FRAMES_TOGETHER, FeatureStream
from ssamba.audio.front_end import PUBLISHED, FrontEnd, normalise_log_mel
from ssamba.audio.log_mel import filter_bank, log_mel, mel, mel_filters
from ssamba.utils.errors import AudioError, ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rate", "length", "hop", "fft"),
    [
        (1_000, 25, 10, 32),
        (8_000, 200, 80, 256),
        (16_000, 400, 160, 512),
        (22_050, 551, 220, 1024),
        (32_000, 800, 320, 1024),
        (44_100, 1102, 441, 2048),
        (48_000, 1200, 480, 2048),
        (384_000, 9600, 3840, 16384),
    ],
)
def test_frames_of_25_ms_every_10_ms_at_any_rate(rate: int, length: int, hop: int, fft: int) -> None:
    front_end = FrontEnd(rate)
    assert (front_end.frame_length, front_end.hop, front_end.fft_size) == (length, hop, fft)
    assert front_end.nyquist == rate / 2
    assert front_end.frames_per_second == pytest.approx(100, rel=3e-3)
    assert front_end.frame_seconds == pytest.approx(0.025, rel=2e-3)
    for frames in (1, 2, 998):
        samples = front_end.samples_of_frames(frames)
        assert front_end.frame_count(samples) == frames == front_end.frame_count(samples - 1) + 1
        assert front_end.seconds_of_frames(frames) * rate == pytest.approx(samples)
    assert front_end.seconds_of_frame(7) - front_end.seconds_of_frame(3) == pytest.approx(front_end.seconds_between(4))
    whole = math.ceil(0.025 * rate)  # files need 25 ms, which are a frame at any rate
    check_length(whole, sample_rate=rate)
    assert front_end.frame_count(whole) == 1
    with pytest.raises(AudioError, match=f"{length - 1} samples at {rate} Hz"):
        check_length(length - 1, sample_rate=rate)


def test_the_published_one_is_the_default() -> None:
    assert FrontEnd(16000, 128, 400, 160, -4.2677393, 4.5689974) == PUBLISHED
    assert PUBLISHED.frames_per_second == 100
    waveform = 0.1 * torch.randn(3000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(filter_bank(waveform, PUBLISHED), log_mel(waveform))
    assert torch.equal(filter_bank(waveform, FrontEnd(mel_bins=64, mean=1.0)), log_mel(waveform, 64))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sample_rate": 999}, "sample_rate is 999: give 1000 to 384000 Hz"),
        ({"sample_rate": 384_001}, "sample_rate is 384001: give 1000 to 384000 Hz"),
        ({"mel_bins": 0}, "mel_bins is 0"),
        ({"hop": -1}, "hop is -1"),
        ({"frame_length": 1}, "frame_length is 1"),
        ({"std": 0.0}, "std is 0"),
        ({"std": math.nan}, "std is nan"),
        ({"mean": math.inf}, "mean is inf"),
    ],
)
def test_refuses_what_no_front_end_can_have(changes: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        FrontEnd(**changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("rate", "bins"), [(8_000, 40), (22_050, 64), (32_000, 64), (44_100, 128), (48_000, 80)])
def test_a_tone_peaks_in_the_filter_of_its_frequency_at_any_rate(rate: int, bins: int) -> None:
    front_end = FrontEnd(rate, bins)
    low, high = float(mel(20.0)), float(mel(rate / 2))
    for share in (0.1, 0.3, 0.8):
        hertz = share * rate / 2
        tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate // 2) / rate)
        mels = filter_bank(torch.from_numpy(tone), front_end)
        assert mels.shape == (front_end.frame_count(rate // 2), bins)
        expected = round((float(mel(hertz)) - low) / (high - low) * (bins + 1) - 1)
        assert abs(int(mels.mean(dim=0).argmax()) - expected) <= 1


def kaldi(samples: np.ndarray, rate: int, bins: int) -> np.ndarray:
    """Kaldi's filter bank as its documentation has it: frame by frame and filter by filter, in double precision."""
    length, hop = int(rate * 0.025), int(rate * 0.01)
    size = 2 ** math.ceil(math.log2(length))
    edges = np.linspace(float(mel(20.0)), float(mel(rate / 2)), bins + 2)
    rows = []
    for start in range(0, len(samples) - length + 1, hop):
        frame = samples[start : start + length] - samples.mean()
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        frame = frame * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1)))
        power = np.abs(np.fft.rfft(frame, size)) ** 2
        row = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            energy = 0.0
            for point in range(size // 2):
                at = float(mel(point * rate / size))
                if left < at < right:
                    weight = (at - left) / (centre - left) if at <= centre else (right - at) / (right - centre)
                    energy += weight * power[point]
            row.append(math.log(max(energy, float(np.finfo(np.float32).eps))))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("rate", "bins"), [(8_000, 23), (16_000, 128), (32_000, 64), (44_100, 40)])
def test_the_filter_bank_is_kaldis_at_any_rate(rate: int, bins: int) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(rate // 20) + 0.02
    ours = filter_bank(torch.from_numpy(samples), FrontEnd(rate, bins))
    np.testing.assert_allclose(ours.numpy(), kaldi(samples, rate, bins), atol=2e-3)


def test_filters_reach_from_20_hertz_to_nyquist() -> None:
    filters = mel_filters(64, 32_000, 1024)
    assert filters.shape == (513, 64)
    assert float(filters[-1].abs().max()) == 0
    assert int(filters[:, -1].nonzero().max()) == 511  # the last band ends at 16 kHz
    assert int(filters[:, 0].nonzero().min()) >= 1


@pytest.mark.parametrize(("mean", "std"), [(-4.2677393, 4.5689974), (-6.1, 3.3), (0.0, 1.0), (2.5, 0.1), (1e-3, 7.7)])
def test_pad_value_is_zero_normalised(mean: float, std: float) -> None:
    front_end = FrontEnd(mean=mean, std=std)
    assert front_end.pad_value == normalise_log_mel(torch.zeros(()), mean, std).item()
    x = torch.linspace(-16, 10, 50)
    torch.testing.assert_close(front_end.denormalise(front_end.normalise(x)), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_stream_gives_the_same_wherever_its_blocks_end(rate: int) -> None:
    front_end = FrontEnd(rate, 16)
    samples = front_end.samples_of_frames(FRAMES_TOGETHER + 300) + 17
    waveform = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(1)) + 0.05

    def streamed(size: int) -> torch.Tensor:
        stream = FeatureStream(front_end, CPU)
        return torch.cat([*(stream.feed(part) for part in waveform.split(size)), stream.finish()])

    whole = streamed(samples)
    assert whole.shape == (FRAMES_TOGETHER + 300, 16)
    assert torch.equal(streamed(rate // 3), whole)
    together = front_end.normalise(filter_bank(waveform, front_end))
    torch.testing.assert_close(whole, together, rtol=0, atol=1e-3)
    assert FeatureStream(front_end, CPU).finish().shape == (0, 16)
