"""A seeded set of labelled sounds, made in seconds: for trying things out, for tests and for demonstrations."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from ssamba.data.scan import CountProgress
from ssamba.data.synthetic.sounds import RATE, SOUND_MAKERS, Rng, Samples, coloured_noise, log_uniform
from ssamba.utils.errors import DataError

__all__ = ["CLASS_NAMES", "make_synthetic", "synthesise"]

CLASS_NAMES = tuple(SOUND_MAKERS)
_TEST_EVERY = 4  # every fourth clip of a class is for testing


def make_synthetic(
    folder: str | os.PathLike[str],
    clips: int = 600,
    seconds: float = 2.0,
    seed: int = 0,
    format: str = "flac",
    progress: CountProgress | None = None,
) -> Path:
    """Write `clips` sounds of 18 classes in turn, 16 kHz 16-bit mono, and ``labels.csv`` (path, label, split).

    Every fourth clip of a class has split "test", the others "train". A sound depends on (seed, its number, seconds)
    alone, so a larger set begins with the smaller one, and the same call gives the same bytes. Files appear under their
    names only when complete, labels.csv last.

    Args:
        folder: made if it is missing; files of an earlier set with the same names are replaced.
        clips: number of sounds, at least 1.
        seconds: length of each file, at least 0.5.
        seed: any whole number >= 0.
        format: "flac" or "wav".
        progress: called as progress(done, total).

    Returns:
        The path of labels.csv, which is a manifest to train on.

    Raises:
        DataError: the folder cannot be written.
        ValueError: an argument out of range.
    """
    if clips < 1 or not seconds >= 0.5 or seed < 0 or format not in ("flac", "wav"):
        raise ValueError(f"clips={clips} >= 1, seconds={seconds} >= 0.5, seed={seed} >= 0, format={format} flac or wav")
    folder = Path(folder)
    rows = []
    try:
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        for number in range(clips):
            label = CLASS_NAMES[number % len(CLASS_NAMES)]
            split = "test" if number // len(CLASS_NAMES) % _TEST_EVERY == _TEST_EVERY - 1 else "train"
            name = f"audio/{number:05d}_{label}.{format}"
            _write_audio(folder / name, synthesise(label, seconds, seed, number), format)
            rows.append((name, label, split))
            if progress is not None:
                progress(number + 1, clips)
        return _write_labels(folder / "labels.csv", rows)
    except (OSError, soundfile.SoundFileError) as error:
        raise DataError(f"{folder}: the sounds cannot be written ({error})") from None


def synthesise(label: str, seconds: float, seed: int = 0, number: int = 0) -> npt.NDArray[np.int16]:
    """One sound: (samples,) int16 at 16 kHz.

    The class's sound lasts between half and all of the clip and begins anywhere that fits; then come a random spectral
    tilt, a room, background noise 10 to 30 dB below and a random loudness.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(number,))))
    samples = round(seconds * RATE)
    active = int(samples * rng.uniform(0.5, 1.0))
    begin = int(rng.integers(0, samples - active + 1))
    sound = SOUND_MAKERS[label](rng, np.arange(active) / RATE)
    sound = sound / (np.sqrt(np.mean(sound**2)) + 1e-9) * _fades(active)
    dry = np.zeros(samples)
    dry[begin : begin + active] = sound
    room = _room(rng, _tilt(dry, rng.uniform(-4.0, 4.0)))
    room /= np.sqrt(np.mean(room**2)) + 1e-9
    noise = coloured_noise(rng, samples, rng.uniform(0.0, 2.0))
    mixed = room + noise / (noise.std() + 1e-9) * 10 ** (-rng.uniform(10, 30) / 20)
    peak = log_uniform(rng, 0.03, 0.95)
    return np.round(mixed / np.abs(mixed).max() * peak * 32767).astype(np.int16)


def _fades(samples: int) -> Samples:
    """10 ms in and out: no class is given away by a click at its edges."""
    ramp = np.minimum(1.0, np.arange(1, samples + 1) / (0.01 * RATE))
    return np.asarray(ramp * ramp[::-1])


def _tilt(audio: Samples, db_per_octave: float) -> Samples:
    """Turn the spectrum around 1 kHz by `db_per_octave` dB per octave."""
    frequency = np.maximum(np.fft.rfftfreq(len(audio), 1 / RATE), 50.0)
    return np.fft.irfft(np.fft.rfft(audio) * (frequency / 1000) ** (db_per_octave / 6.02), len(audio))


def _room(rng: Rng, audio: Samples) -> Samples:
    """Add the reverberation of a random room: noise that decays, from dry to as loud as the direct sound."""
    length = int(rng.uniform(0.1, 0.5) * RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail *= rng.uniform(0.0, 0.7) / np.sqrt(np.sum(tail**2))
    tail[0] += 1.0
    size = len(audio) + length
    return np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(tail, size), size)[: len(audio)]


def _write_audio(path: Path, audio: npt.NDArray[np.int16], format: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    soundfile.write(temporary, audio, RATE, format=format.upper(), subtype="PCM_16")
    os.replace(temporary, path)


def _write_labels(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "split"))
        writer.writerows(rows)
    os.replace(temporary, path)
    return path
