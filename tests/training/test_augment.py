"""Masks, noise and rolling: what they change, how much, and that they are the same for the same seed and step."""

import math

import pytest
import torch
from torch import Tensor

from ssamba.audio.constants import SAMPLE_RATE
from ssamba.training.augment.transforms import (
    MAX_NOISE,
    MAX_ROLL,
    RESPONSE_KNOTS,
    ROOMS,
    change_speed,
    make_noise_bank,
    mask_stretches,
    mix_waveforms,
    noise_and_roll,
    repeat_short,
    reverberate,
    sample_frequency_response,
    sample_masks,
    sample_mixing,
    sample_noise_and_roll,
    sample_rooms,
    sample_speeds,
)
from ssamba.training.seeds import torch_generator

FILL = 7.0


def masked(frequency: int, time: int, batch: int = 500, step: int = 0) -> Tensor:
    features = torch.zeros(batch, 40, 24)
    return (
        mask_stretches(features, sample_masks(batch, torch_generator(0, "masks", step)), frequency, time, FILL) == FILL
    )


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
    out = noise_and_roll(
        ramp.expand(400, 50, 3),
        sample_noise_and_roll(400, torch_generator(0, "roll", 3)),
        torch_generator(0, "noise", 3),
    )
    rolled = (out / 100).floor() * 100
    shifts = (rolled[:, 0, 0] / 100).long() * -1 % 50
    signed = torch.where(shifts > 25, shifts - 50, shifts)
    assert sorted(set(signed.tolist())) == list(range(-MAX_ROLL, MAX_ROLL + 1))
    for clip, shift in zip(rolled[:20], signed[:20].tolist(), strict=True):
        assert torch.equal(clip, ramp.roll(shift, 0))
    noise = out - rolled
    heights = noise.amax(dim=(1, 2))
    assert noise.min() >= 0
    assert heights.max() <= MAX_NOISE * 1.01
    assert heights.max() > 0.9 * MAX_NOISE
    assert heights.min() < 0.1 * MAX_NOISE
    again = noise_and_roll(
        ramp.expand(400, 50, 3),
        sample_noise_and_roll(400, torch_generator(0, "roll", 3)),
        torch_generator(0, "noise", 3),
    )
    assert torch.equal(out, again)


def test_mixing_adds_another_clip_at_its_level() -> None:
    waveforms = torch.randn(400, 50, generator=torch.Generator().manual_seed(0))
    waveforms[:, 40:] = 0
    lengths = torch.full((400,), 40)
    other, level = sample_mixing(400, 0.3, torch_generator(0, "mixing", 0))
    assert sorted(other.tolist()) == list(range(400))
    assert 0.2 < float((level > 0).float().mean()) < 0.4
    assert level.max() <= 1
    assert level[level > 0].min() >= 0.1
    lengths[other[level > 0][0]] = 45
    mixed, longer = mix_waveforms(waveforms, lengths, other, level)
    assert torch.equal(mixed[level == 0], waveforms[level == 0])
    assert int((longer == 45).sum()) >= 1
    added = (mixed - waveforms)[level > 0]
    rms = waveforms[level > 0].square().mean(dim=1).sqrt()
    equal = lengths[level > 0] == lengths[other[level > 0]]
    ratio = added.square().mean(dim=1).sqrt() / rms
    torch.testing.assert_close(ratio[equal], level[level > 0][equal], rtol=1e-4, atol=1e-5)


def test_response_is_a_gain_and_a_smooth_curve() -> None:
    decibel = 10 / math.log(10)
    gain = sample_frequency_response(1000, 6.0, 0.0, 128, torch_generator(0, "response", 0)) * decibel
    assert torch.equal(gain.amax(dim=1), gain.amin(dim=1))
    assert -6 <= gain.min() < -5.5
    assert 5.5 < gain.max() <= 6
    curve = sample_frequency_response(1000, 0.0, 3.0, 128, torch_generator(0, "response", 0)) * decibel
    assert 2.5 < curve[:, 0].std() < 3.5  # at a knot the deviation is the one asked for
    assert curve.diff(dim=1).abs().max() < 3 * 6 / (128 / RESPONSE_KNOTS)


def test_short_clips_are_repeated() -> None:
    waveforms, lengths = torch.zeros(2, 10), torch.tensor([4, 10])
    waveforms[0, :4], waveforms[1] = torch.arange(1.0, 5.0), torch.arange(10.0)
    filled, longer = repeat_short(waveforms, lengths)
    assert filled[0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert torch.equal(filled[1], waveforms[1])
    assert longer.tolist() == [10, 10]
    assert not waveforms[0, 4:].any()


def tone(frequency: float, samples: int) -> Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(samples, dtype=torch.float64) / SAMPLE_RATE).float()


@pytest.mark.parametrize(("frequency", "loss"), [(1000, 55), (4000, 35), (6000, 28)])
@pytest.mark.parametrize("speed", [0.75, 0.9, 1.0, 1.25])
def test_speed_changes_pitch_and_length(frequency: float, loss: float, speed: float) -> None:
    whole, samples = 40_000, 30_000
    changed, lengths = change_speed(tone(frequency, whole)[None], torch.tensor([whole]), torch.tensor([speed]), samples)
    assert changed.shape == (1, samples)
    assert lengths.tolist() == [samples]
    inside = slice(500, -500)  # a tone that begins at once is not band-limited
    wrong = (changed[0] - tone(speed * frequency, samples))[inside]
    assert 10 * math.log10(float(wrong.square().mean()) / 0.5) < -loss


def test_what_the_new_speed_moves_above_half_the_rate_is_gone() -> None:
    waveforms = torch.stack([tone(5000, 20_000), tone(7000, 20_000)])
    changed, _ = change_speed(waveforms, torch.tensor([20_000] * 2), torch.tensor([1.4, 1.4]), 10_000)
    kept, gone = changed[:, 1000:-1000].square().mean(dim=1).tolist()
    assert kept > 0.4
    assert gone < 1e-4


def test_speeds_are_each_clip_s_own() -> None:
    draw = torch.Generator().manual_seed(0)
    waveforms, lengths = torch.randn(5, 9_000, generator=draw), torch.tensor([9_000, 3_000, 1, 700, 9_000])
    waveforms *= torch.arange(9_000) < lengths[:, None]
    speed = torch.tensor([1.3, 0.8, 1.1, 1.0, 0.77])
    changed, after = change_speed(waveforms, lengths, speed, 7_000)
    assert after.tolist() == [6_923, 3_750, 1, 700, 7_000]
    for row in range(5):
        alone, length = change_speed(waveforms[[row]], lengths[[row]], speed[[row]], 7_000)
        torch.testing.assert_close(changed[row], alone[0], rtol=1e-5, atol=1e-5)
        assert length == after[row]
        assert not changed[row, after[row] :].any()
    torch.testing.assert_close(changed[3, :700], waveforms[3, :700], rtol=1e-4, atol=1e-4)
    strided = torch.randn(9_000, 5, generator=draw).T
    torch.testing.assert_close(
        change_speed(strided, lengths, speed, 7_000)[0], change_speed(strided.contiguous(), lengths, speed, 7_000)[0]
    )


def test_speeds_are_as_often_faster_as_slower() -> None:
    speed = sample_speeds(4000, 1.3, torch_generator(0, "speed", 0))
    assert 1 / 1.3 <= speed.min() < 0.78
    assert 1.29 < speed.max() <= 1.3
    assert abs(float(speed.log().mean())) < 0.01
    assert torch.equal(speed, sample_speeds(4000, 1.3, torch_generator(0, "speed", 0)))
    assert not torch.equal(speed, sample_speeds(4000, 1.3, torch_generator(0, "speed", 1)))


def test_a_room_is_the_clip_and_a_tail_that_decays() -> None:
    noises, samples = make_noise_bank(torch_generator(0, "rooms' noises"), SAMPLE_RATE), 20_000
    click = torch.zeros(2, samples)
    click[:, 100] = 1
    time, level = 0.4, 0.5  # s until 60 dB are gone; of the tail against the click
    decay = SAMPLE_RATE * time / math.log(1000)
    rooms = torch.tensor([[3.0, 3.0], [decay, decay], [level, 0.0]])
    lengths = torch.tensor([500, 500])
    (heard, same), longer = reverberate(click, lengths, rooms, noises)
    assert longer.tolist() == [500 + 6400, 500]
    torch.testing.assert_close(same, click[1], rtol=0, atol=1e-5)
    assert not heard[:100].abs().max() > 1e-5
    assert abs(float(heard[100:].square().sum()) - 1) < 0.1  # click and tail together are as loud as the click was
    tail = heard[101 : 101 + 6000].double()
    blocks = 10 * tail.unflatten(0, (15, 400)).square().mean(dim=1).log10()
    fall = float(
        torch.linalg.lstsq(torch.stack([torch.arange(15.0), torch.ones(15)], 1).double(), blocks[:, None])[0][0]
    )
    assert abs(fall / 400 * SAMPLE_RATE * time + 60) < 4
    other, _ = reverberate(click, lengths, torch.tensor([[4.0, 3.0], [decay, decay], [level, 0.0]]), noises)
    assert (other[0] - heard).abs().max() > 0.01


def test_rooms_are_drawn_for_a_share_of_the_clips() -> None:
    number, decay, level = sample_rooms(4000, 0.3, SAMPLE_RATE, torch_generator(0, "rooms", 0))
    assert number.min() == 0
    assert number.max() == ROOMS - 1
    time = decay * math.log(1000) / SAMPLE_RATE
    assert 0.1 <= time.min() < 0.11
    assert 0.9 < time.max() <= 1.0001
    assert 0.27 < float((level > 0).float().mean()) < 0.33
    assert 0.1 <= level[level > 0].min() < 0.11
    assert 0.95 < level.max() <= 1
    # The drawing of one clip does not depend on the share.
    assert torch.equal(
        sample_rooms(4000, 1.0, SAMPLE_RATE, torch_generator(0, "rooms", 0))[2][level > 0], level[level > 0]
    )
