"""What keeps noise and background out of the classes of ``ssamba fit``: tables of docs/prediction.md and docs/fit.md.

    python experiments/background.py ESC10 OUT [--other FOLDER] [--model SOURCE] [--draws 10]

First all ten classes of ESC-10, each fold tested with what is fitted on the other four: how many of its clips keep a
class, those of rain by themselves, and how many made-up sounds have none, by the distances to class means alone and
with the regression against made-up noise. The tested sounds have other seeds, levels and shapes than those in
``ssamba.inference.rejection.noise``. Then each draw takes seven classes and four folds; background is the other three
classes' clips of these folds, and half of the sources (folders) in FOLDER, and what is tested are the fifth fold's
clips and the other sources. The features are kept in OUT.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from few_shot import set_features
from torch import Tensor

from ssamba.audio.decode import read_audio
from ssamba.evaluation.logistic_regression import fit_linear
from ssamba.evaluation.rejection_fit import OtherSounds, Trial, make_rejection
from ssamba.inference.model import Encoder
from ssamba.inference.rejection.noise import noise_of_colour, noise_values
from ssamba.inference.rejection.score import Rejection
from ssamba.inference.rejection.silence import recording_values, silence_values
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.fit.run import prepare_fit
from ssamba.utils.tensor_file import read_tensors, write_tensors

RATE, SAMPLES, C, UNKNOWN, A_SOURCE = 16000, 80000, 0.1, 3, 10
LEVELS = (0.0005, 0.001, 0.005, 0.01, 0.02, 0.05, 0.15, 0.3)


class Clips(NamedTuple):
    """Features (N, d), classes and folds (N,) of the set."""

    x: Tensor
    labels: Tensor
    folds: Tensor


def made_up() -> dict[str, list[Tensor]]:
    """Sounds of the kinds that are to have no class, other ones than those fitted on."""
    g, time = torch.Generator().manual_seed(99), torch.arange(SAMPLES) / RATE
    colours = {"white noise": 0.0, "pink noise": 1.0, "brown noise": 2.0, "blue noise": -1.0, "between": 0.5}
    found = {k: [a * noise_of_colour(SAMPLES, RATE, c, g) for a in LEVELS] for k, c in colours.items()}

    def band(low: float, high: float) -> Tensor:
        spectrum = torch.fft.rfft(torch.randn(SAMPLES, generator=g))
        frequencies = torch.fft.rfftfreq(SAMPLES, 1 / RATE)
        sound = torch.fft.irfft(spectrum * ((frequencies >= low) & (frequencies < high)), n=SAMPLES)
        return sound / sound.std()

    def hum(frequency: float) -> Tensor:
        harmonics = [
            torch.sin(2 * math.pi * (h * frequency * time + float(torch.rand(1, generator=g)))) / h for h in range(1, 9)
        ]
        return torch.stack(harmonics).sum(0) / 1.1

    def clicks(per_second: float) -> Tensor:
        sound = torch.zeros(SAMPLES)
        for place in torch.randint(0, SAMPLES - 16, (max(1, int(per_second * 5)),), generator=g).tolist():
            sound[place : place + 16] += torch.randn(1, generator=g) * torch.hann_window(16)
        return sound / sound.std()

    bands = ((100, 1000), (500, 2000), (1000, 4000), (2000, 8000), (4000, 8000), (200, 6000))
    found["band noise"] = [a * band(*b) for b in bands for a in (0.003, 0.05)]
    found["hum"] = [a * hum(f) for f in (50, 55, 60, 100, 120) for a in (0.002, 0.02, 0.2)]
    found["hum and noise"] = [0.03 * hum(50) + 0.05 * noise_of_colour(SAMPLES, RATE, c, g) for c in (0.0, 1.0)]
    tones = (110, 220, 440, 880, 1500, 2000, 4000, 6000)
    found["sine"] = [a * torch.sin(2 * math.pi * f * time) for f in tones for a in (0.01, 0.3)]
    found["clicks"] = [a * clicks(n) for n in (0.5, 1, 5, 10, 50, 200) for a in (0.02, 0.1)]
    found["very quiet noise"] = [
        a * noise_of_colour(SAMPLES, RATE, c, g) for a in (1e-5, 3e-5, 1e-4) for c in (0, 1, 2)
    ]
    found["short noise"] = [0.05 * noise_of_colour(n, RATE, c, g) for n in (16000, 30000) for c in (0.0, 1.0)]
    return found


def other_sources(folder: Path) -> dict[str, list[Tensor]]:
    """Five seconds of some files of each folder below."""
    draw, found = random.Random(0), {}
    for source in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in source.rglob("*") if path.suffix in (".opus", ".wav", ".flac"))
        for path in draw.sample(files, min(len(files), A_SOURCE)):
            audio = read_audio(path)
            start = draw.randrange(max(1, len(audio) - SAMPLES))
            found.setdefault(source.name, []).append(torch.from_numpy(audio[start : start + SAMPLES].copy()))
    return found


def kept_values(path: Path, model: Encoder, make: Callable[[], dict[str, list[Tensor]]]) -> dict[str, Tensor]:
    """What the classifier reads of sounds by kind, from a file where it is there already."""
    if not path.exists():
        write_tensors(path, {kind: recording_values(model, sounds) for kind, sounds in make().items()})
    return read_tensors(path)[0]


def fitted(clips: Clips, train: Tensor, classes: int, others: OtherSounds) -> Rejection:
    """As ``ssamba fit`` makes it, its trials by fold."""
    folds, targets = clips.folds[train].unique(), F.one_hot(clips.labels, classes).double()
    trials = []
    for fold in folds:
        inner, held = train & (clips.folds != fold), train & (clips.folds == fold)
        trials.append(
            Trial(clips.x[inner], targets[inner], clips.x[held], torch.arange(int(held.sum())), targets[held])
        )
    rejection, _ = make_rejection(clips.x[train], targets[train], trials, others)
    assert rejection is not None
    return rejection


def print_noise(clips: Clips, others: OtherSounds, rain: int, tested: dict[str, Tensor]) -> None:
    """Kept and rejected shares, before and after, over the five folds."""
    none = OtherSounds(others.silence, others.noise[:0], others.background, others.recordings)
    rows: dict[str, list[tuple[float, float]]] = {}
    right = [0, 0, 0]
    for fold in clips.folds.unique():
        train, held = clips.folds != fold, clips.folds == fold
        both = [plain_rejection(clips, train, none), fitted(clips, train, 10, others)]
        (model,) = fit_linear(clips.x[train], F.one_hot(clips.labels[train], 10).double(), [C])
        correct = model.scores(clips.x[held]).argmax(1) == clips.labels[held]
        kept = [found.unlike(clips.x[held]) <= 1 for found in both]
        right = [n + int((correct & k).sum()) for n, k in zip(right, (torch.ones_like(correct), *kept), strict=True)]
        groups = {"all clips keep a class": kept, "rain keeps one": [k[clips.labels[held] == rain] for k in kept]}
        groups |= {kind: [found.unlike(values) > 1 for found in both] for kind, values in tested.items()}
        for name, (before, after) in groups.items():
            rows.setdefault(name, []).append((float(before.double().mean()), float(after.double().mean())))
    print("| | distance alone | with made-up noise |\n|---|---|---|")
    for name, values in rows.items():
        print(
            f"| {name} | " + " | ".join(f"{100 * statistics.mean(v):.0f} %" for v in zip(*values, strict=True)) + " |"
        )
    print(f"right and with a class: {right[1]} and {right[2]} of {len(clips.x)}; {right[0]} with --no-reject")


def plain_rejection(clips: Clips, train: Tensor, others: OtherSounds) -> Rejection:
    """The distances alone."""
    found = fitted(clips, train, int(clips.labels.max()) + 1, others)
    return found if found.background is None else Rejection(found.centre, found.scale, found.means, found.border)


def print_background(clips: Clips, others: OtherSounds, sources: dict[str, Tensor], draws: int) -> None:
    """Kept known clips, right ones, and rejected background, for each kind of background and amount of it."""
    rows: dict[str, list[list[float]]] = {}
    for draw in range(draws):
        known = torch.tensor(sorted(random.Random(draw).sample(range(10), 10 - UNKNOWN)))
        is_known, tested = torch.isin(clips.labels, known), clips.folds == clips.folds.unique()[draw % 5]
        renamed = clips._replace(labels=torch.searchsorted(known, clips.labels).clamp_max(len(known) - 1))
        train, like = is_known & ~tested, is_known & tested
        kinds = {"the other three classes": (clips.x[~is_known & ~tested], clips.x[~is_known & tested])}
        if sources:
            names = random.Random(draw).sample(sorted(sources), len(sources) // 2)
            parts = [torch.cat([v for k, v in sources.items() if (k in names) is used]) for used in (True, False)]
            kinds["music, speech, effects"] = (parts[0], parts[1])
        (model,) = fit_linear(clips.x[train], F.one_hot(renamed.labels[train], len(known)).double(), [C])
        correct = model.scores(clips.x[like]).argmax(1) == renamed.labels[like]
        for kind, (given, new) in kinds.items():
            for name, count in (("without", 0), ("10 clips", 10), ("all", len(given))):
                chosen = given[torch.randperm(len(given), generator=torch.Generator().manual_seed(draw))[:count]]
                found = fitted(
                    renamed, train, len(known), OtherSounds(others.silence, others.noise, chosen, torch.arange(count))
                )
                kept = found.unlike(clips.x[like]) <= 1
                shares = (
                    (found.unlike(new) > 1).double().mean(),
                    kept.double().mean(),
                    (kept & correct).double().mean(),
                )
                rows.setdefault(f"{kind} | {name}", []).append([*map(float, shares), float(correct.double().mean())])
    print("| background | given | of it without a class | known clips with one | right and with one | right |")
    print("|---" * 6 + "|")
    for name, found_rows in rows.items():
        cells = [f"{100 * statistics.mean(values):.1f} %" for values in zip(*found_rows, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--noisy", default="rain", help="the class most like noise")
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args(words)
    data, features = set_features(arguments.data, arguments.out, arguments.model)
    examples = [(number, example) for number, fold in enumerate(data.folds) for example in fold.test]
    clips = Clips(
        torch.stack([features[example.key] for _, example in examples]),
        torch.tensor([example.labels[0] for _, example in examples]),
        torch.tensor([number for number, _ in examples]),
    )
    model = prepare_fit(FitRecipe(layout="esc10"), arguments.data, arguments.model, "cpu").model
    empty = clips.x[:0], torch.empty(0, dtype=torch.int64)
    others = OtherSounds(silence_values(model), noise_values(model), *empty)
    tested = kept_values(arguments.out / "made-up.safetensors", model, made_up)
    print_noise(clips, others, data.classes.index(arguments.noisy), tested)
    sources: dict[str, Tensor] = {}
    if arguments.other is not None:
        path = arguments.out / "other.safetensors"
        sources = kept_values(path, model, lambda: other_sources(arguments.other))
    print_background(clips, others, sources, arguments.draws)


if __name__ == "__main__":
    main()
