"""Masks, noise and rolling: what they change, how much, and that they are the same for the same seed and step."""

import torch
from torch import Tensor

from ssamba.training.augment import MOST_NOISE, MOST_ROLL, draw_masks, draw_noise, mask_stretches, noise_and_roll
from ssamba.training.seeds import generator

FILL = 7.0


def masked(frequency: int, time: int, batch: int = 500, step: int = 0) -> Tensor:
    features = torch.zeros(batch, 40, 24)
    return mask_stretches(features, draw_masks(batch, generator(0, "masks", step)), frequency, time, FILL) == FILL


def widths(hidden_BL: Tensor) -> Tensor:
    """Widths of the hidden stretches, after checking that each is in one piece."""
    steps = torch.diff(hidden_BL.int(), dim=1, prepend=torch.zeros(len(hidden_BL), 1, dtype=torch.int))
    assert (steps == 1).sum(dim=1).max() <= 1
    return hidden_BL.sum(dim=1)


def test_one_stretch_on_each_axis_of_uniform_width() -> None:
    hidden = masked(6, 10)
    # A bin is hidden at all frames, or only where time is.
    bins, frames = hidden.all(dim=1), hidden.all(dim=2)
    assert torch.equal(hidden, bins[:, None, :] | frames[:, :, None])
    for found, widest in ((widths(bins), 6), (widths(frames), 10)):
        counts = torch.bincount(found, minlength=widest + 1)
        assert len(counts) == widest + 1  # none is wider, all widths occur
        assert counts.min() > 0.5 * 500 / (widest + 1)
    assert bins.any(dim=0).all()  # stretches lie anywhere, up to both ends
    assert frames.any(dim=0).all()


def test_an_axis_without_mask_stays_whole() -> None:
    assert not masked(0, 10).all(dim=1).any()
    assert not masked(6, 0).all(dim=2).any()


def test_a_mask_wider_than_the_clip_is_cut() -> None:
    assert widths(masked(24, 400).all(dim=2)).max() == 40


def test_draws_depend_on_the_step_alone() -> None:
    assert torch.equal(masked(6, 10, 4), masked(6, 10, 4))
    assert not torch.equal(masked(6, 10, 4), masked(6, 10, 4, step=1))


def test_noise_and_roll() -> None:
    ramp = torch.arange(50.0)[:, None].expand(50, 3) * 100
    out = noise_and_roll(ramp.expand(400, 50, 3), draw_noise(400, generator(0, "roll", 3)), generator(0, "noise", 3))
    rolled = (out / 100).floor() * 100
    shifts = (rolled[:, 0, 0] / 100).long() * -1 % 50
    signed = torch.where(shifts > 25, shifts - 50, shifts)
    assert sorted(set(signed.tolist())) == list(range(-MOST_ROLL, MOST_ROLL + 1))
    for clip, shift in zip(rolled[:20], signed[:20].tolist(), strict=True):
        assert torch.equal(clip, ramp.roll(shift, 0))
    noise = out - rolled
    heights = noise.amax(dim=(1, 2))
    assert noise.min() >= 0
    assert heights.max() <= MOST_NOISE * 1.01
    assert heights.max() > 0.9 * MOST_NOISE
    assert heights.min() < 0.1 * MOST_NOISE
    again = noise_and_roll(ramp.expand(400, 50, 3), draw_noise(400, generator(0, "roll", 3)), generator(0, "noise", 3))
    assert torch.equal(out, again)
