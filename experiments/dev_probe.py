"""Linear probes for choosing between pretraining runs, on training data alone.

    python experiments/dev_probe.py ESC10 ARABIC MODEL [MODEL ...] [--layers 6 9 12]

ESC-10: folds 2 to 5 against each other (fold 1 is never read); Arabic Speech Commands: fitted on the training speakers,
scored on the validation speakers. The official test scores are `ssamba probe`'s business. The best of three C counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import ssamba
from ssamba.data.datasets import read_layout
from ssamba.data.examples import Example
from ssamba.evaluation.logistic_regression import fit_linear
from ssamba.evaluation.probe.features import LOG_MEL, Wanted, extract, layer_name, rows_name
from ssamba.evaluation.probe.protocol import target_matrix

STRENGTHS = (1e-3, 1e-2, 1e-1)


def esc10(root: Path) -> tuple[list[Example], list[tuple[list[int], list[int]]], int]:
    data = read_layout("esc10", root)
    parts = [list(fold.test) for fold in data.folds[1:]]
    examples = [e for part in parts for e in part]
    owner = [i for i, part in enumerate(parts) for _ in part]
    numbers = range(len(examples))
    splits = [([n for n in numbers if owner[n] != i], [n for n in numbers if owner[n] == i]) for i in range(len(parts))]
    return examples, splits, len(data.classes)


def arabic(root: Path) -> tuple[list[Example], list[tuple[list[int], list[int]]], int]:
    data = read_layout("arabic-speech-commands", root)
    (fold,) = data.folds
    examples = [*fold.train, *fold.validation]
    n = len(fold.train)
    return examples, [(list(range(n)), list(range(n, len(examples))))], len(data.classes)


def accuracy(x: torch.Tensor, y: torch.Tensor, splits: list[tuple[list[int], list[int]]]) -> float:
    scores = torch.zeros(len(STRENGTHS), dtype=torch.float64)
    for fit, test in splits:
        for i, model in enumerate(fit_linear(x[fit], y[fit], STRENGTHS)):
            scores[i] += (model.scores(x[test]).argmax(1) == y[test].argmax(1)).double().mean()
    return 100 * float(scores.max()) / len(splits)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("esc10", type=Path)
    parser.add_argument("arabic", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--layers", type=int, nargs="+", help="default: the last")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    print("| model | features | ESC-10, folds 2-5 | Arabic, validation speakers |\n|---|---|---|---|", flush=True)
    sets = [esc10(arguments.esc10), arabic(arguments.arabic)]
    for source in arguments.models:
        model = ssamba.load(source, device=arguments.device)
        layers = tuple(arguments.layers or (model.n_layers,))
        found = [extract(examples, Wanted(model, layers, True, rows=True)) for examples, _, _ in sets]
        for name in (LOG_MEL, *map(layer_name, layers), *map(rows_name, layers)):
            kinds = {"mean and deviation": slice(None)}
            if name in map(layer_name, layers):
                kinds = {"mean": slice(model.config.width), **kinds}
            for pooling, values in kinds.items():
                cells = [
                    accuracy(x[name][:, values].double(), target_matrix(examples, classes), splits)
                    for x, (examples, splits, classes) in zip(found, sets, strict=True)
                ]
                print(f"| {source} | {name}, {pooling} | {cells[0]:.1f} | {cells[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
