"""Recipes as groups of fields: what a value may be, how values are ordered, and that each is declared once."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest

from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.training.recipes import groups
from ssamba.training.recipes.fields import Bounds, check_fields, in_order_of_body, like, option
from ssamba.utils.errors import ConfigError


@dataclass(frozen=True)
class Group:
    first: int = option(1, "the first", min=1)
    second: float = option(0.5, "the second", above=0, max=1)
    third: str = option("a", "the third", ("a", "b"))


@in_order_of_body
@dataclass(frozen=True, kw_only=True)
class Both(Group):
    own: bool = option(False, "of its own")
    second: float = like(Group, "second", "another text", 0.25)
    last: float = option(0.0, "any number", min=-math.inf)
    first: int = like(Group, "first")


def test_fields_follow_the_body_and_groups_follow_their_fields() -> None:
    assert [f.name for f in dataclasses.fields(Both)] == ["own", "second", "third", "last", "first"]
    assert list(dataclasses.asdict(Both())) == ["own", "second", "third", "last", "first"]


def test_a_field_named_again_keeps_its_constraints() -> None:
    (field,) = (f for f in dataclasses.fields(Both) if f.name == "second")
    assert (field.default, field.metadata["help"], field.metadata["bounds"].max) == (0.25, "another text", 1)
    check_fields(Both())


def test_a_group_that_the_body_names_nowhere_has_no_place() -> None:
    with pytest.raises(TypeError, match="no place for first, second, third"):

        @in_order_of_body
        @dataclass(frozen=True, kw_only=True)
        class Lost(Group):
            own: int = option(0, "of its own")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"first": 0}, "first: 0, give 1 or more"),
        ({"second": 0.0}, "second: 0.0, give more than 0, and 1 at most"),
        ({"second": math.nan}, "second: nan, give"),
        ({"last": math.inf}, "last: inf, give a number"),
        ({"third": "c"}, "third: 'c' choose a, b"),
        ({"first": 1.0}, "first: 1.0, give a value of type int"),
        ({"first": True}, "first: True, give a value of type int"),
        ({"own": 1}, "own: 1, give a value of type bool"),
    ],
    ids=str,
)
def test_what_a_field_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fields(Both(**values))
    check_fields(Both(second=1, last=-3))  # whole numbers are numbers


def test_bounds_in_words() -> None:
    assert Bounds(min=0, below=1).wanted() == "0 or more, and less than 1"
    assert Bounds(1, 2, give="1 or 2").wanted() == "1 or 2"


@pytest.mark.parametrize("recipe", [PretrainRecipe, FinetuneRecipe])
def test_every_value_has_a_help_text_and_a_default_that_is_allowed(recipe: type) -> None:
    check_fields(recipe())
    assert all(f.metadata["help"] for f in dataclasses.fields(recipe))


def test_what_both_recipes_have_is_declared_in_a_group() -> None:
    shared = {f.name for f in dataclasses.fields(PretrainRecipe)} & {f.name for f in dataclasses.fields(FinetuneRecipe)}
    declared = {
        f.name
        for group in (groups.ModelShape, groups.Augmentation, groups.Optimisation, groups.RunSettings)
        for f in dataclasses.fields(group)
    }
    # Epochs are a number in one, a whole number in the other; decays those of the model, and of the learning rate.
    assert shared - declared == {"epochs", "decay"}


def test_every_augmentation_is_off_by_default() -> None:
    assert groups.AllAugmentation.of(PretrainRecipe()) == groups.AllAugmentation.of(FinetuneRecipe())
    assert groups.AllAugmentation.of(PretrainRecipe(mix=0.5)).mix == 0.5
    assert groups.AllAugmentation.of(FinetuneRecipe(noise=True)).noise
