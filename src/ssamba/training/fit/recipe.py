"""The values of ``ssamba fit``: how clips are read, which head is fitted and how it is tested."""

from __future__ import annotations

from dataclasses import dataclass

from ssamba.models.classifier import POOLINGS
from ssamba.training.recipes.fields import option
from ssamba.training.recipes.groups import RecipeBase
from ssamba.utils.errors import ConfigError

LINEAR_HEADS = ("auto", "logistic", "prototypes")


@dataclass(frozen=True, kw_only=True)
class FitRecipe(RecipeBase):
    """One run of ``ssamba fit``; 0 leaves a number to the clips. Raises ``ConfigError`` on values that make no run."""

    name: str = option("fit", "name of the classifier")
    layout: str = option("custom", "how DATA is laid out (docs/data.md)")
    head: str = option("auto", "logistic regression, or class means in a whitened space; auto: logistic", LINEAR_HEADS)
    pooling: str = option(
        "rows",
        "what is classified: the mean of patch tokens, the prefix tokens, or each row's mean and deviation over time",
        POOLINGS,
    )
    c: float = option(0.0, "C of the regression (inverse strength), 0: the one with the lowest held-out loss")
    folds: int = option(0, "custom sets without splits: folds of the cross-validation, 0: 5 where there are enough")
    frames: int = option(0, "length of a clip in log-mel frames of 10 ms, 0: from the clips' lengths")
    stride: int = option(0, "patch stride along both axes, in bins and frames, 0: patches side by side")
    calibrate: bool = option(True, "divide the logits by the temperature that suits held-out clips best")
    seed: int = option(0, "seed of the division into folds")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ConfigError("folds: 1, nothing could be trained on; give 2 or more, or 0 to leave it open")
