"""The parts that pages are made of: excerpts within their bound, charts, pictures, projections, commands."""

from __future__ import annotations

import base64
import io
import re
import shlex

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssamba.audio.front_end import PUBLISHED
from ssamba.audio.log_mel import filter_bank
from ssamba.reports.clips import ClipStore, PageClip, encode_mp3, loudest_stretch, seconds_each
from ssamba.reports.commands import as_shell
from ssamba.reports.drawing.lines import LineChart, Series, line_chart, thinned
from ssamba.reports.drawing.raster import HIDDEN, png_uri, spectrogram_levels
from ssamba.reports.drawing.scale import number_text, readable_duration, scale_of, spread_labels
from ssamba.reports.drawing.strips import LabelSpan, averaged, score_strip
from ssamba.reports.projection import principal_components
from ssamba.reports.resynthesis import with_energies


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal(round(16000 * seconds))).astype(np.float32)


def test_audio_stays_within_its_bound_and_what_is_left_out_is_counted() -> None:
    store = ClipStore(limit=20_000)
    for number in range(8):
        store.put_audio(store.add(PageClip(f"{number}")), noise(1.0, number), 16000)
    sizes = [len(clip.audio) for clip in store.clips]
    assert store.used == sum(sizes) <= 20_000
    assert store.playable == sum(size > 0 for size in sizes)
    assert store.refused == 8 - store.playable > 0
    assert store.playable >= 3
    assert set(store.as_json()["audio"]) == {str(i) for i, size in enumerate(sizes) if size}


@pytest.mark.parametrize("count", [1, 10, 400, 1000, 5000])
def test_excerpts_are_as_long_as_the_bound_allows(count: int) -> None:
    seconds = seconds_each(count)
    assert 1.0 <= seconds <= 6.0
    assert seconds == 1.0 or count * seconds * 4400 <= 8 << 20
    assert seconds == 6.0 or count >= 300


@pytest.mark.parametrize("rate", [16000, 24000, 10000, 96000])
def test_excerpts_are_mp3_at_any_rate(rate: int) -> None:
    time = np.arange(rate) / rate
    samples, found = soundfile.read(io.BytesIO(encode_mp3(np.sin(2 * np.pi * 440 * time).astype(np.float32), rate)))
    assert found == {16000: 16000, 24000: 24000, 10000: 11025, 96000: 48000}[rate]
    assert abs(len(samples) / found - 1) < 0.2
    spectrum = np.abs(np.fft.rfft(samples[: found // 2] * np.hanning(found // 2)))
    assert abs(2 * int(spectrum.argmax()) - 440) <= 2
    assert np.abs(samples).max() < 1


def test_the_loudest_stretch_is_found() -> None:
    waveform = np.concatenate([noise(3) * 0.01, noise(1), noise(2) * 0.01])
    assert abs(loudest_stretch(waveform, 16000, 1.0) / 16000 - 3) < 0.11
    assert loudest_stretch(waveform, 16000, 60.0) == 0


def test_a_png_holds_the_levels() -> None:
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    levels[0, 0] = HIDDEN
    picture = Image.open(io.BytesIO(base64.b64decode(png_uri(levels, "spectrogram").partition(",")[2])))
    assert picture.size == (4, 3)
    assert np.array_equal(np.asarray(picture), levels)
    shades = np.asarray(picture.convert("RGB")).astype(int)
    assert tuple(shades[0, 0]) == (0x9A, 0x9A, 0x9A)
    ramp = png_uri(np.arange(255, dtype=np.uint8)[None], "spectrogram").partition(",")[2]
    rising = np.asarray(Image.open(io.BytesIO(base64.b64decode(ramp))).convert("L")).astype(int)[0]
    assert (np.diff(rising) >= 0).all()  # louder is lighter, without a step back


def test_low_frequencies_are_at_the_bottom() -> None:
    log_mel = np.zeros((5, 8), np.float32)
    log_mel[:, 0] = 1
    levels = spectrogram_levels(log_mel, 0.0, 1.0)
    assert levels.shape == (8, 5)
    assert (levels[-1] == 254).all()
    assert (levels[:-1] == 0).all()


def test_time_goes_evenly_through_a_long_spectrogram() -> None:
    for frames in (1000, 1600, 2000, 9001):
        log_mel = np.zeros((frames, 4), np.float32)
        for share in (0.1, 0.5, 0.9):
            log_mel[round(share * frames)] = 10
        picture = averaged(log_mel)
        assert len(picture) <= 1600
        loud = np.flatnonzero(picture[:, 0] > 0) / len(picture)
        assert loud == pytest.approx([0.1, 0.5, 0.9], abs=0.002)
        assert picture[picture > 0].min() >= 10 / -(-frames // 1600)


def test_scores_of_a_last_row_that_is_cut_keep_their_times() -> None:
    strip = score_strip(["a"], np.ones((29, 1), np.float32), 0.5, [LabelSpan(7.05, 14.1, 0)], 14.1, "said")
    assert 'width="102.837%"' in strip  # 14.5 s of rows in 14.1 s
    assert 'x="50.000%" y="2" width="50.000%"' in strip


def test_principal_components_are_those_of_the_correlations() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6))
    found = principal_components(values * np.array([1, 10, 100, 1, 1, 1]) + 7)
    shares = np.sort(np.linalg.eigvalsh(np.corrcoef(values.T)))[::-1] / 6
    assert found.shares == pytest.approx(tuple(shares[:2]))
    assert np.abs(np.corrcoef(found.places.T)[0, 1]) < 1e-9
    assert np.array_equal(principal_components(values).places, principal_components(values.copy()).places)
    assert principal_components(np.ones((4, 3))).places.shape == (4, 2)
    assert principal_components(np.arange(5.0)[:, None]).places.shape == (5, 2)


def test_energies_are_changed_where_they_should_be() -> None:
    waveform = noise(1.0)
    before = filter_bank(torch.from_numpy(waveform), PUBLISHED).numpy()
    change = np.zeros_like(before)
    assert np.abs(with_energies(waveform, change, PUBLISHED)[400:-400] - waveform[400:-400]).max() < 1e-5
    change[30:60, 64:] = -6.0
    after = filter_bank(torch.from_numpy(with_energies(waveform, change, PUBLISHED)), PUBLISHED).numpy()
    moved = after - before
    assert -7 < moved[36:54, 72:].mean() < -4
    assert abs(moved[36:54, 8:56].mean()) < 0.2
    assert np.abs(moved[2:24]).max() < 1e-3


def test_ticks_are_round_and_within() -> None:
    for low, high in ((0.0, 1.0), (-3.7, 12.4), (1e-5, 1.3e-5), (5.0, 5.0), (0.0, 0.0), (1e6, 3e6)):
        scale = scale_of([low, high], 0, 100)
        ticks = scale.ticks(5)
        assert 2 <= len(ticks) <= 7
        assert all(scale.low <= t <= scale.high for t in ticks)
        assert all(0 <= scale(v) <= 100 for v in (low, high))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234567.0, "1.23e6"), (1234.0, "1,234"), (0.25, "0.25"), (1e-7, "1e-7"), (-3.14159, "-3.14"),
     (99.96, "100"), (12.0, "12"), (float("nan"), "-")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_times_are_read_easily() -> None:
    assert [readable_duration(s) for s in (5.0, 90, 600, 8000)] == ["5 s", "90 s", "10 min", "2.2 h"]


def test_labels_do_not_overlap() -> None:
    placed = spread_labels([50.0, 51, 52, 10], 12, 0, 100)
    assert min(np.diff(sorted(placed))) >= 12
    assert all(0 <= p <= 100 for p in placed)


def test_a_chart_draws_every_series_and_escapes_its_names() -> None:
    points = [(float(i), float(i * i)) for i in range(1000)]
    chart = line_chart(
        LineChart(
            "loss <b>", "step", [Series("a<b>", points, 0, noisy=True), Series("c", points[::9], 1)], [("d", 3.0)]
        )
    )
    assert "<b>" not in chart
    assert chart.count('class="line c') == 2
    assert chart.count("line faint") == 1
    assert re.findall(r'end" [^>]*>([^<]*)<', chart) == ["a&lt;b&gt;", "c", "d"]
    assert len(chart) < 20_000
    assert line_chart(LineChart("x", "y", [Series("none", [])])) == ""
    short = thinned(points, 100)
    assert len(short) <= 101
    assert (short[0], short[-1]) == (points[0], points[-1])


def test_a_command_of_several_lines_is_the_same_command() -> None:
    words = ["ssamba", "fit", "--data", "a folder/it's", "--out", "x" * 90, *(f"--option-{i}" for i in range(20))]
    text = as_shell(words)
    assert len(text.split("\n")) > 3
    assert all(line.endswith(" \\") for line in text.split("\n")[:-1])
    assert shlex.split(text.replace("\\\n", " ")) == words
