from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from noise_files import write_noise

from ssamba.audio.decode import read_audio
from ssamba.data.loaders.pretraining import Batch, CropLoader, load_crops
from ssamba.data.loaders.workers import AudioCache
from ssamba.data.manifest import Source, read_sources
from ssamba.data.samplers.pretraining import PretrainPlan, centre_crops
from ssamba.data.scan import SkipList, scan_sources
from ssamba.utils.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("set"), 24)


def make_plan(folder: Path, seed: int = 0) -> PretrainPlan:
    return PretrainPlan(scan_sources(read_sources([str(folder)])), batch_size=5, seed=seed, crop_seconds=0.5)


def run(folder: Path, **options: object) -> list[Batch]:
    return list(CropLoader(make_plan(folder), **options))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.waveforms, other.waveforms)
        assert torch.equal(one.lengths, other.lengths)


def test_batches_hold_the_plans_crops(folder: Path) -> None:
    plan = make_plan(folder)
    (batch,) = CropLoader(plan, workers=1, start_step=2, stop_step=3)
    assert batch.step == 2
    assert batch.waveforms.shape == (5, 8000)
    assert batch.waveforms.dtype == torch.float32
    for row, length, spec in zip(batch.waveforms, batch.lengths, plan.batch(2), strict=True):
        expected = read_audio(spec.path, start=spec.start, seconds=spec.seconds)
        assert length == len(expected)
        np.testing.assert_array_equal(row[:length], expected)
        assert not row[length:].any()
    assert any(length < 8000 for batch in run(folder, stop_step=8) for length in batch.lengths)


@pytest.mark.parametrize("cache_bytes", [0, 200_000, 10_000_000])
def test_workers_do_not_change_the_batches(folder: Path, cache_bytes: int) -> None:
    reference = run(folder, workers=0, stop_step=12, cache_bytes=cache_bytes)
    assert_same(reference, run(folder, workers=1, stop_step=12, cache_bytes=cache_bytes))
    assert_same(reference, run(folder, workers=4, stop_step=12, prefetch=2, cache_bytes=cache_bytes))


def test_starting_at_a_step_gives_the_same_stream(folder: Path) -> None:
    whole = run(folder, workers=2, stop_step=20)  # more than two epochs
    for start in (1, 7, 19):
        assert_same(whole[start:], run(folder, workers=3, start_step=start, stop_step=20))


def test_cache_agrees_with_decoding(folder: Path) -> None:
    plain, cached = run(folder, stop_step=10), run(folder, stop_step=10, cache_bytes=10_000_000)
    for one, other in zip(plain, cached, strict=True):
        assert torch.equal(one.lengths, other.lengths)
        torch.testing.assert_close(one.waveforms, other.waveforms, atol=2e-5, rtol=0)


def test_cache_keeps_to_its_budget_and_decodes_once(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "set")
    clips = make_plan(tmp_path / "set").clips
    cache = AudioCache(clips, 100_000)
    assert 50_000 < cache.bytes <= 100_000
    assert 0 < sum(clip.path in cache for clip in clips) < len(clips)
    path = next(clip.path for clip in clips if clip.path in cache)
    first = cache.read(path, 0.0, 0.2)
    Path(path).unlink()
    np.testing.assert_array_equal(cache.read(path, 0.0, 0.2), first)


def corrupt(folder: Path, tmp_path: Path, names: list[str]) -> list[Source]:
    """The set with some files damaged in a way that their headers do not show."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for number in range(24, 80):
        audio = 0.1 * np.random.default_rng(number).standard_normal(9000)
        soundfile.write(tmp_path / f"{number}.wav", audio, 16000)
    sources = scan_sources(read_sources([str(tmp_path)]))
    for name in names:
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 3])
    return sources


def test_corrupt_files_are_replaced_the_same_way_each_time(folder: Path, tmp_path: Path) -> None:
    sources = corrupt(folder, tmp_path, ["01.flac", "04.flac", "07.flac"])
    plan = PretrainPlan(sources, batch_size=5, crop_seconds=0.5)
    skip = SkipList(tmp_path / "run/skipped.csv")
    steps = 2 * plan.steps_per_epoch
    first = list(CropLoader(plan, workers=4, stop_step=steps, skip=skip))
    assert set(skip.reasons) == {str(tmp_path / name) for name in ("01.flac", "04.flac", "07.flac")}
    lines = (tmp_path / "run/skipped.csv").read_text().splitlines()
    assert len(lines) == 4
    assert "truncated" in lines[1]
    assert all((batch.lengths > 0).all() for batch in first)
    assert_same(first, list(CropLoader(plan, workers=1, stop_step=steps)))
    assert_same(first[9:], list(CropLoader(plan, workers=2, start_step=9, stop_step=steps)))


def test_too_many_corrupt_files_stop_the_run(folder: Path, tmp_path: Path) -> None:
    names = [f"{number:02d}.flac" for number in range(1, 23, 3)]
    plan = PretrainPlan(corrupt(folder, tmp_path, names), batch_size=5, crop_seconds=0.5)
    with pytest.raises(DataError, match=r"of 80 clips cannot be read, more than 5%"):
        list(CropLoader(plan, stop_step=2 * plan.steps_per_epoch))


def test_no_readable_stand_in(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "only.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    plan = PretrainPlan(scan_sources(read_sources([str(path)])), batch_size=2, crop_seconds=0.5)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="other clips of the same source"):
        next(iter(CropLoader(plan)))


def test_stopping_early_ends_the_threads(folder: Path) -> None:
    batches = iter(CropLoader(make_plan(folder), workers=3))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ssamba-decode")]


def test_prefetching_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, plain = [], soundfile.SoundFile.__init__

    def counted(self: soundfile.SoundFile, file: object, *rest: object, **more: object) -> None:
        read.append(file)
        plain(self, file, *rest, **more)

    monkeypatch.setattr(soundfile.SoundFile, "__init__", counted)
    batches = iter(CropLoader(make_plan(folder), workers=2, prefetch=2))
    next(batches)
    batches.close()
    assert 5 <= len(read) <= 15


def test_fixed_crops(folder: Path) -> None:
    clips = make_plan(folder).clips
    waveforms, lengths = load_crops(centre_crops(clips, 0.4))
    assert waveforms.shape == (24, 6400)
    assert lengths.min() < 6400 == lengths.max()
    specs = [*centre_crops(clips, 0.4), centre_crops(clips, 0.4)[0]._replace(path="gone.wav")]
    skip = SkipList()
    assert load_crops(specs, skip)[0].shape == (24, 6400)
    assert skip.reasons == {"gone.wav": "no such file"}
