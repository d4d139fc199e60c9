"""Which layers ``ssamba fit`` should read: single layers and several side by side, on ESC-10's folds 2 to 5.

    python experiments/fit_layers.py ESC10 [--model SOURCE]

Features are mean and deviation over time of each row of patches, normed as the classifier norms them, several layers
one by one. Each row of the table is a cross-validation in the four folds with one C for all of them, that of the
lowest loss. Fold 1 is never used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import ssamba
from ssamba.data.datasets import read_layout
from ssamba.evaluation.logistic_regression import C_VALUES, fit_linear
from ssamba.evaluation.probe.features import Wanted, extract, rows_name
from ssamba.evaluation.probe.protocol import target_matrix
from ssamba.utils.progress import progress_bar


def cross_validated(x: Tensor, labels: Tensor, targets: Tensor, folds: Tensor) -> tuple[float, int, float]:
    """C, clips that are right and mean loss, at the C of the lowest loss."""
    losses, right = torch.zeros(len(C_VALUES), dtype=torch.float64), [0] * len(C_VALUES)
    for fold in folds.unique():
        held = folds == fold
        for i, model in enumerate(fit_linear(x[~held], targets[~held])):
            scores = model.scores(x[held])
            losses[i] += F.cross_entropy(scores, labels[held], reduction="sum")
            right[i] += int((scores.argmax(dim=1) == labels[held]).sum())
    best = int(losses.argmin())
    return C_VALUES[best], right[best], float(losses[best]) / len(labels)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("esc10", type=Path, metavar="ESC10")
    parser.add_argument("--model", default="tiny", metavar="SOURCE")
    arguments = parser.parse_args()
    data, model = read_layout("esc10", arguments.esc10), ssamba.load(arguments.model)
    dev = [fold for fold in data.folds if fold.name != "1"]
    examples = [example for fold in dev for example in fold.test]
    folds = torch.tensor([i for i, fold in enumerate(dev) for _ in fold.test])
    targets = target_matrix(examples, len(data.classes))
    n = model.n_layers
    with progress_bar("features") as progress:
        found = extract(examples, Wanted(model, tuple(range(1, n + 1)), False, rows=True), progress)
    normed = [F.layer_norm(found[rows_name(k)], found[rows_name(k)].shape[-1:]) for k in range(1, n + 1)]
    chosen = [(k,) for k in range(1, n + 1)] + [(n, max(1, n * 3 // 4)), tuple(range(1, n + 1))]
    print("| layers | C | right | loss |\n|---|---|---|---|")
    for layers in chosen:
        x = torch.cat([normed[k - 1] for k in layers], dim=1)
        c, right, loss = cross_validated(x, targets.argmax(dim=1), targets, folds)
        print(f"| {', '.join(map(str, layers))} | {c:g} | {right} of {len(examples)} | {loss:.3f} |", flush=True)


if __name__ == "__main__":
    main()
