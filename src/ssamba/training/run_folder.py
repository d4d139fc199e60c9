"""The record of a run's recipe and data, and the refusal to go on with it as another run."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssamba.models.pretrained.file_checks import record_files
from ssamba.utils.atomic_write import write_text
from ssamba.utils.errors import ConfigError, DataError
from ssamba.utils.yaml_text import read_yaml

RECIPE_FILE, SKIPPED_FILE = "recipe.yaml", "skipped.csv"
COMMAND_MARKS = ("lr", "objective", "head")
"""Values that tell stored recipes apart: pretraining has the first two, fine-tuning the first, a fit the last."""


def skipped_file(out: Path, rank: int = 0) -> Path:
    """Where a process lists files that it could not read: the first in ``skipped.csv``, others in ``skipped-N.csv``."""
    return out / SKIPPED_FILE if rank == 0 else out / f"skipped-{rank}.csv"


def write_recipe(
    out: Path,
    recipe: Mapping[str, Any],
    source: str | None,
    data: Sequence[str],
    fingerprint: str,
    content: str,
    weights: str = "",
) -> None:
    """Write ``recipe.yaml``: every value of the run, what it started from, its data and the digests of both.

    ``fingerprint`` is of names and lengths, ``content`` of what the files hold (``resume.content``), ``weights`` of
    what the source holds, for a run that reads it more than once.
    """
    values = {"recipe": dict(recipe), "from": source, "data": list(data), "plan": fingerprint, "content": content}
    values |= {"weights": weights} if weights else {}
    write_text(out / RECIPE_FILE, yaml.safe_dump(values, sort_keys=False))
    record_files(out, [RECIPE_FILE])


def check_same_recipe(out: Path, recipe: Any, source: str | None, may_change: Collection[str]) -> None:
    """Refuse to go on with another recipe: the steps would not be those of the run.

    ``recipe`` is a dataclass of the kind that the run has, ``source`` what this command starts from. A run from before
    a value was there has its default. Raises ``ConfigError`` naming the first value that differs.
    """
    now = {**dataclasses.asdict(recipe), "from": source}
    defaults = {f.name: f.default for f in dataclasses.fields(recipe)}
    try:
        stored = read_yaml(out / RECIPE_FILE)
        values = {**stored["recipe"], "from": stored["from"]}
    except (ConfigError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{out / RECIPE_FILE}: is missing or damaged; choose another --out") from None
    if any((mark in now) != (mark in values) for mark in COMMAND_MARKS) or not set(COMMAND_MARKS) & set(values):
        raise ConfigError(f"{out}: holds a run of another command; choose another --out")
    for key, value in {**defaults, **values}.items():
        if key not in may_change and now.get(key) != value:
            raise ConfigError(
                f"{out}: the run there has {key} {value}, this command says {now.get(key)}; repeat the first command "
                "to go on with it, or choose another --out"
            )


def check_same_data(out: Path, fingerprint: str) -> None:
    """Refuse to go on with other data. Raises ``DataError``."""
    if _stored(out).get("plan") != fingerprint:
        raise DataError(
            f"{out}: the data changed since the run began (files came, went or have another length); restore them, or "
            f"begin anew with --from {out} and another --out"
        )


def check_same_content(out: Path, content: str) -> None:
    """Refuse to go on with files of the same names and lengths that hold something else. Raises ``DataError``.

    Runs of earlier versions have no digest of the content; they are not checked.
    """
    if _stored(out).get("content", content) != content:
        raise DataError(
            f"{out}: a recording changed since the run began (same names and lengths, other content); restore it, or "
            f"begin anew with --from {out} and another --out"
        )


def check_same_weights(out: Path, source: str | None, weights: str) -> None:
    """Refuse to go on from a source whose weights changed: later folds would start elsewhere. Raises ``ConfigError``.

    Runs of earlier versions have no digest of the weights; they are not checked.
    """
    if _stored(out).get("weights", weights) != weights:
        raise ConfigError(
            f"{out}: began from other weights than {source} has now, and later folds would start from these; restore "
            "the file (for a model of the package, its version of ssamba), or begin anew with another --out"
        )


def _stored(out: Path) -> Mapping[str, Any]:
    values = read_yaml(out / RECIPE_FILE)
    if not isinstance(values, dict):
        raise ConfigError(f"{out / RECIPE_FILE}: is missing or damaged; choose another --out")
    return values
