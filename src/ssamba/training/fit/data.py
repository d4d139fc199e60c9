"""The labelled set of ``ssamba fit``: a set without splits is cross-validated, down to one clip a class."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from ssamba.data.datasets import read_layout
from ssamba.data.datasets.custom import timed_place
from ssamba.data.datasets.splits import SPLITS, stratified_folds, stratified_split
from ssamba.data.examples import Fold, LabelledData
from ssamba.training.finetune.facts import label_options
from ssamba.training.fit.recipe import FitRecipe
from ssamba.utils.errors import ConfigError

FOLDS = 5
MANY = 2000
"""From so many clips on, one division of 80/10/10 is enough, and a fifth of the work."""


def read_fit_data(
    recipe: FitRecipe,
    root: Path,
    labels: Path | None = None,
    background: str | Path | None = None,
    seconds: float | None = None,
) -> LabelledData:
    """The set with its folds; one without test clips where no class has two clips.

    Sets that come without splits are divided class by class into five folds, or as many as there are clips to hold out;
    a clip that is the only one of its class is never held out. From 2000 clips on: 80/10/10. Labels with times
    (``labels``, or those that lie with the recordings) give clips of ``seconds``, None: as long as the median label,
    divided by recording; ``background`` is the class of the stretches without label (docs/data.md). Raises
    ``DataError`` as ``read_layout``, ``ConfigError`` for folds that a set with splits cannot have.
    """
    options = label_options(recipe.layout, labels, background, seconds)
    if recipe.layout == "custom" and timed_place(root, labels) is not None:
        return _read_timed(recipe, root, options)
    data = read_layout(recipe.layout, root, **({"folds": 0} | options if recipe.layout == "custom" else {}))
    if not data.divided:
        if recipe.folds:
            raise ConfigError(f"folds: {recipe.folds}, but {root} comes with its own splits; leave --folds out")
        return data
    return divide(data, recipe.folds, recipe.seed)


def _read_timed(recipe: FitRecipe, root: Path, options: dict[str, Any]) -> LabelledData:
    options = {"seed": recipe.seed, "keep_single": True, **options}
    data = read_layout("custom", root, folds=recipe.folds or FOLDS, **options)
    clips = {example.key for fold in data.folds for example in (*fold.train, *fold.test)}
    return data if recipe.folds or len(clips) < MANY else read_layout("custom", root, folds=1, **options)


def divide(data: LabelledData, folds: int, seed: int) -> LabelledData:
    """A set of one fold, all of it training clips, as one for cross-validation; ``folds`` 0 leaves the number open."""
    (whole,) = data.folds
    counts = Counter(label for example in whole.train for label in example.labels)
    held = [e for e in whole.train if all(counts[label] > 1 for label in e.labels)]
    kept = tuple(e for e in whole.train if e not in set(held))
    if len(held) < 2:
        note = "no class has two clips: all are trained on, and nothing is measured"
        return dataclasses.replace(data, notes=(*data.notes, note))
    if not folds and len(held) >= MANY:
        splits = stratified_split(held, seed)
        train, validation, test = (tuple(splits[name]) for name in SPLITS)
        sizes = f"{len(train) + len(kept)} / {len(validation)} / {len(test)}"
        note = f"no splits given: divided by class into {sizes} clips to train, validate and test on (seed {seed})"
        divided: tuple[Fold, ...] = (Fold("custom", train + kept, validation, test),)
    else:
        parts = stratified_folds(held, seed, min(folds or FOLDS, len(held)))
        divided = tuple(
            Fold(name, tuple(e for other, p in parts.items() if other != name for e in p) + kept, (), tuple(part))
            for name, part in parts.items()
        )
        note = f"no splits given: cross-validated in {len(divided)} folds, divided by class (seed {seed})"
    alone = len({label for e in kept for label in e.labels if counts[label] == 1})
    more = (f"{alone} of {len(data.classes)} classes have one clip, which is never held out",) if alone else ()
    return dataclasses.replace(data, folds=divided, notes=(*data.notes, note, *more))
