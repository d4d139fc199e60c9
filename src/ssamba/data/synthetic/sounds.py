"""The sound classes of :mod:`ssamba.data.synthetic.generate`: each a function of a generator and a time axis.

Every function takes (rng, t) with t the (samples,) time axis in seconds at 16 kHz, and returns (samples,) at any level.
Classes come in pairs where they can (up and down, speeding and slowing): a pair has one average spectrum, so that only
a model that uses the order in time can tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ssamba.audio.front_end import PUBLISHED

Samples = npt.NDArray[np.float64]
Rng = np.random.Generator

RATE = PUBLISHED.sample_rate
"""Of the sounds that are made, Hz, independent of a model's rate."""
NYQUIST = RATE / 2
NYQUIST_MARGIN = 7600.0

# First three formants in Hz of a, e, i, o, u (an adult's; scaled at random for other speakers).
_FORMANTS = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
_SCALE = (0, 2, 4, 7, 9)  # pentatonic: any order of its notes sounds like a tune


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A draw whose logarithm is uniform: pitch and tempo are perceived that way."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _phase(frequency: Samples) -> Samples:
    return 2 * np.pi * np.cumsum(frequency) / RATE


def _harmonics(rng: Rng, frequency: Samples, rolloff: float, most: int = 20) -> Samples:
    """A stack of harmonics over a (samples,) fundamental, amplitude 1 / n**rolloff, none above the band."""
    phase = _phase(frequency)
    number = int(np.clip(NYQUIST_MARGIN / frequency.max(), 1, most))
    offsets = rng.uniform(0, 2 * np.pi, number)
    return np.sum([np.sin(n * phase + offsets[n - 1]) / n**rolloff for n in range(1, number + 1)], axis=0)


def coloured_noise(rng: Rng, samples: int, exponent: float, low: float = 0.0, high: float = NYQUIST) -> Samples:
    """Noise whose power falls by f**-exponent (0 white, 1 pink, 2 brown) between `low` and `high` Hz."""
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    shape = np.maximum(frequency, 20.0) ** (-exponent / 2) * ((frequency >= low) & (frequency <= high))
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * shape, samples)


def _sweep(rng: Rng, t: Samples) -> Samples:
    low, octaves, bend = log_uniform(rng, 150, 900), rng.uniform(1.0, 3.0), rng.uniform(0.6, 1.6)
    return _harmonics(rng, low * 2 ** (octaves * (t / t[-1]) ** bend), rolloff=rng.uniform(1.0, 3.0), most=6)


def sweep_up(rng: Rng, t: Samples) -> Samples:
    """A glide of one to three octaves upwards."""
    return _sweep(rng, t)


def sweep_down(rng: Rng, t: Samples) -> Samples:
    """The same glides backwards."""
    return _sweep(rng, t)[::-1]


def _pulse(rng: Rng, samples: int) -> Samples:
    """One short click with a resonance, the same throughout a clip."""
    t = np.arange(samples) / RATE
    return np.sin(2 * np.pi * log_uniform(rng, 600, 5000) * t) * np.exp(-t / rng.uniform(0.004, 0.02))


def _place(t: Samples, times: Samples, pulse: Samples) -> Samples:
    """`pulse` at each of `times` (seconds), with the tails that overlap added."""
    train = np.zeros(len(t) + len(pulse))
    for begin in (times * RATE).astype(int):
        if 0 <= begin < len(t):
            train[begin : begin + len(pulse)] += pulse
    return train[: len(t)]


def _bounces(rng: Rng, t: Samples, order: int) -> Samples:
    """Clicks whose gaps shrink by a steady factor (order 1) or grow by it (order -1), in the middle of the clip."""
    gaps = log_uniform(rng, 0.12, 0.25) * rng.uniform(0.8, 0.9) ** np.arange(40)
    times = np.concatenate(([0.0], np.cumsum(np.maximum(gaps, 0.02))))
    times = times[times < t[-1] - 0.05]
    times = times if order > 0 else times[-1] - times[::-1]
    return _place(t, times + (t[-1] - 0.05 - times[-1]) / 2, _pulse(rng, 1600))


def pulses_speeding(rng: Rng, t: Samples) -> Samples:
    """Clicks that come ever faster, as of a bouncing ball."""
    return _bounces(rng, t, 1)


def pulses_slowing(rng: Rng, t: Samples) -> Samples:
    """Clicks that come ever slower: the same gaps in the other order."""
    return _bounces(rng, t, -1)


def click_train(rng: Rng, t: Samples) -> Samples:
    """Clicks at a steady rate."""
    return _place(t, np.arange(rng.uniform(0, 0.05), t[-1], 1 / log_uniform(rng, 4, 16)), _pulse(rng, 1600))


def _whoosh(rng: Rng, t: Samples) -> Samples:
    """Band noise whose centre and loudness rise: a bank of bands, each opened as the centre passes."""
    low, high = log_uniform(rng, 200, 600), log_uniform(rng, 2500, 6000)
    centre = np.log(low) + np.log(high / low) * t / t[-1]
    edges = np.exp(np.linspace(np.log(low / 1.5), np.log(min(high * 1.5, 7900)), 13))
    width = rng.uniform(0.2, 0.5)
    out = np.zeros(len(t))
    for left, right in pairwise(edges):
        band = coloured_noise(rng, len(t), 0.0, left, right)
        out += band / (band.std() + 1e-9) * np.exp(-(((centre - np.log(left * right) / 2) / width) ** 2))
    return out * (0.2 + t / t[-1])


def whoosh_rising(rng: Rng, t: Samples) -> Samples:
    """Noise that rises in pitch and loudness."""
    return _whoosh(rng, t)


def whoosh_falling(rng: Rng, t: Samples) -> Samples:
    """The same backwards."""
    return _whoosh(rng, t)[::-1]


def pure_tone(rng: Rng, t: Samples) -> Samples:
    """A steady sine."""
    return np.sin(2 * np.pi * log_uniform(rng, 120, 4000) * t)


def vibrato_tone(rng: Rng, t: Samples) -> Samples:
    """Harmonics with the vibrato of a voice or a string."""
    wobble = np.sin(2 * np.pi * rng.uniform(4, 8) * t + rng.uniform(0, 6))
    return _harmonics(rng, log_uniform(rng, 100, 700) * 2 ** (rng.uniform(0.02, 0.08) * wobble), rng.uniform(0.7, 1.5))


def vowel(rng: Rng, t: Samples) -> Samples:
    """A sung vowel gliding to another: harmonics weighted by formants that move (source and filter)."""
    base = log_uniform(rng, 90, 300) * 2 ** (rng.uniform(-0.2, 0.2) * t / t[-1])
    phase, size = _phase(base), rng.uniform(0.9, 1.25)
    begin, end = (np.array(_FORMANTS[index]) * size for index in rng.choice(5, 2, replace=False))
    mix = 1 / (1 + np.exp(-12 * (t / t[-1] - rng.uniform(0.3, 0.7))))
    formants = [left + (right - left) * mix for left, right in zip(begin, end, strict=True)]
    out = np.zeros(len(t))
    for n in range(1, int(min(40, 4500 / base.max())) + 1):
        gain = sum(1 / (1 + ((n * base - formant) / 80) ** 2) for formant in formants)
        out += gain / n**0.5 * np.sin(n * phase)
    return out


def impact(rng: Rng, t: Samples) -> Samples:
    """One to three strikes of a body with a few inharmonic modes."""
    modes = log_uniform(rng, 200, 1500) * np.cumprod(np.concatenate(([1.0], rng.uniform(1.2, 2.2, 4))))
    decay = log_uniform(rng, 0.05, 0.4)
    ring = sum(
        np.sin(2 * np.pi * mode * t + rng.uniform(0, 6)) * np.exp(-t / (decay / (1 + 0.5 * index)))
        for index, mode in enumerate(modes[modes < NYQUIST_MARGIN])
    )
    return _place(t, np.sort(rng.uniform(0, 0.7 * t[-1], rng.integers(1, 4))), np.asarray(ring))


def tremolo(rng: Rng, t: Samples) -> Samples:
    """Harmonics whose loudness beats steadily."""
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * log_uniform(rng, 5, 20) * t)
    return beat**2 * _harmonics(rng, np.full(len(t), log_uniform(rng, 150, 1500)), rng.uniform(1.0, 2.5), most=6)


def siren(rng: Rng, t: Samples) -> Samples:
    """A tone whose pitch swings slowly and far."""
    swing = np.sin(2 * np.pi * log_uniform(rng, 0.8, 3.0) * t + rng.uniform(0, 6))
    return _harmonics(rng, log_uniform(rng, 400, 1500) * 2 ** (rng.uniform(0.3, 0.7) * swing), rng.uniform(1.0, 2.5), 5)


def bird(rng: Rng, t: Samples) -> Samples:
    """A call of short high chirps, repeated."""
    samples = int(rng.uniform(0.04, 0.12) * RATE)
    s = np.arange(samples) / samples
    frequency = log_uniform(rng, 2000, 4000) * 2 ** (rng.uniform(0.3, 0.8) * rng.choice([-1, 1]) * s**2)
    chirp = np.sin(_phase(frequency)) * np.sin(np.pi * s)
    gap = samples / RATE * rng.uniform(1.3, 2.0)
    call, rest = rng.integers(3, 6), rng.uniform(0.15, 0.4)
    times = np.concatenate([np.arange(call) * gap + phrase * (call * gap + rest) for phrase in range(20)])
    return _place(t, times, chirp)


def drum_loop(rng: Rng, t: Samples) -> Samples:
    """A bar of kick, snare and hat, repeated."""
    s = np.arange(3200) / RATE
    kick = np.sin(_phase(rng.uniform(45, 70) + 120 * np.exp(-s / 0.02))) * np.exp(-s / 0.07)
    snare = rng.standard_normal(3200) * np.exp(-s / 0.05) * 0.6 + np.sin(2 * np.pi * 190 * s) * np.exp(-s / 0.03)
    hat = coloured_noise(rng, 3200, 0.0, 5000, NYQUIST) * np.exp(-s / 0.015)
    beat = rng.uniform(0.09, 0.16)
    bar = np.arange(0, t[-1], 8 * beat)
    out = np.zeros(len(t))
    for sound, density in ((kick, 0.3), (snare, 0.25), (hat, 0.7)):
        hits = np.flatnonzero(rng.random(8) < density)
        hits = hits if len(hits) else np.array([0])
        out += _place(t, (bar[:, None] + hits * beat).ravel(), sound)
    return out


def _melody(rng: Rng, t: Samples, order: int) -> Samples:
    notes = rng.integers(4, 8)
    steps = np.sort(rng.choice(10, notes, replace=False))[::order]
    pitch = log_uniform(rng, 150, 500) * 2 ** ((np.array([_SCALE[n % 5] + 12 * (n // 5) for n in steps])) / 12)
    index = np.minimum((t / t[-1] * notes).astype(int), notes - 1)
    inside = t / t[-1] * notes - index
    return _harmonics(rng, pitch[index], rng.uniform(1.0, 2.0), 8) * np.exp(-3 * inside) * np.minimum(1, inside * 30)


def melody_rising(rng: Rng, t: Samples) -> Samples:
    """Plucked notes going up a scale."""
    return _melody(rng, t, 1)


def melody_falling(rng: Rng, t: Samples) -> Samples:
    """Plucked notes going down a scale."""
    return _melody(rng, t, -1)


def steady_noise(rng: Rng, t: Samples) -> Samples:
    """White, pink or band noise without any change."""
    low = log_uniform(rng, 50, 2500)
    return coloured_noise(rng, len(t), rng.uniform(0, 1.5), low, min(NYQUIST, low * log_uniform(rng, 2, 16)))


SOUND_MAKERS: dict[str, Callable[[Rng, Samples], Samples]] = {
    function.__name__: function
    for function in (
        sweep_up, sweep_down, pulses_speeding, pulses_slowing, click_train, whoosh_rising, whoosh_falling, pure_tone,
        vibrato_tone, vowel, impact, tremolo, siren, bird, drum_loop, melody_rising, melody_falling, steady_noise,
    )
}  # fmt: skip
