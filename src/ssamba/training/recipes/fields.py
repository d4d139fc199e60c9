"""A recipe's values as fields of a dataclass: default, help text and constraints in one place, read by one check.

The command line makes an option of each field, a YAML file has it as a key.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ssamba.utils.errors import ConfigError, nearest
from ssamba.utils.files import read_text
from ssamba.utils.terminal import shorten
from ssamba.utils.yaml_text import parse_yaml

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

Recipe = TypeVar("Recipe", bound=type)


LARGEST = 1e9
"""Largest number of a recipe that has no bound of its own."""


class Bounds(NamedTuple):
    """Limits of a number: ``min`` and ``max`` are included, ``above`` and ``below`` not; NaN and infinity never are.

    Without ``max`` and ``below`` a number may be up to ``LARGEST``, and down to its negative.
    """

    min: float = -math.inf
    max: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    give: str = ""
    """What an error asks for; empty: the bounds in words."""

    def admit(self, value: float) -> bool:
        """Whether the value lies within."""
        return (
            _is_finite(value)
            and self._common(value)
            and self.min <= value <= self.max
            and self.above < value < self.below
        )

    def _common(self, value: float) -> bool:
        """Whether a value is no larger than any that makes sense; a sum or product of such ones is a number, too."""
        return self.max < math.inf or self.below < math.inf or abs(value) <= LARGEST

    def wanted(self, value: float = 0.0) -> str:
        """In words, what to give instead of a value."""
        if _is_finite(value) and not self._common(value):
            return f"{LARGEST:g} at most" if value > 0 else f"{-LARGEST:g} or more"
        lower = f"more than {self.above:g}" if self.above > -math.inf else ""
        lower = lower or (f"{self.min:g} or more" if self.min > -math.inf else "")
        upper = f"less than {self.below:g}" if self.below < math.inf else ""
        upper = upper or (f"{self.max:g} at most" if self.max < math.inf else "")
        return self.give or ", and ".join(part for part in (lower, upper) if part) or "a number"


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # an int may be too large for a float


def option(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    min: float = 0,
    max: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    give: str = "",
) -> Any:
    """A field of a recipe: its default, its help text, and what it may be.

    ``choices`` are for text, ``min``, ``max`` (included), ``above`` and ``below`` (not included) for numbers; ``give``
    says in an error what to give, where the bounds say it badly.
    """
    bounds = Bounds(min, max, above, below, give)
    return field(default=default, metadata={"help": help, "choices": tuple(choices), "bounds": bounds})


def like(group: type, name: str, help: str = "", default: Any = None, choices: Sequence[str] = ()) -> Any:
    """A group's field with another help text, default or choices, or only named for its place in the order."""
    known = {f.name: f for f in dataclasses.fields(group)}[name]
    changes = {"help": help, "choices": tuple(choices)}
    metadata = {**known.metadata, **{key: value for key, value in changes.items() if value}}
    return field(default=known.default if default is None else default, metadata=metadata)


def in_order_of_body(recipe: Recipe) -> Recipe:
    """Class decorator: a recipe's fields in the order of its body, which names some of its groups' fields by ``like``.

    A group's field that the body does not name follows the group's field before it. This is the order of ``--help`` and
    of ``recipe.yaml``.
    """
    body = list(inspect.get_annotations(recipe))
    groups = [[f.name for f in dataclasses.fields(base)] for base in recipe.__bases__ if dataclasses.is_dataclass(base)]
    order: list[str] = []
    known = {f.name: f for f in dataclasses.fields(recipe)}
    for name in (name for name in body if name in known):
        order.append(name)
        for group in (g for g in groups if name in g):
            for follower in group[group.index(name) + 1 :]:
                if follower in body:
                    break
                order.append(follower)
    if sorted(order) != sorted(known):
        raise TypeError(f"{recipe.__name__}: no place for {', '.join(sorted(set(known) ^ set(order)))}; name it")
    table = vars(recipe)["__dataclass_fields__"]
    for name in order:
        table[name] = table.pop(name)
    return recipe


def check_fields(recipe: Any) -> None:
    """Refuse values of another type than the field's default, or outside its choices or bounds.

    Raises ``ConfigError`` that names the first such field.
    """
    fields = dataclasses.fields(recipe)
    for f in fields:
        value, choices = getattr(recipe, f.name), f.metadata["choices"]
        if choices and value not in choices:
            near = nearest(shorten(value), list(choices))
            raise ConfigError(f"{f.name}: {shorten(value)}{near} choose {', '.join(choices)}")
        kind = type(f.default)
        good = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not good or (kind is not bool and isinstance(value, bool)):
            raise ConfigError(f"{f.name}: {shorten(value)}, give a value of type {kind.__name__}")
    for f in fields:
        value, bounds = getattr(recipe, f.name), f.metadata["bounds"]
        if isinstance(value, (int, float)) and not bounds.admit(value):
            raise ConfigError(f"{f.name}: {shorten(value)}, give {bounds.wanted(value)}")


def read_values(file: Path | Traversable, source: str, kind: type) -> dict[str, Any]:
    """Values of a YAML file whose keys are the fields of ``kind``. Raises ``ConfigError`` that names ``source``."""
    text = read_text(file) if isinstance(file, Path) else file.read_text(encoding="utf-8")
    values = parse_yaml(text, source) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: holds a {type(values).__name__}, expected 'key: value' lines")
    known = [f.name for f in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{source}: unknown value {shorten(key)}{nearest(shorten(key), known)}")
    return values
