"""Crops of a set kept on the device against those of the loader that decodes: the same, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from noise_files import write_noise

from ssamba.data.loaders.gpu_resident import ResidentAudio, ResidentLoader, resident_bytes
from ssamba.data.loaders.pretraining import CropLoader
from ssamba.data.manifest import read_sources
from ssamba.data.samplers.pretraining import PretrainPlan
from ssamba.data.scan import SkipList, scan_sources
from ssamba.training.augment.transforms import repeat_short
from ssamba.utils.errors import AudioError, DataError

CPU = torch.device("cpu")
SAMPLES = 8000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_noise(tmp_path, 20)


def plan_of(folder: Path) -> PretrainPlan:
    return PretrainPlan(scan_sources(read_sources([str(folder)])), batch_size=5, seed=3, crop_seconds=0.5)


@pytest.mark.parametrize("repeat", [False, True])
def test_crops_are_the_loaders(folder: Path, repeat: bool) -> None:
    plan = plan_of(folder)
    audio = ResidentAudio(plan.clips, CPU)
    assert abs(2 * len(audio.samples) - resident_bytes(plan.clips)) <= 4 * len(plan.clips)
    expected = list(CropLoader(plan, workers=1, start_step=2, stop_step=14, cache_bytes=10_000_000))
    found = list(ResidentLoader(plan, audio, 2, 14, SkipList()))
    assert [x.step for x in found] == [x.step for x in expected]
    short = 0
    for offsets, batch in zip(found, expected, strict=True):
        assert torch.equal(offsets.lengths, batch.lengths)
        short += int((batch.lengths < SAMPLES).sum())
        wanted = repeat_short(batch.waveforms, batch.lengths)[0] if repeat else batch.waveforms
        cut = audio.cut(offsets.first, offsets.lengths, offsets.scale, SAMPLES, repeat)
        torch.testing.assert_close(cut, wanted, rtol=0, atol=0)
    assert short > 0


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 4))


def test_stand_ins_are_the_loaders(folder: Path) -> None:
    plan = plan_of(folder)  # read before the damage: only decoding shows it
    (damaged,) = {clip.path for clip in plan.clips if clip.path.endswith("01.flac")}
    damage(Path(damaged))
    lenient = {"limit": 0.5}
    one, other = SkipList(**lenient), SkipList(**lenient)
    audio = ResidentAudio(plan.clips, CPU)
    assert list(audio.failed) == [damaged]
    expected = list(CropLoader(plan, workers=1, stop_step=12, cache_bytes=10_000_000, skip=one))
    for offsets, batch in zip(ResidentLoader(plan, audio, 0, 12, other), expected, strict=True):
        cut = audio.cut(offsets.first, offsets.lengths, offsets.scale, SAMPLES)
        assert torch.equal(cut, batch.waveforms)
    assert one.tried == other.tried
    assert other.reasons == one.reasons
    assert list(one.reasons) == [damaged]


def test_what_cannot_be_read_is_refused(folder: Path) -> None:
    plan = plan_of(folder)
    for path in folder.iterdir():
        damage(path)
    audio = ResidentAudio(plan.clips, CPU)
    with pytest.raises(AudioError, match="was not among the clips"):
        audio.locate("elsewhere.wav", 0.0, 0.5)
    unread = {clip.path for clip in plan.clips} - set(audio.failed)
    if unread:  # a damaged wav or ogg may still be a valid, shorter one
        audio.locate(next(iter(unread)), 0.0, 0.5)
    with pytest.raises(DataError):
        list(ResidentLoader(plan, audio, 0, 40, SkipList(minimum=1)))
