"""Sounds that are made, not recorded: noise of several colours, hum, sines, clicks, silence and almost silence.

None of them is an example of a class, but noise is near rain and sea waves by every distance to class means. The
features of these few tell a regression what a microphone does not give (docs/prediction.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ssamba.inference.cuda_graphs import GraphedEncoder
from ssamba.inference.rejection.silence import recording_values

_SEED = 20240513
NOISE_COLOURS = (0.0, 1.0, 2.0)
"""Powers of frequency by which the power spectrum falls: white, pink and brown."""
NOISE_LEVELS = (0.0003, 0.003, 0.03, 0.1)
_LOUDEST = 0.99
HUMS, SINES, CLICK_RATES = (50.0, 60.0), (100.0, 300.0, 1000.0, 3000.0), (2.0, 20.0)
SHORT_SHARES = (0.5, 0.2)
"""Lengths of a few of them, in lengths of the model's grid."""


def noise_values(model: GraphedEncoder) -> Tensor:
    """Rows (N, values) on the CPU of what the classifier's linear layer reads of made-up sounds."""
    front_end = model.config.front_end
    samples = round(front_end.seconds_of_frames(model.config.frames) * front_end.sample_rate)
    return recording_values(model, list(artificial_sounds(samples, front_end.sample_rate)))


def artificial_sounds(samples: int, rate: int) -> Iterator[Tensor]:
    """The sounds, each (samples,) or shorter, float32 within -1 and 1; the same at every call."""
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    for colour in NOISE_COLOURS:
        for level in NOISE_LEVELS:
            yield _limited(level * noise_of_colour(samples, rate, colour, generator))
        yield _limited(0.03 * noise_of_colour(samples, rate, colour, generator) * _swell(samples, rate))
        for share in SHORT_SHARES:
            yield _limited(0.03 * noise_of_colour(max(2, round(share * samples)), rate, colour, generator))
    for frequency in HUMS:
        for level in (0.003, 0.1):
            yield _limited(level * _hum(samples, rate, frequency, generator))
    for frequency in SINES:
        if frequency < 0.45 * rate:
            yield 0.14 * torch.sin(2 * math.pi * frequency * _time(samples, rate))
    for clicks in CLICK_RATES:
        yield _limited(0.05 * _clicks(samples, rate, clicks, generator))
    yield torch.zeros(samples, dtype=torch.float32, device="cpu")
    yield torch.randint(-1, 2, (samples,), generator=generator, device="cpu").float() / 32768


def noise_of_colour(samples: int, rate: int, colour: float, generator: torch.Generator) -> Tensor:
    """Noise (samples,) of deviation 1 whose power falls with frequency to the power ``colour``, from 20 Hz on."""
    white = torch.randn(samples, generator=generator, dtype=torch.float32, device="cpu")
    frequencies = torch.fft.rfftfreq(samples, 1 / rate, device="cpu").clamp_min(20.0)
    shaped = torch.fft.irfft(torch.fft.rfft(white) * frequencies.pow(-colour / 2), n=samples)
    return shaped / shaped.std().clamp_min(1e-9)


def _time(samples: int, rate: int) -> Tensor:
    return torch.arange(samples, dtype=torch.float32, device="cpu") / rate


def _swell(samples: int, rate: int) -> Tensor:
    """A loudness that rises and falls once in 1.5 s."""
    return 0.5 + 0.5 * torch.sin(2 * math.pi * _time(samples, rate) / 1.5)


def _hum(samples: int, rate: int, frequency: float, generator: torch.Generator) -> Tensor:
    """A mains frequency and its harmonics, of random shares and phases."""
    found = torch.zeros(samples, dtype=torch.float32, device="cpu")
    for harmonic in range(1, 13):
        share, phase = torch.rand(2, generator=generator, dtype=torch.float32, device="cpu").tolist()
        if harmonic * frequency < rate / 2:
            turns = harmonic * frequency * _time(samples, rate) + phase
            found += share / harmonic * torch.sin(2 * math.pi * turns)
    return found / found.std().clamp_min(1e-9)


def _clicks(samples: int, rate: int, per_second: float, generator: torch.Generator) -> Tensor:
    """Clicks of a millisecond at random places, of random heights."""
    width = max(2, min(samples, round(0.001 * rate)))
    found = torch.zeros(samples, dtype=torch.float32, device="cpu")
    count = max(1, round(per_second * samples / rate))
    for place in torch.randint(0, samples - width + 1, (count,), generator=generator, device="cpu").tolist():
        height = float(torch.randn((), generator=generator, dtype=torch.float32, device="cpu"))
        found[place : place + width] += height * torch.hann_window(width, dtype=torch.float32, device="cpu")
    return found / found.std().clamp_min(1e-9)


def _limited(sound: Tensor) -> Tensor:
    return sound.clamp(-_LOUDEST, _LOUDEST)
