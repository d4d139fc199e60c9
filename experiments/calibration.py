"""Are the probabilities of ``ssamba fit`` true, and which score tells unlike sounds? Tables of docs/prediction.md.

    python experiments/calibration.py ESC10 OUT [--speech FOLDER] [--model SOURCE] [--draws 10]

First the calibration error of all five folds of ESC-10, before and after the temperature of the other folds, for the
regression as it is and for one fitted to labels that are smoothed as in fine-tuning. Then each draw takes seven classes
and four folds to fit on; clips of the fifth fold are known (the seven) or unlike (the other three), and so are silence,
white noise, tones, and 100 files of FOLDER. The border of each score is the 95th percentile of clips held out of the
four folds. The features are kept in OUT.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from few_shot import set_features
from torch import Tensor

from ssamba.audio.decode import read_audio
from ssamba.evaluation import metrics
from ssamba.evaluation.calibration import HeldOut, calibrate
from ssamba.evaluation.logistic_regression import Standardiser, fit_linear
from ssamba.inference.batches import group_segments, run_passes
from ssamba.inference.predict import PredictOptions, prediction_plan
from ssamba.inference.rejection.score import fit_rejection
from ssamba.inference.windows import cut_recordings
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.fit.run import prepare_fit

Score = Callable[[Tensor], Tensor]
C = 0.1
UNKNOWN, SMOOTHING = 3, 0.2


def other_sounds(root: Path, source: str, speech: Path | None) -> dict[str, Tensor]:
    """What the classifier reads of sounds that are none of the set, by kind."""
    generator, length = torch.Generator().manual_seed(0), 80000
    time = torch.arange(length) / 16000
    loudness = (0.001, 0.01, 0.03, 0.1, 0.3)
    waveforms = {
        "silence": [
            torch.zeros(length),
            torch.zeros(16000),
            torch.randint(-1, 2, (length,), generator=generator) / 32768,
        ],
        "noise": [a * torch.randn(length, generator=generator).clamp(-3, 3) for a in loudness for _ in range(4)],
        "tones": [0.3 * torch.sin(2 * math.pi * f * time) for f in (110, 220, 440, 880, 1000, 2000, 4000, 6000)],
    }
    if speech is not None:
        files = sorted(path for path in speech.rglob("*") if path.suffix in (".opus", ".wav", ".flac"))
        waveforms["speech"] = [torch.from_numpy(read_audio(path)) for path in random.Random(0).sample(files, 100)]
    model = prepare_fit(FitRecipe(layout="esc10"), root, source, "cpu").model
    found = {}
    for name, recordings in waveforms.items():
        segments = cut_recordings(model, enumerate([x] for x in recordings), prediction_plan(model, PredictOptions()))
        passes = run_passes(group_segments(model, segments), model.infer_values)
        found[name] = torch.stack([values.cpu() for _, values in passes])
    return found


def print_calibration(x: Tensor, labels: Tensor, folds: Tensor) -> None:
    """A row for labels as they are, and smoothed."""
    targets = F.one_hot(labels).double()
    print("| labels | right | T | ECE before | after | NLL before | after |\n|---|---|---|---|---|---|---|")
    for name, share in (("as they are", 0.0), (f"smoothed {SMOOTHING:g}", SMOOTHING)):
        parts, right = [], 0
        for fold in folds.unique():
            train, held = folds != fold, folds == fold
            (model,) = fit_linear(x[train], (1 - share) * targets[train] + share / targets.shape[1], [C])
            logits = model.scores(x[held])
            parts.append(HeldOut(logits.numpy(), targets[held].numpy()))
            right += int((logits.argmax(1) == labels[held]).sum())
        found = calibrate(parts, "ce", "cross-validation")
        ece, nll = (
            f"{100 * found.ece_before:.1f} % | {100 * found.ece_after:.1f} %",
            f"{found.nll_before:.3f} | {found.nll_after:.3f}",
        )
        print(f"| {name} | {right} of {len(x)} | {found.temperature:.2f} | {ece} | {nll} |")


def make_scores(x: Tensor, labels: Tensor) -> dict[str, Score]:
    """Functions of features, higher for what is more unlike the training features."""
    targets = F.one_hot(labels).double()
    (model,) = fit_linear(x, targets, [C])
    standardise, rejection = Standardiser.of(x), fit_rejection(x, targets)
    z = standardise(x)
    means = torch.stack([z[labels == label].mean(0) for label in labels.unique()])
    deviations = z - means[labels]
    size = min(32, (len(z) - len(means)) // 2)
    _, s, v = torch.linalg.svd(deviations, full_matrices=False)
    variances, directions = s[:size].square() / len(z), v[:size]
    rest = (deviations.square().sum() / len(z) - variances.sum()) / (z.shape[1] - size)

    def mahalanobis(values: Tensor) -> Tensor:
        q = standardise(values)[:, None] - means
        inside = (q @ directions.T).square()
        return ((inside / variances).sum(2) + (q.square().sum(2) - inside.sum(2)) / rest).amin(1)

    def cosines(values: Tensor, others: Tensor) -> Tensor:
        return F.normalize(standardise(values), dim=1) @ F.normalize(others, dim=1).T

    return {
        "1 - highest probability": lambda values: -model.scores(values).softmax(1).amax(1),
        "energy: -logsumexp of the logits": lambda values: -model.scores(values).logsumexp(1),
        "cosine to the nearest class mean": rejection.distances,
        "cosine to the 5th nearest training clip": lambda values: -cosines(values, z).topk(5, 1).values[:, -1],
        "Mahalanobis, 32 directions": mahalanobis,
    }


def held_out_border(name: str, x: Tensor, labels: Tensor, folds: Tensor) -> float:
    """The 95th percentile of a score over clips of each fold, fitted on the others."""
    found = [make_scores(x[folds != f], labels[folds != f])[name](x[folds == f]) for f in folds.unique()]
    values = torch.cat(found).sort().values
    return float(values[min(len(values), math.ceil(0.95 * (len(values) + 1))) - 1])


def print_rejection(x: Tensor, labels: Tensor, folds: Tensor, others: dict[str, Tensor], draws: int) -> None:
    """AUROC, and the share that lies beyond the border, of each score for each kind of unlike sound."""
    kinds = ["other classes", *others]
    results: dict[str, dict[str, list[float]]] = {}
    for draw in range(draws):
        known = sorted(random.Random(draw).sample(range(10), 10 - UNKNOWN))
        is_known, tested = torch.isin(labels, torch.tensor(known)), folds == folds.unique()[draw % 5]
        train = is_known & ~tested
        names = torch.searchsorted(torch.tensor(known), labels[train])
        like, groups = x[is_known & tested], {"other classes": x[~is_known & tested], **others}
        for name, score in make_scores(x[train], names).items():
            border, of_like = held_out_border(name, x[train], names, folds[train]), score(like)
            row = results.setdefault(name, {})
            row.setdefault("passed", []).append(float((of_like <= border).double().mean()))
            for kind, values in groups.items():
                found = score(values)
                truth = np.concatenate([np.zeros(len(like)), np.ones(len(found))])[:, None]
                area = metrics.auc(torch.cat([of_like, found]).numpy()[:, None], truth)[0]
                row.setdefault(kind, []).append(float(area))
                row.setdefault(f"{kind} rejected", []).append(float((found > border).double().mean()))
    print("| score | known clips that pass | " + " | ".join(kinds) + " |\n" + "|---" * (2 + len(kinds)) + "|")
    for name, row in results.items():
        mean = {key: statistics.mean(values) for key, values in row.items()}
        cells = [f"{mean[kind]:.2f}, {100 * mean[f'{kind} rejected']:.0f} %" for kind in kinds]
        print(f"| {name} | {100 * mean['passed']:.0f} % | " + " | ".join(cells) + " |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    data, features = set_features(arguments.data, arguments.out, arguments.model)
    examples = [(number, example) for number, fold in enumerate(data.folds) for example in fold.test]
    x = torch.stack([features[example.key] for _, example in examples])
    labels = torch.tensor([example.labels[0] for _, example in examples])
    folds = torch.tensor([number for number, _ in examples])
    print_calibration(x, labels, folds)
    others = other_sounds(arguments.data, arguments.model, arguments.speech)
    print_rejection(x, labels, folds, others, arguments.draws)


if __name__ == "__main__":
    main()
