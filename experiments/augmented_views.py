"""Draw what pretraining's changes make of a sound: its log-mel spectrogram, plain and with each of them.

    python experiments/augmented_views.py SOUND OTHER OUT.png [--frames 208]

SOUND is the clip, OTHER what is mixed into it. The values are those of the model in the package (docs/models/tiny.md),
each so that it can be seen: the highest and lowest speed, the largest room.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from ssamba.audio.constants import SAMPLE_RATE
from ssamba.audio.decode import read_audio
from ssamba.data.loaders.workers import pad_rows
from ssamba.models.config import Config
from ssamba.training.augment.transforms import (
    apply_frequency_response,
    change_speed,
    make_noise_bank,
    mix_waveforms,
    repeat_short,
    reverberate,
    sample_frequency_response,
)
from ssamba.training.features import batch_features
from ssamba.training.seeds import torch_generator

SPEED, SECONDS, LEVEL, MIX = 1.3, 1.0, 1.0, 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sound", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, default=208)
    arguments = parser.parse_args()
    config = Config(frames=arguments.frames, stride_frequency=16, stride_time=16)
    samples = round(config.front_end.seconds_of_frames(config.frames) * SAMPLE_RATE)
    longest = round(SPEED * samples)
    two = [read_audio(path, seconds=longest / SAMPLE_RATE) for path in (arguments.sound, arguments.other)]
    long, lengths = repeat_short(*pad_rows(two, longest))
    plain, whole = long[:, :samples], lengths.clamp_max(samples)
    decay = SAMPLE_RATE * SECONDS / math.log(1000)
    room = torch.tensor([[0.0, 0.0], [decay, decay], [LEVEL, LEVEL]])
    noises = make_noise_bank(torch_generator(0, "noises"), SAMPLE_RATE)
    response = sample_frequency_response(2, 6.0, 3.0, config.mel_bins, torch_generator(0, "response", 0))

    def features(waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return batch_features(waveforms, lengths, config)

    def played(speed: float) -> torch.Tensor:
        return features(*change_speed(long, lengths, torch.full((2,), speed), samples))

    mixed = mix_waveforms(plain, whole, torch.tensor([1, 0]), torch.full((2,), MIX))
    pictures = {
        "as recorded": features(plain, whole),
        f"--speed {SPEED}: slowest": played(1 / SPEED),
        f"--speed {SPEED}: fastest": played(SPEED),
        "--reverb: the largest room": features(*reverberate(plain, whole, room, noises)),
        "--gain-db 6 --response-db 3": apply_frequency_response(features(plain, whole), response, config.std),
        "--mix: another, 6 dB weaker": features(*mixed),
    }
    figure, axes = plt.subplots(2, 3, figsize=(11, 5), sharex=True, sharey=True, layout="constrained")
    low, high = (float(pictures["as recorded"][0].quantile(q)) for q in (0.02, 0.998))
    for ax, (title, values) in zip(axes.flat, pictures.items(), strict=True):
        extent = (0, samples / SAMPLE_RATE, 0, config.mel_bins)
        ax.imshow(values[0].T, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, cmap="magma")
        ax.set_title(title, loc="left", fontsize=10)
    for ax in axes[:, 0]:
        ax.set_ylabel("mel bin")
    for ax in axes[1]:
        ax.set_xlabel("s")
    figure.savefig(arguments.out, dpi=75)


if __name__ == "__main__":
    main()
