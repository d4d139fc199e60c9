"""Real runs of seconds for the tests of reports: sounds with names that hold markup, some of them labelled wrongly."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile
from pretrain_runs import SMALL

RATE = 16000
MARKUP = "</script><script>window.hacked=1</script>"
"""A label that would run, were it not escaped."""
CLASSES = ("dog", 'rain & "wind"', MARKUP)
HOSTILE = "<img src=x onerror=window.hacked=1>.wav"
LONG = "long-recording.wav"
PRETRAINING = SMALL | {"width": 16, "validation": 0.2, "log_every": 2}


def tone(kind: int, number: int, seconds: float) -> np.ndarray:
    """A tone of a class in noise, (samples,)."""
    rng = np.random.default_rng([kind, number])
    time = np.arange(round(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (220, 700, 1900)[kind] * time + rng.uniform(0, 6))
    return wave + 0.01 * rng.standard_normal(len(time))


def write_sounds(folder: Path, clips: int = 10) -> Path:
    """``clips`` sounds of each class, one of them long, one named with markup, two labelled wrongly; their table."""
    folder.mkdir(parents=True)
    rows = []
    for kind in range(3):
        for number in range(clips):
            long = (kind, number) == (0, 0)
            name = LONG if long else HOSTILE if (kind, number) == (1, 1) else f"{kind}-{number:02d}.wav"
            soundfile.write(folder / name, tone(kind, number, 14.0 if long else 0.7), RATE)
            wrong = number == 5 and kind < 2
            rows.append((name, CLASSES[kind + 1 if wrong else kind]))
    table = folder / "labels.csv"
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return table
