"""Draw what pretraining's changes make of a sound: its log-mel spectrogram, plain and with each of them.

    python experiments/augmented_views.py SOUND OTHER OUT.png [--frames 208]

SOUND is the clip, OTHER what is mixed into it. The values are those of the model in the package (docs/models/tiny.md),
each so that it can be seen: the highest and lowest speed, the largest room.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from ssamba.audio.constants import SAMPLE_RATE
from ssamba.audio.decode import read_audio
from ssamba.data.loaders.workers import pad_rows
from ssamba.inference.outputs.figures import hertz_ticks
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
from ssamba.utils.plots import figure_file

SPEED, SECONDS, LEVEL, MIX = 1.3, 1.0, 1.0, 0.5


def draw_views(sound: Path, other: Path, out: Path, frames: int = 208) -> None:
    """Draw ``sound`` plain and with each change; ``other`` is mixed into the last one."""
    config = Config(frames=frames, stride_frequency=16, stride_time=16)
    samples = round(config.front_end.seconds_of_frames(config.frames) * SAMPLE_RATE)
    longest = round(SPEED * samples)
    two = [read_audio(path, seconds=longest / SAMPLE_RATE) for path in (sound, other)]
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
    low, high = (float(pictures["as recorded"][0].quantile(q)) for q in (0.02, 0.998))
    with figure_file(out, 11, 5.6) as figure:
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        for panel, (title, values) in zip(panels.flat, pictures.items(), strict=True):
            extent = (0, samples / SAMPLE_RATE, 0, config.mel_bins)
            look = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "cmap": "magma"}
            image = panel.imshow(values[0].T, extent=extent, vmin=low, vmax=high, **look)
            panel.set_title(title, fontsize=11)
            panel.set_yticks(*hertz_ticks(config.mel_bins, config.front_end.nyquist))
        for panel in panels[:, 0]:
            panel.set_ylabel("Hz (mel scale)")
        for panel in panels[1]:
            panel.set_xlabel("time (s)")
        figure.colorbar(image, ax=panels, label="log-mel energy, normalised", fraction=0.03, pad=0.01)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sound", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, default=208)
    arguments = parser.parse_args()
    draw_views(arguments.sound, arguments.other, arguments.out, arguments.frames)


if __name__ == "__main__":
    main()
