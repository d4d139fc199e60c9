"""Background and made-up noise: the regression by hand, borders that keep known clips, classes of such sounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssamba.evaluation.rejection_fit import OtherSounds, Trial, fit_background, make_rejection
from ssamba.inference.rejection.noise import artificial_sounds
from ssamba.inference.rejection.score import Rejection

D, CLASSES = 40, 3
MEANS = 3 * torch.randn(CLASSES + 2, D, generator=torch.Generator().manual_seed(99))
NOISE, BACKGROUND = CLASSES, CLASSES + 1


def rows(label: int, count: int, seed: int) -> Tensor:
    return MEANS[label] + torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def known(count: int, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(CLASSES).repeat_interleave(count)
    x = torch.cat([rows(label, count, seed + label) for label in range(CLASSES)])
    return x, torch.nn.functional.one_hot(labels, CLASSES).double()


def others(noise: Tensor | None = None, background: Tensor | None = None, recordings: int = 5) -> OtherSounds:
    empty = torch.empty(0, D)
    given = empty if background is None else background
    far = torch.full((1, D), 50.0)
    return OtherSounds(far, empty if noise is None else noise, given, torch.arange(len(given)) % recordings)


def trial(count: int = 30, seed: int = 10, more: Tensor | None = None, of: int = 0) -> Trial:
    """Known clips, each of one row; ``more`` held-out and training rows of a class."""
    (x, targets), (held, truth) = known(count, seed), known(count, seed + 100)
    if more is not None:
        truths = torch.nn.functional.one_hot(torch.full((len(more),), of), CLASSES).double()
        x, targets = torch.cat([x, more + 0.01]), torch.cat([targets, truths])
        held, truth = torch.cat([held, more]), torch.cat([truth, truths])
    return Trial(x, targets, held, torch.arange(len(held)), truth)


def test_the_regression_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    a, b = rows(0, 40, 1), 0.3 * rows(NOISE, 20, 2)
    found = fit_background(a, b).probabilities(torch.cat([a, b]))
    x = torch.cat([a, b]).double()
    z = (x - x.mean(0)) / x.std(0, correction=0)
    # A softmax of two classes shares a weight out to both: half the penalty of a sigmoid's.
    model = linear_model.LogisticRegression(C=0.2, tol=1e-8, max_iter=10000).fit(z, [0] * 40 + [1] * 20)
    torch.testing.assert_close(found.double(), torch.tensor(model.predict_proba(z)[:, 1]), rtol=0, atol=2e-3)


def test_background_has_no_class_and_known_clips_keep_theirs() -> None:
    given = others(rows(NOISE, 20, 3), rows(BACKGROUND, 25, 4))
    found, counts = make_rejection(*known(60, 0), [trial(seed=10 * n) for n in range(1, 6)], given)
    assert found is not None
    assert found.background is not None
    assert counts is not None
    assert counts.clips == 25
    assert counts.rejected >= 24
    assert counts.known == 450
    assert counts.kept >= 0.95 * 450
    for label in (NOISE, BACKGROUND):
        assert (found.unlike(rows(label, 100, 7)) > 1).double().mean() > 0.97
    assert (found.unlike(known(100, 500)[0]) <= 1).double().mean() > 0.92
    assert torch.equal(found.unlike(known(9, 5)[0]) > 1, _by_hand(found, known(9, 5)[0]))


def _by_hand(found: Rejection, x: Tensor) -> Tensor:
    assert found.background is not None
    far = found.distances(x) > 1
    return far | (torch.sigmoid(x @ found.background.weight + found.background.bias) > found.background.limit)


def test_a_class_of_noise_keeps_its_clips() -> None:
    """A third of a class sounds like the made-up noise: then noise is not told, and background still is."""
    like_noise = rows(NOISE, 15, 30)
    first = torch.nn.functional.one_hot(torch.zeros(15, dtype=torch.int64), CLASSES).double()
    x, targets = known(60, 0)
    every = torch.cat([x, rows(NOISE, 15, 31)]), torch.cat([targets, first])
    found, _ = make_rejection(*every, [trial(more=like_noise)], others(rows(NOISE, 60, 3)))
    assert found is not None
    assert found.background is None
    given = others(rows(NOISE, 60, 3), rows(BACKGROUND, 25, 4))
    both, counts = make_rejection(*every, [trial(more=like_noise)], given)
    assert both is not None
    assert both.background is not None
    assert (both.background.probabilities(rows(NOISE, 50, 8)) <= both.background.limit).double().mean() > 0.9
    assert counts is not None
    assert counts.clips == 5, "one of five recordings"
    assert counts.rejected == 5


def test_background_like_a_class_does_not_take_the_class() -> None:
    """Background that sounds as a class does: the limit moves up until 95 % of the clips pass."""
    found, counts = make_rejection(*known(60, 0), [trial()], others(background=rows(1, 60, 4)))
    assert found is not None
    assert counts is not None
    assert counts.kept >= 0.95 * counts.known
    assert found.background is not None
    assert float(found.background.limit) > 0.5
    assert (found.unlike(known(200, 500)[0]) <= 1).double().mean() > 0.88


def test_few_held_out_clips_and_one_recording() -> None:
    assert make_rejection(*known(60, 0), [trial(3)], others(rows(NOISE, 9, 1))) == (None, None)
    _, counts = make_rejection(*known(60, 0), [trial()], others(background=rows(BACKGROUND, 10, 1), recordings=1))
    assert counts is not None
    assert counts.clips == 2, "a stretch of the one recording"
    _, none = make_rejection(*known(60, 0), [trial()], others(rows(NOISE, 9, 1)))
    assert none is None


def test_made_up_sounds_are_the_same_each_time_and_fit_a_wav() -> None:
    for samples, rate in ((80000, 16000), (5000, 16000), (3000, 1000), (48000, 48000)):
        found = list(artificial_sounds(samples, rate))
        again = list(artificial_sounds(samples, rate))
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        assert 24 <= len(found) <= 40
        for sound in found:
            assert sound.isfinite().all()
            assert float(sound.abs().max()) <= 1
            assert len(sound) <= samples
    spectrum = torch.fft.rfft(found[8 + 6]).abs().square()
    assert spectrum[100:200].mean() > 100 * spectrum[10000:20000].mean(), "brown noise falls with frequency"
