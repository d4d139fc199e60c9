"""Loaders at another sample rate than the published one: threads, processes, cache and GPU-resident audio agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from noise_files import Format, write_noise

from ssamba.audio.decode import read_audio
from ssamba.data.examples import Example, Part
from ssamba.data.loaders import process_pool
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.loaders.gpu_resident import ResidentAudio, ResidentLoader, resident_bytes
from ssamba.data.loaders.labelled import LabelledLoader
from ssamba.data.loaders.pretraining import Batch, CropLoader, load_crops
from ssamba.data.loaders.read_example import read_example
from ssamba.data.manifest import read_sources
from ssamba.data.samplers.labelled import EpochPlan, EvaluationPlan
from ssamba.data.samplers.pretraining import PretrainPlan, centre_crops
from ssamba.data.scan import SkipList, scan_sources

RATES = [8_000, 32_000, 44_100]
CROP = 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    formats = [Format(rate, "flac") for rate in (16_000, 32_000, 44_100, 48_000)]
    return write_noise(tmp_path_factory.mktemp("rates"), 16, formats, [0.2 + 0.1 * number for number in range(5)])


def make_plan(folder: Path, rate: int, **options: float) -> PretrainPlan:
    sources = scan_sources(read_sources([str(folder)]))
    return PretrainPlan(sources, 4, seed=1, crop_seconds=CROP, sample_rate=rate, **options)  # type: ignore[arg-type]


def assert_same(first: list[Batch], second: list[Batch], atol: float = 0.0) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.lengths, other.lengths)
        torch.testing.assert_close(one.waveforms, other.waveforms, rtol=0, atol=atol)


@pytest.mark.parametrize("rate", RATES)
def test_crops_are_slices_of_the_whole_file_at_that_rate(folder: Path, rate: int) -> None:
    plan = make_plan(folder, rate)
    whole = {clip.path: read_audio(clip.path, rate) for clip in plan.clips}
    for step, batch in enumerate(CropLoader(plan, 0, stop_step=8)):
        assert batch.waveforms.shape == (4, round(CROP * rate))
        for spec, waveform, length in zip(plan.batch(step), batch.waveforms, batch.lengths, strict=True):
            first = round(spec.start * rate)
            assert first == pytest.approx(spec.start * rate, abs=1e-6)
            expected = whole[spec.path][first : first + round(CROP * rate)]
            assert int(length) == len(expected)
            np.testing.assert_allclose(waveform[: len(expected)].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_threads_cache_and_resident_audio_agree(folder: Path, rate: int) -> None:
    plan = make_plan(folder, rate)
    alone = list(CropLoader(plan, 0, stop_step=8))
    assert_same(alone, list(CropLoader(plan, 2, stop_step=8)))
    cached = list(CropLoader(plan, 0, stop_step=8, cache_bytes=10_000_000))
    assert_same(alone, cached, atol=3e-5)
    audio = ResidentAudio(plan.clips, torch.device("cpu"), sample_rate=rate)
    assert abs(2 * len(audio.samples) - resident_bytes(plan.clips, rate)) <= 4 * len(plan.clips)
    for offsets, batch in zip(ResidentLoader(plan, audio, 0, 8, SkipList()), cached, strict=True):
        assert torch.equal(offsets.lengths, batch.lengths)
        cut = audio.cut(offsets.first, offsets.lengths, offsets.scale, round(CROP * rate))
        assert torch.equal(cut, batch.waveforms)


@pytest.mark.skipif(not process_pool.processes_available(), reason="processes decode on Linux alone")
@pytest.mark.usefixtures("always_processes")
@pytest.mark.parametrize("cache_bytes", [0, 10_000_000])
def test_processes_decode_at_the_plans_rate(folder: Path, cache_bytes: int) -> None:
    plan = make_plan(folder, 32_000)
    alone = list(CropLoader(plan, 0, stop_step=8, cache_bytes=cache_bytes))
    assert_same(alone, list(CropLoader(plan, 2, stop_step=8, cache_bytes=cache_bytes)))
    files = sorted(str(path) for path in folder.iterdir())
    joined = [Example(f"{i}", (Part(path), Part(path, at=0.5)), (i % 2,)) for i, path in enumerate(files)]
    labelled = EpochPlan(joined, 4, mixup=0.5, max_seconds=0.6, random_crop=True, sample_rate=32_000)
    first = list(LabelledLoader(labelled, 2, 0, stop_step=4, cache_bytes=cache_bytes))
    second = list(LabelledLoader(labelled, 2, 2, stop_step=4, cache_bytes=cache_bytes))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.waveforms, other.waveforms)
        assert one.waveforms.shape[1] == round(0.6 * 32_000)


@pytest.mark.parametrize("rate", RATES)
def test_examples_of_several_parts_and_windows(folder: Path, rate: int) -> None:
    path = str(folder / "04.flac")
    single = read_example(Example("a", (Part(path),)), sample_rate=rate)
    np.testing.assert_array_equal(single, read_audio(path, rate))
    joined = read_example(Example("b", (Part(path), Part(path, at=1.0))), sample_rate=rate)
    assert len(joined) == round((1.0 + len(single) / rate) * rate)
    np.testing.assert_array_equal(joined[rate : rate + len(single)], single[: len(joined) - rate])
    examples = [Example(str(p), (Part(str(p)),), (0,)) for p in sorted(folder.iterdir())]
    plan = EvaluationPlan(examples, 4, 0.25, windows=True, sample_rate=rate)
    for batch in LabelledLoader(plan, 1, 0):
        assert batch.waveforms.shape[1] <= round(0.25 * rate)
    for row in (row for step in range(plan.steps) for row in plan.rows(step)):
        assert row.start is not None
        assert row.start * rate == pytest.approx(round(row.start * rate), abs=1e-6)


def test_validation_crops(folder: Path) -> None:
    clips = make_plan(folder, 32_000).clips
    waveforms, lengths = load_crops(centre_crops(clips, CROP, 32_000), sample_rate=32_000)
    assert waveforms.shape == (16, 8_000)
    assert lengths.max() == 8_000


def test_plans_of_two_rates_have_other_fingerprints(folder: Path) -> None:
    assert (
        make_plan(folder, 16_000).fingerprint
        == PretrainPlan(scan_sources(read_sources([str(folder)])), 4, seed=1, crop_seconds=CROP).fingerprint
    )
    assert len({make_plan(folder, rate).fingerprint for rate in (16_000, *RATES)}) == 4
    examples = [Example("a", (Part("a.wav"),), (0,))]
    assert EpochPlan(examples, 1).fingerprint == EpochPlan(examples, 1, sample_rate=16_000).fingerprint
    assert EpochPlan(examples, 1).fingerprint != EpochPlan(examples, 1, sample_rate=32_000).fingerprint


def test_the_cache_needs_room_for_its_rate(folder: Path) -> None:
    clips = make_plan(folder, 32_000).clips
    assert AudioCache(clips, 10**7, 32_000).bytes == pytest.approx(2 * AudioCache(clips, 10**7).bytes, rel=1e-3)
