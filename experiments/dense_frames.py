"""What do frames closer than the patches give? The table of docs/embedding.md.

    python experiments/dense_frames.py esc10 ESC10
    python experiments/dense_frames.py words ARABIC_SPEECH_COMMANDS --sequences 60
    python experiments/dense_frames.py speech ARABIC_SPEECH_COMMANDS --sequences 16 --hops 160 80 40

Pieces of real recordings of equal loudness are joined, so that it is known when which sound begins: of ESC-10 the
loudest stretch of a random length (0.4 to 1.6 s), of ten words the word without the silence around it; for "speech"
such words between pauses of 0.3 to 1 s, which hold the room's noise of the same recording, and two classes. A logistic
regression on frame embeddings learns which sound it is, on four folds for the fifth, or on the training speakers for
the test speakers. Two scores, both on a grid of 10 ms where the nearest frame answers: the share of the grid with the
right class, and how far from the true border the most likely one lies when the two classes are known. "Interpolated"
are the vectors of the plain pass, linearly between their times. Milliseconds are processor time with one thread.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import ssamba
from ssamba.data.datasets.arabic_speech_commands import read_arabic_speech_commands
from ssamba.data.datasets.esc import read_esc10
from ssamba.data.examples import Example
from ssamba.data.loaders.read_example import read_example
from ssamba.evaluation.logistic_regression import LinearModel, fit_linear

RATE, GRID = 16000, 0.01
LOUDNESS = 0.05
WORDS = 10
"""Of the 40 words; ESC-10 has as many classes."""
STRENGTH = 100.0
"""C of the regression times the number of frames: the same weight of the data at all hops."""
Frames = tuple[NDArray[np.float64], Tensor]
"""Times (T,) in s and vectors (T, d)."""


@dataclass(frozen=True)
class Sequence:
    """A joined recording: samples, the second at which each piece begins (and the end), and the pieces' classes."""

    audio: NDArray[np.float32]
    edges: NDArray[np.float64]
    labels: NDArray[np.int64]

    def at(self, times: NDArray[np.float64]) -> NDArray[np.int64]:
        """The class at these seconds."""
        return self.labels[np.clip(np.searchsorted(self.edges, times, side="right") - 1, 0, len(self.labels) - 1)]


def level(audio: NDArray[np.float32]) -> NDArray[np.float64]:
    """Root mean square of each 10 ms."""
    blocks = audio[: len(audio) // 160 * 160].reshape(-1, 160).astype(np.float64)
    return np.sqrt((blocks**2).mean(axis=1))


def loudest(audio: NDArray[np.float32], rng: random.Random) -> NDArray[np.float32]:
    """The loudest stretch of a random length."""
    n = round(rng.uniform(0.4, 1.6) * 100)
    energy = np.concatenate([[0.0], np.cumsum(level(audio) ** 2)])
    first = int(np.argmax(energy[n:] - energy[:-n])) if len(energy) > n else 0
    return audio[160 * first : 160 * (first + n)]


def spoken(audio: NDArray[np.float32], rng: random.Random) -> NDArray[np.float32]:
    """From the first to the last 10 ms that are at most 30 dB below the loudest."""
    loud = np.flatnonzero(level(audio) >= level(audio).max() / 10**1.5)
    return audio[160 * loud[0] : 160 * (loud[-1] + 1)]


def word_and_pause(audio: NDArray[np.float32], rng: random.Random) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What is around the word, over and over for a random time, and the word; at one loudness, that of the word."""
    word = spoken(audio, rng)
    first = int(np.flatnonzero(level(audio) >= level(audio).max() / 10**1.5)[0]) * 160
    rest = np.concatenate([audio[:first], audio[first + len(word) :]])
    length = round(rng.uniform(0.3, 1.0) * RATE)
    pause = np.resize(rest, length) if len(rest) else np.zeros(length, np.float32)
    gain = np.float32(LOUDNESS / max(float(np.sqrt((word.astype(np.float64) ** 2).mean())), 1e-6))
    return pause * gain, word * gain


def join_speech(examples: list[Example], pieces: int, rng: random.Random) -> Sequence:
    """Pauses (class 0) and words (class 1) in turn."""
    parts = [part for _ in range(pieces) for part in word_and_pause(read_example(rng.choice(examples)), rng)]
    edges = np.concatenate([[0], np.cumsum([len(part) for part in parts])]) / RATE
    return Sequence(np.concatenate(parts), edges, np.arange(2 * pieces) % 2)


def join(examples: list[Example], name: str, pieces: int, rng: random.Random) -> Sequence:
    """Pieces of random examples, none of the class before it."""
    if name == "speech":
        return join_speech(examples, pieces, rng)
    cut = loudest if name == "esc10" else spoken
    parts: list[NDArray[np.float32]] = []
    labels: list[int] = []
    while len(parts) < pieces:
        example = rng.choice(examples)
        if labels and example.labels[0] == labels[-1]:
            continue
        part = cut(read_example(example), rng)
        parts.append((part * (LOUDNESS / max(np.sqrt((part.astype(np.float64) ** 2).mean()), 1e-6))).astype(np.float32))
        labels.append(example.labels[0])
    edges = np.concatenate([[0], np.cumsum([len(part) for part in parts])]) / RATE
    return Sequence(np.concatenate(parts), edges, np.array(labels))


def make_parts(name: str, root: Path, count: int, pieces: int) -> list[list[Sequence]]:
    """Sequences of the five folds, or of training and test speakers."""
    rng = random.Random(0)
    if name == "esc10":
        groups = [list(fold.test) for fold in read_esc10(root).folds]
    else:
        (fold,) = read_arabic_speech_commands(root).folds
        groups = [list(fold.train), list(fold.test)]
    groups = [[example for example in group if example.labels[0] < WORDS] for group in groups]
    return [[join(group, name, pieces, rng) for _ in range(count)] for group in groups]


def embed(model: ssamba.Encoder, parts: list[list[Sequence]], hop: int) -> tuple[list[list[Frames]], float]:
    """The frames of each sequence, and processor milliseconds for a second of audio."""
    model.embed(parts[0][0].audio, RATE, hop_ms=hop)  # compiles
    begin, seconds, found = time.process_time(), 0.0, []
    for part in parts:
        found.append([])
        for sequence in part:
            out = model.embed(sequence.audio, RATE, hop_ms=hop)
            found[-1].append((out.times.numpy(), out.frames[0]))
            seconds += len(sequence.audio) / RATE
    return found, 1000 * (time.process_time() - begin) / seconds


def interpolated(frames: Frames, hop: int) -> Frames:
    """Vectors each ``hop`` ms, linear between those that are there."""
    times, vectors = frames
    dense = np.arange(times[0], times[-1] + 1e-9, hop / 1000)
    place = np.interp(dense, times, np.arange(len(times)))
    low = np.minimum(place.astype(np.int64), max(len(times) - 2, 0))
    share = torch.from_numpy(place - low)[:, None].float()
    return dense, torch.lerp(vectors[low], vectors[np.minimum(low + 1, len(times) - 1)], share)


def fit(sequences: list[Sequence], frames: list[Frames], classes: int) -> LinearModel:
    """The regression from frames to the class at their centres."""
    labels = np.concatenate([s.at(times) for s, (times, _) in zip(sequences, frames, strict=True)])
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), classes)
    return fit_linear(torch.cat([x for _, x in frames]), targets, [STRENGTH / len(labels)])[0]


def score(sequence: Sequence, frames: Frames, model: LinearModel) -> tuple[float, list[float]]:
    """The share of the grid with the right class, and the distance of each border in ms."""
    times, vectors = frames
    log_p = model.scores(vectors).log_softmax(dim=1).numpy()
    grid = np.arange(GRID / 2, sequence.edges[-1], GRID)
    nearest = np.clip(np.searchsorted((times[1:] + times[:-1]) / 2, grid), 0, len(times) - 1)
    right = float((log_p[nearest].argmax(axis=1) == sequence.at(grid)).mean())
    middles = (sequence.edges[1:] + sequence.edges[:-1]) / 2
    errors = []
    for i, edge in enumerate(sequence.edges[1:-1]):
        here = (grid >= middles[i]) & (grid < middles[i + 1])
        gain = log_p[nearest[here], sequence.labels[i]] - log_p[nearest[here], sequence.labels[i + 1]]
        border = int(np.argmax(np.concatenate([[0.0], np.cumsum(gain)])))
        errors.append(1000 * abs(grid[here][0] - GRID / 2 + GRID * border - edge))
    return right, errors


def row(name: str, parts: list[list[Sequence]], frames: list[list[Frames]], classes: int, cost: str) -> str:
    """A line of the table: all parts tested in turn, of two parts the second alone."""
    accuracies, errors = [], []
    for test in range(len(parts)) if len(parts) > 2 else [1]:
        train = [i for i in range(len(parts)) if i != test]
        model = fit([s for i in train for s in parts[i]], [f for i in train for f in frames[i]], classes)
        for sequence, each in zip(parts[test], frames[test], strict=True):
            right, distances = score(sequence, each, model)
            accuracies.append(right)
            errors += distances
    near = statistics.fmean(error <= 50 for error in errors)
    return (
        f"| {name} | {100 * statistics.fmean(accuracies):.1f} % | {statistics.median(errors):.0f} ms | "
        f"{statistics.fmean(errors):.0f} ms | {100 * near:.1f} % | {cost} |"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("esc10", "words", "speech"))
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--hops", type=int, nargs="+", default=[160, 80, 40, 20], metavar="MS")
    parser.add_argument("--sequences", type=int, default=12, help="in each part")
    parser.add_argument("--pieces", type=int, default=8, help="in a sequence")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = ssamba.load(arguments.model, "cpu")
    classes = 2 if arguments.set == "speech" else 10
    parts = make_parts(arguments.set, arguments.root, arguments.sequences, arguments.pieces)
    seconds = sum(len(s.audio) for part in parts for s in part) / RATE
    print(f"{len(parts)} parts of {arguments.sequences} sequences, {seconds:.0f} s")
    print("| hop | right | border: median | mean | within 50 ms | for 1 s of audio |\n|---|---|---|---|---|---|")
    plain, cost = embed(model, parts, arguments.hops[0])
    print(row(f"{arguments.hops[0]} ms", parts, plain, classes, f"{cost:.1f} ms"), flush=True)
    for hop in arguments.hops[1:]:
        between = [[interpolated(frames, hop) for frames in part] for part in plain]
        print(row(f"interpolated to {hop} ms", parts, between, classes, f"{cost:.1f} ms"), flush=True)
        dense, its_cost = embed(model, parts, hop)
        print(row(f"{hop} ms", parts, dense, classes, f"{its_cost:.1f} ms"), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
