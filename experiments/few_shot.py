"""How good ``ssamba fit`` is with a few clips a class: logistic regression against prototypes on ESC-10's folds 2 to 5.

    python experiments/few_shot.py ESC10 OUT [--model SOURCE] [--counts 1 2 3 4 5 8] [--draws 24]

A draw takes N clips of each class from two of the four folds, fits both heads on them as ``ssamba fit`` does (the
setting by the loss of held-out clips, from two clips a class on), and scores them on all clips of the other two folds;
clips of one recording never lie on both sides. Fold 1 chooses nothing. Draw k has the same clips for both heads, and
takes the k-th pair of folds. The features are kept in OUT, so that another run needs no audio.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ssamba.data.examples import Example, Fold, LabelledData
from ssamba.data.scan import SkipList
from ssamba.evaluation.probe.protocol import all_examples, divisions, target_matrix
from ssamba.models.losses import classification_loss
from ssamba.training.fit.cross_validation import Bank, cross_validate
from ssamba.training.fit.data import divide
from ssamba.training.fit.features import FeatureParts, collect_features, parts_folder
from ssamba.training.fit.heads import LinearHead, choose_head
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.fit.run import prepare_fit
from ssamba.utils.progress import Bar

HEADS = ("logistic", "prototypes")


def set_features(root: Path, out: Path, source: str) -> tuple[LabelledData, dict[str, Tensor]]:
    """The set, and what the classifier reads of each clip by its key; one window a clip."""
    recipe = FitRecipe(layout="esc10")
    setup = prepare_fit(recipe, root, source, "cpu")
    folder = parts_folder(out, "esc10", setup.examples, setup.model)
    parts = FeatureParts(folder, lambda: None)
    with Bar("features") as bar:
        values, owners = collect_features(setup.examples, setup.model, parts, SkipList(), bar.update)
    if parts.done < len(setup.examples):
        parts.save(len(setup.examples))
    return setup.data, {setup.examples[n].key: x for n, x in zip(owners.tolist(), values, strict=True)}


def draw_clips(folds: Sequence[Fold], count: int, draw: int) -> tuple[list[Example], list[Example]]:
    """``count`` clips of each class from two of the folds, and all clips of the others."""
    pairs = list(itertools.combinations(range(len(folds)), 2))
    chosen = pairs[draw % len(pairs)]
    pool = [e for i in chosen for e in folds[i].test]
    random.Random(f"{draw} {count}").shuffle(pool)
    support = [
        e for label in sorted({e.labels[0] for e in pool}) for e in [e for e in pool if e.labels[0] == label][:count]
    ]
    return support, [e for i, fold in enumerate(folds) if i not in chosen for e in fold.test]


def score(
    data: LabelledData, features: dict[str, Tensor], head: LinearHead, support: list[Example], others: list[Example]
) -> tuple[float, float, float]:
    """Accuracy and loss on the other clips of a head that is fitted as ``ssamba fit`` does, and its setting."""
    whole = dataclasses.replace(data, layout="draw", folds=(Fold("draw", tuple(support), (), ()),), divided=True)
    divided = divide(whole, 0, 0)
    examples = all_examples(divided)
    classes = len(data.classes)
    values = torch.stack([features[e.key] for e in examples])
    bank = Bank(values, torch.arange(len(examples)), target_matrix(examples, classes), "ce")
    tested = bool(divided.folds[0].test)
    best = cross_validate(bank, head, divisions(divided, examples), lambda *_: None).best if tested else head.default
    (model,) = bank.fit(head, torch.arange(len(examples)), [best])
    logits = model.scores(torch.stack([features[e.key] for e in others]))
    targets = target_matrix(others, classes)
    right = (logits.argmax(dim=1) == targets.argmax(dim=1)).double().mean()
    return 100 * float(right), float(classification_loss(logits, targets, "ce")), best


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and sample deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("esc10", type=Path, metavar="ESC10")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--model", default="tiny", metavar="SOURCE")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3, 4, 5, 8], metavar="N")
    parser.add_argument("--draws", type=int, default=24)
    arguments = parser.parse_args()
    data, features = set_features(arguments.esc10, arguments.out, arguments.model)
    dev = [fold for fold in data.folds if fold.name != "1"]
    heads = [choose_head(FitRecipe(head=name), False) for name in HEADS]
    names = [head.name for head in heads]
    print(f"| clips a class | {' | '.join(f'{n}: accuracy | loss' for n in names)} | difference |")
    print("|---" * (2 * len(heads) + 2) + "|")
    for count in arguments.counts:
        draws = [draw_clips(dev, count, draw) for draw in range(arguments.draws)]
        found = {head.name: [score(data, features, head, *draw) for draw in draws] for head in heads}
        cells = [f"{spread([a for a, _, _ in x])} | {spread([b for _, b, _ in x], 2)}" for x in found.values()]
        apart = [a[0] - b[0] for a, b in zip(found[HEADS[0]], found[HEADS[1]], strict=True)]
        print(f"| {count} | {' | '.join(cells)} | {spread(apart)} |", flush=True)


if __name__ == "__main__":
    main()
