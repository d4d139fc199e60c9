"""What a recipe leaves at "auto" and the data decides, what does not fit the data, and what identifies the data."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from ssamba.data.examples import LabelledData
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.utils.errors import ConfigError


def resolve_auto(recipe: FinetuneRecipe, data: LabelledData) -> FinetuneRecipe:
    """The recipe with every "auto" decided by the data. Raises ``ConfigError`` for what does not fit the data."""
    changes: dict[str, Any] = {}
    if recipe.loss == "auto":
        changes["loss"] = "bce" if data.multi_label else "ce"
    if recipe.metric == "auto":
        changes["metric"] = "mAP" if data.multi_label else "accuracy"
    if recipe.choose == "auto":
        held_out = all(fold.validation for fold in data.folds)
        changes["choose"] = "validation" if held_out else "folds" if len(data.folds) > 1 else "last"
    if recipe.calibrate == "auto":
        changes["calibrate"] = "yes" if recipe.layout == "custom" else "no"
    recipe = dataclasses.replace(recipe, **changes)
    if data.multi_label and (recipe.loss != "bce" or recipe.metric != "mAP"):
        raise ConfigError(
            f"{_several_labels(data)}, and the recipe {recipe.name} (loss {recipe.loss}, metric {recipe.metric}) takes "
            "one a clip; give --loss bce --metric mAP, or each clip one label"
        )
    _check_loss(recipe, data)
    for fold in data.folds:
        if recipe.choose == "validation" and not fold.validation:
            raise ConfigError(f"choose: validation, but {data.layout} has no validation clips; give folds or last")
    if data.folds[0].train[0].per_second is not None:
        wrong = [n for n in ("mixup", "balanced", "window") if getattr(recipe, n)]
        wrong += ["speed"] if recipe.speed > 1 else []
        wrong += ["loss"] if recipe.loss != "ce" else []
        if wrong:
            raise ConfigError(f"{wrong[0]}: {getattr(recipe, wrong[0])}, not possible with a label each second")
    return recipe


def _check_loss(recipe: FinetuneRecipe, data: LabelledData) -> None:
    """Refuse what goes with softmax alone, or with labels of whole clips alone. Raises ``ConfigError``."""
    if recipe.label_smoothing and recipe.loss != "ce":
        raise ConfigError(f"label_smoothing: {recipe.label_smoothing}, not possible with loss {recipe.loss}; give 0")
    if recipe.head_init == "probe" and data.folds[0].train[0].per_second is not None:
        raise ConfigError("head_init: probe, not possible with a label each second; give --head-init random")


def _several_labels(data: LabelledData) -> str:
    """What makes a set multi-label: its first clip with another number of labels than one, else the set itself."""
    for example in (e for fold in data.folds for part in (fold.train, fold.validation, fold.test) for e in part):
        if len(example.labels) != 1:
            names = ", ".join(data.classes[label] for label in example.labels) or "none"
            return f"{example.parts[0].path}: has {len(example.labels)} labels ({names})"
    return f"{data.layout}: a clip may have several labels"


def fingerprint(data: LabelledData) -> str:
    """A short hash of classes, clips, labels, folds and background, whatever folder they lie in."""
    digest = hashlib.blake2b(repr((data.classes, data.multi_label)).encode("utf-8", "surrogateescape"), digest_size=8)
    for fold in data.folds:
        for part in (fold.train, fold.validation, fold.test):
            for example in part:
                places = [(p.start, p.seconds, p.at) for p in example.parts]
                line = repr((fold.name, example.key, example.labels, example.per_second, places))
                digest.update(line.encode("utf-8", "surrogateescape"))
            digest.update(b"|")
    for example in data.background:
        line = repr((example.key, [(p.start, p.seconds) for p in example.parts]))
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def data_files(data: LabelledData) -> dict[str, str]:
    """The files of a set, each under the name of the first example that is made of it, whatever folder they lie in."""
    files: dict[str, str] = {}
    clips = [example for fold in data.folds for example in (*fold.train, *fold.validation, *fold.test)]
    for example in (*clips, *data.background):
        for part in example.parts:
            files.setdefault(part.path, f"{len(files)} {example.key}")
    return {name: path for path, name in files.items()}
