"""Made-up recordings for the tests of search: no two are alike, and neither are two seconds of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16000


def melody(seconds: float, seed: int) -> NDArray[np.float32]:
    """Decaying tones with overtones at random times and pitches, over faint noise of a colour of its own."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    out = rng.normal(0, 0.003, n)
    kernel = rng.normal(0, 1, 8)
    out = np.convolve(out, kernel / np.abs(kernel).sum(), mode="same")
    time = np.arange(RATE) / RATE
    overtones = rng.uniform(0, 1, 6)
    for at in np.sort(rng.uniform(0, seconds, max(2, round(3 * seconds)))):
        pitch, decay = rng.uniform(120, 1200), rng.uniform(2, 20)
        tone = sum(a * np.sin(2 * np.pi * pitch * (k + 1) * time) for k, a in enumerate(overtones))
        begin = int(at * RATE)
        part = (np.exp(-decay * time) * tone)[: n - begin]
        out[begin : begin + len(part)] += 0.1 * part
    return (0.8 * out / np.abs(out).max()).astype(np.float32)


def write_melodies(folder: Path, count: int, seconds: float = 4.0) -> list[Path]:
    """``count`` melodies as WAV, FLAC, MP3 and Ogg Vorbis in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.{('wav', 'flac', 'mp3', 'ogg')[i % 4]}" for i in range(count)]
    for i, path in enumerate(paths):
        soundfile.write(path, melody(seconds, i), RATE)
    return paths
