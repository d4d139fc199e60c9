"""A set with several labels a clip: pairs of ESC-10 clips mixed, in ESC-10's folds, for fit, finetune and probe.

    python experiments/mixed_sounds.py ESC10 OUT [--clips 400] [--seed 0]
    ssamba fit --data OUT --out RUN
    ssamba finetune custom --data OUT --out RUN

Half of the clips are two sounds of different classes from one fold, at random levels up to 6 dB apart and normalised to
a peak of 0.9, the other half are single sounds. OUT gets the .wav files and labels.csv with a column fold.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import numpy as np
import soundfile

from ssamba.data.datasets import read_layout
from ssamba.data.examples import Example
from ssamba.data.loaders.read_example import read_example

RATE = 16000
APART_DB = 6.0


def mixed(first: Example, second: Example, rng: random.Random) -> np.ndarray:
    """Two sounds of equal power but for up to 6 dB, as long as the longer one."""
    waves = [read_example(example) for example in (first, second)]
    out = np.zeros(max(map(len, waves)), np.float32)
    for wave, decibels in zip(waves, (0.0, rng.uniform(-APART_DB, APART_DB)), strict=True):
        power = float(np.sqrt(np.square(wave).mean())) or 1.0
        out[: len(wave)] += wave / power * 10 ** (decibels / 20)
    return 0.9 * out / max(1e-9, float(np.abs(out).max()))


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("esc10", type=Path, metavar="ESC10")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data, rng = read_layout("esc10", arguments.esc10), random.Random(arguments.seed)
    (arguments.out / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(arguments.clips):
        fold = data.folds[number % len(data.folds)]
        first = rng.choice(fold.test)
        examples, wave = [first], read_example(first)
        if rng.random() < 0.5:
            examples.append(rng.choice([e for e in fold.test if e.labels != first.labels]))
            wave = mixed(*examples, rng)
        name = f"clips/{number:04d}.wav"
        soundfile.write(arguments.out / name, wave, RATE)
        rows.append((name, ";".join(data.classes[e.labels[0]] for e in examples), fold.name))
    with open(arguments.out / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "fold"), *rows])
    print(f"{arguments.out}: {len(rows)} clips, {sum(';' in labels for _, labels, _ in rows)} of them of two sounds")


if __name__ == "__main__":
    main()
