from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ssamba.audio.decode import SAMPLE_RATE
from ssamba.data.manifest import Clip, Source
from ssamba.data.samplers.pretraining import PretrainPlan, centre_crops, split_validation
from ssamba.utils.errors import DataError


def clip(name: str, seconds: float | None) -> Clip:
    return Clip(f"/data/{name}", name, stated_seconds=seconds)


def source(name: str, lengths: list[float], weight: float | None = None) -> Source:
    return Source(name, tuple(clip(f"{name}{n}", length) for n, length in enumerate(lengths)), weight)


MIXED = [3.0, 10.0, 35.0, 100.0, 0.5, 10.2]


def test_an_epoch_shows_short_clips_once_and_long_ones_by_length() -> None:
    plan = PretrainPlan([source("a", MIXED)], batch_size=4, crop_seconds=10.0)
    assert plan.crops_per_epoch == 1 + 1 + 4 + 10 + 1 + 1
    assert plan.steps_per_epoch == 5
    shown = Counter(plan.crop(position).path for position in range(plan.crops_per_epoch))
    assert shown == {f"/data/a{n}": count for n, count in enumerate([1, 1, 4, 10, 1, 1])}
    assert PretrainPlan([source("a", MIXED)], 4, crop_seconds=10.0, crops_per_clip=2).crops_per_epoch == 9


def test_crops_lie_inside_their_clips_and_cover_long_ones() -> None:
    lengths = dict(zip([f"/data/a{n}" for n in range(len(MIXED))], MIXED, strict=True))
    plan = PretrainPlan([source("a", MIXED)], batch_size=6, crop_seconds=10.0)
    starts = []
    for step in range(200):
        for spec in plan.batch(step):
            assert spec.start >= 0
            assert spec.start == 0 or spec.start + 10.0 <= lengths[spec.path]
            assert spec.start * 16000 == pytest.approx(round(spec.start * 16000), abs=1e-6)
            if spec.path == "/data/a3":
                starts.append(spec.start)
    assert min(starts) < 2.0
    assert max(starts) > 88.0
    assert len(set(starts)) > 0.99 * len(starts)


def test_batches_are_a_function_of_seed_and_step() -> None:
    def make(seed: int = 1) -> PretrainPlan:
        return PretrainPlan([source("a", MIXED), source("b", [20.0] * 5)], 7, seed, 10.0)

    forward = [make().batch(step) for step in range(12)]
    plan = make()
    assert [plan.batch(step) for step in reversed(range(12))] == forward[::-1]  # no state
    assert make(2).batch(0) != forward[0]
    assert plan.batch(0) != plan.batch(plan.steps_per_epoch)  # epochs differ
    assert make().fingerprint == plan.fingerprint != make(2).fingerprint


def test_fingerprint_tells_changed_files() -> None:
    before = PretrainPlan([source("a", MIXED)], 4).fingerprint
    assert PretrainPlan([source("a", [*MIXED, 1.0])], 4).fingerprint != before
    assert PretrainPlan([source("a", [3.5, *MIXED[1:]])], 4).fingerprint != before
    assert PretrainPlan([source("x", MIXED)], 4).fingerprint != before


def test_mixing_weights() -> None:
    sources = [source("a", [5.0] * 100, 0.6), source("b", [5.0] * 10, 0.3), source("c", [5.0] * 50, 0.1)]
    plan = PretrainPlan(sources, batch_size=16)
    assert plan.crops_per_epoch == 160
    shown = Counter(plan.crop(position).path for position in range(160 * 5))
    by_source = Counter()
    for path, count in shown.items():
        by_source[path[6]] += count
    assert by_source == {"a": 480, "b": 240, "c": 80}
    # Every source goes through all of its clips before it repeats one.
    assert {shown[f"/data/b{n}"] for n in range(10)} == {24}
    assert {shown[f"/data/c{n}"] for n in range(50)} == {1, 2}
    # The sources are mixed within an epoch, not one after the other.
    first_half = Counter(plan.crop(position).path[6] for position in range(80))
    assert 30 < first_half["a"] < 66


def test_without_weights_sources_count_by_size() -> None:
    plan = PretrainPlan([source("a", [5.0] * 30), source("b", [5.0] * 10)], batch_size=8)
    shown = Counter(plan.crop(position).path for position in range(40))
    assert set(shown.values()) == {1}
    assert len(shown) == 40


def test_a_tiny_weight_is_still_seen() -> None:
    plan = PretrainPlan([source("a", [5.0] * 30, 1.0), source("b", [5.0], 1e-9)], batch_size=8)
    assert any(plan.crop(position).path == "/data/b0" for position in range(plan.crops_per_epoch))


def test_fewer_clips_than_a_batch() -> None:
    plan = PretrainPlan([source("a", [1.0, 2.0, 3.0])], batch_size=8)
    assert plan.steps_per_epoch == 1
    assert Counter(spec.path for spec in plan.batch(0)).total() == 8


def test_views_are_near_crops_of_the_same_clip() -> None:
    sources = [source("a", MIXED, 0.6), source("b", [9.0, 40.0] * 20, 0.4)]
    plain = PretrainPlan(sources, batch_size=4, crop_seconds=8.0)
    plan = PretrainPlan(sources, batch_size=12, crop_seconds=8.0, views=3, view_shift=1.5)
    lengths = {c.path: c.seconds or 0.0 for s in sources for c in s.clips}
    assert plan.crops_per_epoch == 3 * plain.crops_per_epoch
    assert plan.fingerprint != plain.fingerprint
    moved = []
    for position in range(600):
        first, *others = (plan.crop(3 * position + view) for view in range(3))
        assert first == plain.crop(position)
        for other in others:
            assert other.path == first.path
            assert abs(other.start - first.start) <= 1.5
            assert 0 <= other.start <= max(0.0, lengths[first.path] - 8.0)
            moved.append(other.start - first.start)
        stand_ins = [plan.crop(3 * position + view, attempt=2) for view in range(3)]
        assert len({spec.path for spec in stand_ins}) == 1
    assert min(moved) < -1.2
    assert max(moved) > 1.2
    assert plan.crop(7) == PretrainPlan(sources, 12, crop_seconds=8.0, views=3, view_shift=1.5).crop(7)


def test_crops_of_other_speeds_are_as_long_as_they_need() -> None:
    sources = [source("a", MIXED, 0.6), source("b", [9.0, 40.0] * 20, 0.4)]
    plan = PretrainPlan(sources, batch_size=12, crop_seconds=8.0, views=2, view_shift=1.5, speed=1.5)
    plain = PretrainPlan(sources, batch_size=12, crop_seconds=8.0, views=2, view_shift=1.5)
    lengths = {c.path: c.seconds or 0.0 for s in sources for c in s.clips}
    assert plan.crops_per_epoch == plain.crops_per_epoch
    assert plan.fingerprint != plain.fingerprint
    assert plan.read_seconds == 12 + 1 / SAMPLE_RATE
    last, moved = [], []
    for step in range(60):
        speeds = plan.speeds(step)
        assert speeds.dtype == np.float32
        specs = plan.batch(step)
        assert [spec.path for spec in specs] == [spec.path for spec in plain.batch(step)]
        for spec, speed in zip(specs, speeds, strict=True):
            assert 0 <= spec.seconds - speed * 8.0 <= 2 / SAMPLE_RATE
            assert spec.seconds <= plan.read_seconds
            assert 0 <= spec.start <= max(0.0, lengths[spec.path] - spec.seconds)
            if lengths[spec.path] == 40.0:
                last.append(spec.start + spec.seconds)
        moved += [other.start - first.start for first, other in zip(specs[::2], specs[1::2], strict=True)]
    assert max(last) > 39.5  # the ends of recordings are heard, too
    assert min(moved) < -1.2  # below -1.5, too: a view that needs more may have to begin earlier
    assert 1.2 < max(moved) <= 1.5
    drawn = np.concatenate([plan.speeds(step) for step in range(400)])
    assert 1 / 1.5 <= drawn.min() < 0.68
    assert 1.48 < drawn.max() <= 1.5
    assert abs(np.log(drawn).mean()) < 0.01
    assert plan.crop(7) == PretrainPlan(sources, 12, crop_seconds=8.0, views=2, view_shift=1.5, speed=1.5).crop(7)
    # 9 s: the slowest crops move by 3.7 s, those of more than 9 s begin at the beginning.
    starts = [s.start for step in range(60) for s in plan.batch(step) if lengths[s.path] == 9.0]
    assert max(starts) > 3
    assert 0.0 in starts


def test_stand_ins_are_drawn_from_the_same_source() -> None:
    plan = PretrainPlan([source("a", MIXED, 0.5), source("b", [9.0] * 40, 0.5)], batch_size=8)
    for position in range(40):
        original = plan.crop(position)
        stand_ins = [plan.crop(position, attempt) for attempt in range(1, 5)]
        assert {spec.path[6] for spec in stand_ins} == {original.path[6]}
        assert stand_ins == [plan.crop(position, attempt) for attempt in range(1, 5)]
    assert len({plan.crop(3, attempt).path for attempt in range(1, 9)}) > 1


def test_bad_plans() -> None:
    with pytest.raises(DataError, match="no clips"):
        PretrainPlan([Source("a", ())], 4)
    with pytest.raises(DataError, match=r"/data/x: its length is not known"):
        PretrainPlan([Source("a", (clip("x", None),))], 4)
    with pytest.raises(DataError, match="weight"):
        PretrainPlan([source("a", [1.0], 0.5), source("b", [1.0])], 4)
    with pytest.raises(ValueError, match="views=3"):
        PretrainPlan([source("a", [1.0])], 4, views=3)
    with pytest.raises(ValueError, match=r"speed=0\.9"):
        PretrainPlan([source("a", [1.0])], 4, speed=0.9)
    with pytest.raises(ValueError, match="batch_size=0"):
        PretrainPlan([source("a", [1.0])], 0)


def test_validation_is_disjoint_and_stable_when_files_come() -> None:
    before = [source("a", [5.0] * 200), source("b", [5.0] * 100)]
    after = [source("a", [5.0] * 260), source("b", [5.0] * 100)]
    training, held = split_validation(before, fraction=0.1, seed=3)
    paths = {clip.path for clip in held}
    assert 15 <= len(held) <= 45
    assert paths.isdisjoint(clip.path for part in training for clip in part.clips)
    assert len(held) + sum(len(part.clips) for part in training) == 300
    later = {clip.path for clip in split_validation(after, fraction=0.1, seed=3)[1]}
    assert {path for path in later if path in {c.path for s in before for c in s.clips}} == paths
    assert {clip.path for clip in split_validation(before, fraction=0.1, seed=4)[1]} != paths
    assert len(split_validation(before, count=7)[1]) == 7
    assert split_validation(before, count=0)[1] == []
    assert len(split_validation([source("a", [5.0] * 3)], fraction=1e-6)[1]) == 1


def test_validation_with_one_file_in_two_sources() -> None:
    names = [clip(f"{n}.wav", 5.0) for n in range(50)]
    other = [Clip(c.path, f"elsewhere/{c.key}", stated_seconds=5.0) for c in names]
    training, held = split_validation([Source("a", tuple(names)), Source("b", tuple(other))], fraction=0.2)
    left = {clip.path for part in training for clip in part.clips}
    assert left.isdisjoint(clip.path for clip in held)
    assert len(left) + len(held) == 50


def test_validation_that_takes_everything() -> None:
    with pytest.raises(DataError, match="leaves none"):
        split_validation([source("a", [5.0] * 3)], count=3)
    with pytest.raises(ValueError, match="fraction"):
        split_validation([source("a", [5.0])])


def test_centre_crops() -> None:
    specs = centre_crops([clip("long", 30.0), clip("short", 4.0), clip("odd", 10.00003)], 10.0)
    assert [(spec.start, spec.seconds) for spec in specs] == [(10.0, 10.0), (0.0, 10.0), (0.0, 10.0)]


def test_large_sets_are_planned_quickly() -> None:
    lengths = np.full(20000, 10.0)
    plan = PretrainPlan([source("a", lengths.tolist())], batch_size=64, crop_seconds=10.0)
    assert plan.steps_per_epoch == 313
    assert len({spec.path for step in range(312) for spec in plan.batch(step)}) == 312 * 64
