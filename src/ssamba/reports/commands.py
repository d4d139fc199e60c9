"""The command that makes a run again: its values that are not the defaults, as options."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from ssamba.models.pretrained.weights import DEFAULT
from ssamba.reports.runs import FINETUNING, FIT, PRETRAINING, Run
from ssamba.training.finetune.recipe import NO_OPTIONS, load_finetune_recipe, recipe_names
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.pretrain.recipe import make_recipe


def command_of(run: Run) -> list[str]:
    """The words of the command with another --out; none for a probe or an index, which do not record all of them.

    Its options give the run's values whatever defaults a later version has where these are the same now.
    """
    again = ["--out", f"{run.folder}-again"]
    if run.kind == PRETRAINING:
        source = [] if run.source is None else ["--from", run.source]
        defaults = make_recipe(None, {}).to_dict()
        return ["ssamba", "pretrain", *run.data, *again, *source, *_options(run.recipe, defaults)]
    data = ["--data", *run.data]
    if run.kind == FIT:
        source = [] if run.source in (None, DEFAULT) else ["--from", str(run.source)]
        options = _options(run.recipe, dataclasses.asdict(FitRecipe()), ("name",))
        return ["ssamba", "fit", *data, *again, *source, *options]
    if run.kind == FINETUNING:
        name = run.recipe.get("name")
        base = str(name) if name in recipe_names() else "custom"
        source = [] if run.source == DEFAULT else ["--from", run.source or "none"]
        recipe = load_finetune_recipe(base)
        defaults = {k: v for k, v in recipe.to_dict().items() if k not in recipe.open}
        return ["ssamba", "finetune", base, *data, *again, *source, *_options(run.recipe, defaults, NO_OPTIONS)]
    return []


def _options(values: Mapping[str, Any], defaults: Mapping[str, Any], without: tuple[str, ...] = ()) -> list[str]:
    words = []
    for key, value in values.items():
        if key in without or (key in defaults and defaults[key] == value):
            continue
        option = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words += [option, str(value)]
    return words


def as_shell(words: list[str], width: int = 88) -> str:
    """Words as a command of several lines, for a POSIX shell."""
    lines, line = [], ""
    for i, word in enumerate(words):
        text = shlex.quote(word)
        begins = word.startswith("--") or (i and not words[i - 1].startswith("--"))
        if line and begins and len(line) + len(text) + 1 > width - 12:
            lines.append(line + " \\")
            line = "    " + text
        else:
            line = f"{line} {text}" if line else text
    return "\n".join([*lines, line])
