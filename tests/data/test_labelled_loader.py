"""Reading labelled examples, the plans that order them, and the batches."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import layout_trees as trees
import numpy as np
import pytest
import soundfile
import torch

from ssamba.audio.decode import read_audio
from ssamba.data.examples import Example, Part
from ssamba.data.loaders.labelled import LabelledBatch, LabelledLoader
from ssamba.data.loaders.read_example import class_vector, example_seconds, mix, read_example
from ssamba.data.samplers.labelled import EpochPlan, EvaluationPlan, balanced_weights
from ssamba.data.scan import SkipList
from ssamba.utils.errors import AudioError, DataError

CLASSES = 4


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    """22 clips of 0.3 to 1.5 s, of rates and formats of all kinds, with one or two labels."""
    folder = tmp_path_factory.mktemp("labelled")
    made = []
    for number in range(22):
        seconds, rate = 0.3 + 0.2 * (number % 7), (16000, 8000, 44100)[number % 3]
        path = trees.write_clip(
            folder / f"{number:02d}.{('wav', 'flac')[number % 2]}", number % 4, number, seconds, rate
        )
        labels = (0,) if number < 12 else tuple(sorted({number % 4, number // 4 % 4}))
        made.append(Example(path.name, (Part(str(path)),), labels))
    return tuple(made)


def plan(examples: tuple[Example, ...], **options: object) -> EpochPlan:
    settings = {"batch_size": 5, "seed": 3, "mixup": 0.5, "max_seconds": 0.8, "random_crop": True, **options}
    return EpochPlan(examples, **settings)


def run(of: EpochPlan | EvaluationPlan, classes: int = CLASSES, **options: object) -> list[LabelledBatch]:
    return list(LabelledLoader(of, classes, **options))


def assert_same(first: list[LabelledBatch], second: list[LabelledBatch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for one, other in zip(first, second, strict=True):
        assert one.keys == other.keys
        for name in ("waveforms", "lengths", "targets", "examples"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


class TestReading:
    def test_a_file(self, examples: tuple[Example, ...]) -> None:
        for example in examples[:3]:
            whole = read_audio(example.parts[0].path)
            np.testing.assert_array_equal(read_example(example), whole)
            window = read_example(example, 0.1, 0.15)
            assert window.shape == (2400,)
            np.testing.assert_allclose(window, whole[1600:4000], atol=1e-6)

    def test_a_stretch(self, examples: tuple[Example, ...]) -> None:
        path = examples[6].parts[0].path
        whole = read_audio(path)
        stretch = Example("x", (Part(path, start=0.2, seconds=0.5),))
        np.testing.assert_allclose(read_example(stretch), whole[3200:11200], atol=1e-6)
        np.testing.assert_allclose(read_example(stretch, 0.1, 0.9), whole[4800:11200], atol=1e-6)
        assert example_seconds(stretch) == pytest.approx(0.5)
        with pytest.raises(AudioError, match=r"starts at 0\.5 s but the stretch ends at 0\.5 s"):
            read_example(stretch, 0.5)

    def test_lengths(self, examples: tuple[Example, ...]) -> None:
        assert [round(example_seconds(example), 3) for example in examples[:3]] == [0.3, 0.5, 0.7]
        with pytest.raises(AudioError, match="no such file"):
            example_seconds(Example("gone", (Part("gone.wav"),)))

    def test_mix(self) -> None:
        rng = np.random.default_rng(0)
        first, second = (rng.standard_normal(n).astype(np.float32) + shift for n, shift in ((1000, 3), (700, -2)))
        for one, other in ((first, second), (second, first)):
            # Written out: centred, then brought to the first one's length, weighted, centred again.
            a, b = one - one.mean(dtype=np.float64), other - other.mean(dtype=np.float64)
            b = np.pad(b, (0, max(0, len(a) - len(b))))[: len(a)]
            expected = 0.3 * a + 0.7 * b
            mixed = mix(one, other, 0.3)
            assert mixed.dtype == np.float32
            np.testing.assert_allclose(mixed, expected - expected.mean(), atol=2e-6)
        before = first.copy()
        mix(first, second, 0.5)
        np.testing.assert_array_equal(first, before)

    def test_class_vector(self) -> None:
        np.testing.assert_array_equal(class_vector((1, 3), 4), [0, 1, 0, 1])
        assert not class_vector((), 4).any()


class TestEpochPlan:
    def test_each_epoch_shows_all_once(self, examples: tuple[Example, ...]) -> None:
        of = plan(examples)
        assert of.steps_per_epoch == 5
        epochs = [
            [row.example for step in range(5 * epoch, 5 * epoch + 5) for row in of.rows(step)] for epoch in range(3)
        ]
        assert all(sorted(epoch) == list(range(22)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        assert [len(of.rows(step)) for step in range(6)] == [5, 5, 5, 5, 2, 5]

    def test_a_function_of_seed_and_step(self, examples: tuple[Example, ...]) -> None:
        one, other = plan(examples), plan(examples)
        steps = [12, 3, 40, 0]
        assert [one.rows(step) for step in steps] == [other.rows(step) for step in reversed(steps)][::-1]
        assert one.fingerprint == other.fingerprint
        changed = [
            plan(examples, **option)
            for option in ({"seed": 4}, {"mixup": 0.4}, {"batch_size": 4}, {"max_seconds": 1.0}, {"random_crop": False})
        ]
        changed += [plan(examples[:-1]), plan(examples, balanced=True), plan(examples, epoch_examples=7)]
        assert len({one.fingerprint, *(p.fingerprint for p in changed)}) == 9
        assert changed[0].rows(0) != one.rows(0)

    def test_short_epochs_go_on_where_the_last_one_ended(self, examples: tuple[Example, ...]) -> None:
        of = plan(examples, epoch_examples=11, batch_size=11)
        assert sorted(row.example for step in (0, 1) for row in of.rows(step)) == list(range(22))
        long = plan(examples, epoch_examples=44, batch_size=44)
        assert Counter(row.example for row in long.rows(0)) == Counter([*range(22), *range(22)])

    def test_mixup(self, examples: tuple[Example, ...]) -> None:
        rows = [row for step in range(1000) for row in plan(examples, mixup=0.3).rows(step)]
        mixed = [row for row in rows if row.partner is not None]
        assert len(mixed) / len(rows) == pytest.approx(0.3, abs=0.03)
        shares = np.array([row.share for row in mixed])
        assert shares.mean() == pytest.approx(0.5, abs=0.02)
        assert shares.std() == pytest.approx((1 / (4 * 21)) ** 0.5, abs=0.01)  # Beta(10, 10)
        counts = Counter(row.partner for row in mixed)
        assert set(counts) == set(range(22))
        assert max(counts.values()) < 3 * min(counts.values())
        assert all(row.share == 1.0 for row in rows if row.partner is None)
        assert not any(row.partner for step in range(20) for row in plan(examples, mixup=0.0).rows(step))
        assert all(row.partner is not None for row in plan(examples, mixup=1.0).rows(0))

    def test_balanced_weights(self, examples: tuple[Example, ...]) -> None:
        expected = []
        for example in examples:
            weight = 0.0
            for label in example.labels:
                weight += 1000 / (sum(label in other.labels for other in examples) + 0.01)
            expected.append(weight)
        np.testing.assert_allclose(balanced_weights(examples), expected, rtol=1e-12)

    def test_balanced_draws_follow_the_weights(self, examples: tuple[Example, ...]) -> None:
        silent = Example("none", examples[0].parts)
        of = plan((*examples, silent), balanced=True, epoch_examples=40000, batch_size=40000)
        counts = np.bincount([row.example for row in of.rows(0)], minlength=23)
        weights = balanced_weights((*examples, silent))
        np.testing.assert_allclose(counts / 40000, weights / weights.sum(), atol=0.006)
        assert counts[-1] == 0
        assert plan(examples, balanced=True).epoch_examples == 22
        with pytest.raises(DataError, match="no training example has any"):
            plan((silent,), balanced=True)

    def test_arguments(self, examples: tuple[Example, ...]) -> None:
        with pytest.raises(DataError, match="no examples"):
            plan(())
        for options in ({"batch_size": 0}, {"seed": -1}, {"mixup": 1.5}, {"epoch_examples": 0}, {"max_seconds": 0}):
            with pytest.raises(ValueError, match="must be"):
                plan(examples, **options)


class TestEvaluationPlan:
    def test_each_example_once_in_order(self, examples: tuple[Example, ...]) -> None:
        of = EvaluationPlan(examples, 5, max_seconds=0.8)
        batches = run(of)
        assert of.steps == len(batches) == 5
        assert [key for batch in batches for key in batch.keys] == [example.key for example in examples]
        assert torch.cat([batch.examples for batch in batches]).tolist() == list(range(22))
        for batch in batches:
            for row, length, number in zip(batch.waveforms, batch.lengths, batch.examples, strict=True):
                expected = read_audio(examples[number].parts[0].path, start=0.0, seconds=0.8)
                assert length == len(expected)
                np.testing.assert_array_equal(row[:length], expected)

    def test_windows(self, examples: tuple[Example, ...]) -> None:
        of = EvaluationPlan(examples, 5, max_seconds=0.5, windows=True)
        rows = [row for step in range(of.steps) for row in of.rows(step)]
        starts: dict[int, list[float]] = {}
        for row in rows:
            starts.setdefault(row.example, []).append(row.start or 0.0)
        assert starts[0] == [0.0]  # 0.3 s
        assert starts[1] == [0.0]  # 0.5 s
        assert starts[2] == [0.0, pytest.approx(0.2, abs=1e-4)]  # 0.7 s
        assert starts[6] == [0.0, 0.5, 1.0]  # 1.5 s
        for batch in run(of):
            for row, length, number in zip(batch.waveforms, batch.lengths, batch.examples, strict=True):
                assert length == min(8000, round(example_seconds(examples[number]) * 16000))
                assert row[:length].any()
        assert [row.example for row in rows] == sorted(row.example for row in rows)

    def test_few_of_many_windows(self, examples: tuple[Example, ...]) -> None:
        of = EvaluationPlan(examples, 5, max_seconds=0.1, windows=True)
        whole = [row for step in range(of.steps) for row in of.rows(step)]
        of.thin(3)
        rows = [row for step in range(of.steps) for row in of.rows(step)]
        assert of.windows == len(rows)
        for example in range(len(examples)):
            before, after = ([row for row in these if row.example == example] for these in (whole, rows))
            assert len(after) == min(3, len(before))
            assert (after[0], after[-1]) == (before[0], before[-1])
            assert after == [row for row in before if row in after]  # in order

    def test_targets_are_the_labels(self, examples: tuple[Example, ...]) -> None:
        (batch,) = run(EvaluationPlan(examples, 30))
        assert batch.targets.dtype == torch.float32
        expected = [[float(label in example.labels) for label in range(CLASSES)] for example in examples]
        assert batch.targets.tolist() == expected

    def test_arguments(self, examples: tuple[Example, ...]) -> None:
        with pytest.raises(DataError, match="no examples"):
            EvaluationPlan((), 5)
        for options in ({"batch_size": 0}, {"batch_size": 2, "windows": True}):
            with pytest.raises(ValueError, match="must be"):
                EvaluationPlan(examples, **options)


class TestLoader:
    def test_batches_hold_what_the_plan_says(self, examples: tuple[Example, ...]) -> None:
        of = plan(examples, max_seconds=None, random_crop=False, mixup=0.6)
        for batch in run(of, stop_step=6):
            rows = of.rows(batch.step)
            assert batch.waveforms.shape == (len(rows), batch.lengths.max())
            for i, row in enumerate(rows):
                first = examples[row.example]
                waveform, target = read_example(first), class_vector(first.labels, CLASSES)
                if row.partner is not None:
                    second = examples[row.partner]
                    waveform = mix(waveform, read_example(second), row.share)
                    target = row.share * target + (1 - row.share) * class_vector(second.labels, CLASSES)
                assert batch.keys[i] == first.key
                assert batch.lengths[i] == len(waveform)
                np.testing.assert_array_equal(batch.waveforms[i, : len(waveform)], waveform)
                assert not batch.waveforms[i, len(waveform) :].any()
                np.testing.assert_allclose(batch.targets[i], target, atol=1e-6)

    def test_crops(self, examples: tuple[Example, ...]) -> None:
        fixed, moving = (
            run(plan(examples, mixup=0.0, random_crop=random, max_seconds=0.4), stop_step=10)
            for random in (False, True)
        )
        places = set()
        for at_start, anywhere in zip(fixed, moving, strict=True):
            assert at_start.keys == anywhere.keys
            assert at_start.lengths.max() <= 6400
            for i, number in enumerate(anywhere.examples):
                whole = read_audio(examples[number].parts[0].path)
                np.testing.assert_allclose(at_start.waveforms[i, :6400][: len(whole)], whole[:6400], atol=1e-6)
                crop = anywhere.waveforms[i, : anywhere.lengths[i]].numpy()
                # Where the crop lies in the clip: the start at which the difference is least.
                errors = [np.abs(whole[s : s + len(crop)] - crop).max() for s in range(len(whole) - len(crop) + 1)]
                assert min(errors) < 1e-5
                places.add(int(np.argmin(errors)))
        assert len(places) > 20

    @pytest.mark.parametrize("cache_bytes", [0, 100_000, 10_000_000])
    def test_workers_do_not_change_the_batches(self, examples: tuple[Example, ...], cache_bytes: int) -> None:
        reference = run(plan(examples), workers=0, stop_step=12, cache_bytes=cache_bytes)
        assert_same(reference, run(plan(examples), workers=1, stop_step=12, cache_bytes=cache_bytes))
        assert_same(reference, run(plan(examples), workers=4, stop_step=12, prefetch=2, cache_bytes=cache_bytes))

    def test_starting_at_a_step_gives_the_same_stream(self, examples: tuple[Example, ...]) -> None:
        for balanced in (False, True):
            whole = run(plan(examples, balanced=balanced), workers=2, stop_step=14)
            for start in (1, 5, 13):
                again = run(plan(examples, balanced=balanced), workers=3, start_step=start, stop_step=14)
                assert_same(whole[start:], again)

    def test_the_cache_agrees_with_decoding(self, examples: tuple[Example, ...]) -> None:
        plain, cached = (run(plan(examples), stop_step=10, cache_bytes=size) for size in (0, 10_000_000))
        for one, other in zip(plain, cached, strict=True):
            assert torch.equal(one.lengths, other.lengths)
            torch.testing.assert_close(one.waveforms, other.waveforms, atol=5e-5, rtol=0)

    def test_stopping_early_ends_the_threads(self, examples: tuple[Example, ...]) -> None:
        batches = iter(LabelledLoader(plan(examples), CLASSES, workers=3))
        next(batches)
        batches.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("ssamba-decode")]

    def test_arguments(self, examples: tuple[Example, ...]) -> None:
        for options in ({"workers": -1}, {"prefetch": 0}, {"start_step": -1}):
            with pytest.raises(ValueError, match=r"must be >= 0"):
                LabelledLoader(plan(examples), CLASSES, **options)


class TestUnreadable:
    @pytest.fixture
    def damaged(self, examples: tuple[Example, ...], tmp_path: Path) -> tuple[Example, ...]:
        """60 clips, two of which are cut in a way that their headers do not show."""
        made = []
        for number in range(60):
            path = trees.write_clip(tmp_path / f"{number:02d}.flac", number % 4, number, 0.5)
            if number in (7, 31):
                path.write_bytes(path.read_bytes()[:3000])
            made.append(Example(path.name, (Part(str(path)),), (number % 4,)))
        return tuple(made)

    def test_training_takes_a_stand_in(self, damaged: tuple[Example, ...], tmp_path: Path) -> None:
        of = plan(damaged, mixup=0.3, max_seconds=None, random_crop=False)
        skip = SkipList(tmp_path / "run/skipped.csv")
        first = run(of, workers=4, stop_step=24, skip=skip)
        assert {Path(path).name for path in skip.reasons} == {"07.flac", "31.flac"}
        assert len((tmp_path / "run/skipped.csv").read_text().splitlines()) == 3
        assert {len(batch.keys) for batch in first} == {5}
        assert not {"07.flac", "31.flac"} & {key for batch in first for key in batch.keys}
        for batch in first:  # a stand-in brings its own label
            for i, row in enumerate(of.rows(batch.step)):
                if row.partner is None:
                    assert batch.targets[i].argmax() == int(batch.keys[i][:2]) % 4
        assert_same(first, run(of, workers=1, stop_step=24))
        assert_same(first[9:], run(of, workers=2, start_step=9, stop_step=24))

    def test_evaluation_leaves_out(self, damaged: tuple[Example, ...]) -> None:
        skip = SkipList()
        batches = run(EvaluationPlan(damaged, 8), skip=skip)
        numbers = torch.cat([batch.examples for batch in batches]).tolist()
        assert numbers == [n for n in range(60) if n not in (7, 31)]
        assert len(skip) == 2
        assert all(batch.targets.argmax(1).tolist() == [n % 4 for n in batch.examples.tolist()] for batch in batches)
        alone = run(EvaluationPlan(damaged, 1))
        assert len(alone) == 58

    def test_missing_files_give_no_windows(self, damaged: tuple[Example, ...]) -> None:
        Path(damaged[3].parts[0].path).unlink()
        skip = SkipList()
        of = EvaluationPlan(damaged, 8, max_seconds=0.2, windows=True, skip=skip)
        assert skip.reasons[damaged[3].parts[0].path] == "no such file"
        assert {Path(path).name[:2] for path in skip.reasons} == {"03", "07", "31"}  # the other two are cut
        assert 3 not in {row.example for step in range(of.steps) for row in of.rows(step)}
        with pytest.raises(DataError, match="1 of 1 clips cannot be read"):
            EvaluationPlan(damaged[3:4], 8, max_seconds=0.2, windows=True)

    def test_too_many_stop_the_run(self, damaged: tuple[Example, ...]) -> None:
        for number in range(0, 60, 10):
            soundfile.write(damaged[number].parts[0].path, np.zeros(0), 16000)
        with pytest.raises(DataError, match="of 60 clips cannot be read, more than 5%"):
            run(EvaluationPlan(damaged, 8))
        with pytest.raises(DataError, match="of 60 clips cannot be read, more than 5%"):
            run(plan(damaged, mixup=0.0), stop_step=100)

    def test_no_readable_stand_in(self, damaged: tuple[Example, ...]) -> None:
        with pytest.raises(DataError, match="other examples cannot be read either"):
            next(iter(LabelledLoader(plan(damaged[7:8], random_crop=False), CLASSES)))
