"""The linear heads that ``ssamba fit`` can fit, behind one form: a setting, its candidates, a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ssamba.evaluation.logistic_regression import C_VALUES, LinearModel, fit_linear
from ssamba.evaluation.prototypes import SHARPNESS, fit_prototypes
from ssamba.training.fit.recipe import FitRecipe
from ssamba.utils.errors import ConfigError


@dataclass(frozen=True)
class LinearHead:
    """A kind of linear classifier.

    Attributes:
        name: as in recipes.
        setting: what its candidates are called.
        settings: the candidates, ascending.
        default: the one to take where no clip can be held out.
        fit: features (B, d), targets (B, classes), candidates -> a model for each.
    """

    name: str
    setting: str
    settings: tuple[float, ...]
    default: float
    fit: Callable[[Tensor, Tensor, Sequence[float]], list[LinearModel]]


def choose_head(recipe: FitRecipe, multi_label: bool) -> LinearHead:
    """The recipe's head. Raises ``ConfigError`` for prototypes where a clip may have several labels, or with a C.

    ``auto`` is the regression for any number of clips a class: prototypes were level with it from three clips a class
    on and behind it below (docs/finetuning.md).
    """
    if recipe.head == "prototypes":
        if multi_label:
            raise ConfigError("head: prototypes, not possible with several labels a clip; give --head logistic")
        if recipe.c:
            raise ConfigError("c: goes with --head logistic; leave it out")
        return LinearHead("prototypes", "sharpness", SHARPNESS, 4.0, fit_prototypes)
    settings = (recipe.c,) if recipe.c else C_VALUES

    def fit(x: Tensor, targets: Tensor, candidates: Sequence[float]) -> list[LinearModel]:
        return fit_linear(x, targets, candidates, multi_label)

    return LinearHead("logistic", "C", settings, recipe.c or 1.0, fit)
