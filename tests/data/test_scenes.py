"""Scenes: clips joined second by second, with a label each second."""

from __future__ import annotations

from pathlib import Path

import layout_trees as trees
import numpy as np
import pytest
import torch

from ssamba.audio.decode import read_audio
from ssamba.data.datasets import read_layout
from ssamba.data.datasets.urbansound8k import ClipSeconds, join_scenes
from ssamba.data.examples import SILENCE, Example
from ssamba.data.loaders.labelled import LabelledBatch, LabelledLoader
from ssamba.data.loaders.read_example import read_example
from ssamba.data.samplers.labelled import EpochPlan, EvaluationPlan
from ssamba.utils.errors import AudioError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    data = read_layout("dasl", trees.urbansound8k(tmp_path_factory.mktemp("urban"), per_fold=3))
    return data.folds[0].test


def run(of: EpochPlan | EvaluationPlan, classes: int, **options: object) -> list[LabelledBatch]:
    return list(LabelledLoader(of, classes, **options))


def test_joined_by_second(tmp_path: Path) -> None:
    lengths = (2.3, 1.0, 0.5, 3.7)
    clips = [
        ClipSeconds(str(trees.write_clip(tmp_path / f"{n}.wav", n, n, seconds)), int(np.ceil(seconds)), n)
        for n, seconds in enumerate(lengths)
    ]
    first, second = join_scenes(clips, "fold1", length=5)
    assert first.per_second == (0, 0, 0, 1, 2)
    assert second.per_second == (3, 3, 3, 3, SILENCE)
    assert (first.key, second.key) == ("fold1/scene000", "fold1/scene001")
    waveform = read_example(first)
    assert waveform.shape == (80000,)
    whole = [read_audio(clip.path) for clip in clips]
    np.testing.assert_array_equal(waveform[: len(whole[0])], whole[0])
    assert not waveform[len(whole[0]) : 48000].any()
    np.testing.assert_array_equal(waveform[48000:64000], whole[1])
    np.testing.assert_array_equal(waveform[64000:72000], whole[2])
    assert not waveform[72000:].any()


def test_a_clip_that_the_end_cuts_goes_on(tmp_path: Path) -> None:
    clips = [
        ClipSeconds(str(trees.write_clip(tmp_path / f"{n}.wav", n, n, seconds)), int(np.ceil(seconds)), n)
        for n, seconds in enumerate((2.0, 3.4))
    ]
    scenes = join_scenes(clips, "x", length=4)
    assert [scene.per_second for scene in scenes] == [(0, 0, 1, 1), (1, 1, SILENCE, SILENCE)]
    whole = read_audio(clips[1].path)
    np.testing.assert_array_equal(read_example(scenes[0])[32000:], whole[:32000])
    rest = read_example(scenes[1])
    assert rest.shape == (64000,)
    np.testing.assert_array_equal(rest[: len(whole) - 32000], whole[32000:])
    assert not rest[len(whole) - 32000 :].any()


def test_a_crumb_behind_a_cut_is_silence(tmp_path: Path) -> None:
    path = trees.write_clip(tmp_path / "a.wav", 0, 0, 2.01)
    scenes = join_scenes([ClipSeconds(str(path), 3, 0)], "x", length=2)
    assert [scene.per_second for scene in scenes] == [(0, 0), (0, SILENCE)]
    assert not read_example(scenes[1]).any()
    assert read_example(scenes[0]).any()


def test_windows_of_a_scene(tmp_path: Path) -> None:
    path = trees.write_clip(tmp_path / "a.wav", 0, 0, 2.5)
    (scene,) = join_scenes([ClipSeconds(str(path), 3, 0)] * 2, "x", length=6)
    whole = read_example(scene)
    np.testing.assert_array_equal(read_example(scene, 2.0, 3.0), whole[32000:80000])
    np.testing.assert_array_equal(read_example(scene, 1.0), whole[16000:])
    with pytest.raises(AudioError, match="ends at 6 s"):
        read_example(scene, 6.0, 1.0)


def test_batches(scenes: tuple[Example, ...]) -> None:
    (batch,) = run(EvaluationPlan(scenes, 8), 10)
    assert batch.waveforms.shape == (len(scenes), 60 * 16000)
    assert batch.targets.dtype == torch.int64
    assert batch.targets.tolist() == [list(scene.per_second or ()) for scene in scenes]
    (short,) = run(EvaluationPlan(scenes, 8, max_seconds=4.0), 10)
    assert short.waveforms.shape == (len(scenes), 64000)
    assert torch.equal(short.targets, batch.targets[:, :4])
    torch.testing.assert_close(short.waveforms, batch.waveforms[:, :64000], atol=1e-5, rtol=0)
    train = next(iter(LabelledLoader(EpochPlan(scenes, 2), 10)))
    assert train.targets.shape == (min(2, len(scenes)), 60)


def test_what_scenes_cannot_have(scenes: tuple[Example, ...]) -> None:
    for options in ({"mixup": 0.5}, {"balanced": True}, {"random_crop": True}):
        with pytest.raises(ValueError, match="scenes"):
            EpochPlan(scenes, 2, **options)
    with pytest.raises(ValueError, match="whole number"):
        EpochPlan(scenes, 2, max_seconds=2.5)
    with pytest.raises(ValueError, match="whole, not in windows"):
        EvaluationPlan(scenes, 2, max_seconds=2.0, windows=True)
