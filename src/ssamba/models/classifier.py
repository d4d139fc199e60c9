"""The classifier of a fine-tuned model: its classes, how tokens are pooled, and the layer that gives their logits."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssamba.models.config import Config
from ssamba.models.patches import column_times
from ssamba.utils.errors import ConfigError
from ssamba.utils.terminal import shorten
from ssamba.utils.torch_defaults import of_new_weights

POOLINGS = ("mean", "cls", "rows")
LOSSES = ("auto", "ce", "bce")
MAX_CLASSES = 1_000_000
LONGEST_NAME_OF_CLASS = 1000
_VARIANCE = 1e-6  # added under the root of a row's variance: one column has none, and the root no gradient at 0


@dataclass(frozen=True)
class Classification:
    """The task of a classifier, stored in ``config.json`` with its weights.

    Attributes:
        classes: names in the order of the scores.
        multi_label: whether several classes may hold at once or exactly one.
        pooling: ``mean`` of the patch tokens, or ``cls``, that of the prefix tokens (docs/reference.md,
            "Fine-tuning"), or ``rows``: mean and deviation over time of each row of patches by itself, 2 x rows x
            width values, so that low and high frequencies stay apart (not in the reference; as in ``ssamba probe``).
        per_second: one answer for each second of the recording instead of one for all of it.
        recipe: name of the recipe that trained it.
        loss: what it was trained with, which decides how logits become scores: ``ce`` softmax, ``bce`` sigmoid,
            ``auto`` sigmoid where several classes may hold.
    """

    classes: tuple[str, ...]
    multi_label: bool = False
    pooling: str = "mean"
    per_second: bool = False
    recipe: str = ""
    loss: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES or not all(isinstance(c, str) for c in self.classes):
            raise ConfigError(f"classes: give one name or more, at most {MAX_CLASSES}")
        if (longest := max(map(len, self.classes))) > LONGEST_NAME_OF_CLASS:
            raise ConfigError(f"classes: a name of {longest} characters, give at most {LONGEST_NAME_OF_CLASS}")
        if len(set(self.classes)) != len(self.classes):
            twice = Counter(self.classes).most_common(1)[0][0]
            raise ConfigError(f"classes: {shorten(twice)} is there twice")
        for name, kind in (("multi_label", bool), ("per_second", bool), ("recipe", str)):
            if not isinstance(getattr(self, name), kind):
                wanted = "true or false" if kind is bool else "text"
                raise ConfigError(f"{name}: {shorten(getattr(self, name))}, give {wanted}")
        if len(self.recipe) > LONGEST_NAME_OF_CLASS:
            raise ConfigError(f"recipe: a name of {len(self.recipe)} characters, give at most {LONGEST_NAME_OF_CLASS}")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling: {shorten(self.pooling)}, choose {', '.join(POOLINGS)}")
        if self.per_second and self.pooling != "mean":
            raise ConfigError("pooling: a model that answers for each second takes the mean")
        if self.loss not in LOSSES:
            raise ConfigError(f"loss: {shorten(self.loss)}, choose {', '.join(LOSSES)}")

    @property
    def sigmoid(self) -> bool:
        """Whether each class has a score of its own, instead of a share of 1."""
        return self.multi_label if self.loss == "auto" else self.loss == "bce"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return asdict(self) | {"classes": list(self.classes)}

    @classmethod
    def from_dict(cls, values: Any, source: str = "classification") -> Classification:
        """The reverse of ``to_dict``. Raises ``ConfigError`` naming ``source``."""
        if not isinstance(values, dict) or not isinstance(values.get("classes"), list):
            raise ConfigError(f"{source}: 'classification' is damaged")
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"{source}: 'classification' is damaged, unknown value {shorten(key)}")
        try:
            return cls(**{**values, "classes": tuple(values["classes"])})
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None


class Classifier(nn.Module):
    """LayerNorm and a linear layer on pooled tokens (docs/reference.md, "Fine-tuning")."""

    def __init__(self, config: Config, task: Classification) -> None:
        super().__init__()
        self.task, self._config = task, config
        values = config.width * (2 * config.grid[0] if task.pooling == "rows" else 1)
        self.norm = nn.LayerNorm(values, **of_new_weights())
        self.linear = nn.Linear(values, len(task.classes), **of_new_weights())

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """PyTorch's default weights, bias 0, from an explicit generator."""
        self.norm.reset_parameters()
        bound = 1 / math.sqrt(self.linear.in_features)
        self.linear.weight.uniform_(-bound, bound, generator=generator)
        self.linear.bias.zero_()

    def forward(self, tokens_BLd: Tensor, prefix: int, n_columns: int) -> Tensor:
        """Tokens, of which the first ``prefix`` are no patches -> logits (B, classes), or (B, seconds, classes)."""
        # Mixed precision would round the scores to 8 bits: equal ones could not be ranked any more.
        with torch.autocast(tokens_BLd.device.type, enabled=False):
            return self.linear(self.pool_and_norm(tokens_BLd, prefix, n_columns))

    def pool_and_norm(self, tokens_BLd: Tensor, prefix: int, n_columns: int) -> Tensor:
        """What the linear layer reads: the pooled tokens after LayerNorm, (B, values) or (B, seconds, d)."""
        with torch.autocast(tokens_BLd.device.type, enabled=False):
            if self.task.pooling == "cls":
                pooled = tokens_BLd[:, :prefix].mean(dim=1)
            elif self.task.pooling == "rows":
                pooled = row_statistics(tokens_BLd[:, prefix:], n_columns)
            elif self.task.per_second:
                pooled = second_means(tokens_BLd[:, prefix:], n_columns, self._config)
            else:
                pooled = tokens_BLd[:, prefix:].mean(dim=1)
            return self.norm(pooled.to(self.linear.weight.dtype))

    @torch.no_grad()
    def load_linear(self, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Take the weights of a linear model that was fitted on :meth:`pool_and_norm` of a new classifier.

        The linear model reads ``(x - mean) * scale`` (values,) and gives ``x @ weight + bias``, weight (values,
        classes), bias (classes,). LayerNorm's weight and bias, 1 and 0 in a new classifier, become the standardisation
        of its output, so that the linear layer begins with features of equal size.
        """
        self.norm.weight.copy_(scale)
        self.norm.bias.copy_(-mean * scale)
        self.linear.weight.copy_(weight.T)
        self.linear.bias.copy_(bias)


def row_statistics(patches_BQd: Tensor, n_columns: int) -> Tensor:
    """Mean, then standard deviation, over the columns of each row: (B, 2 x rows x d) float32."""
    rows_BFTd = patches_BQd.unflatten(1, (-1, n_columns)).float()
    deviation_BFd = (rows_BFTd.var(dim=2, correction=0) + _VARIANCE).sqrt()
    return torch.cat([rows_BFTd.mean(dim=2), deviation_BFd], dim=1).flatten(1)


def seconds_of_columns(n_columns: int, config: Config) -> Tensor:
    """The second (from 0) in which the centre of each patch column lies, (n_columns,) int64."""
    return column_times(torch.arange(n_columns, device="cpu"), config).floor().long()


def second_means(patches_BQd: Tensor, n_columns: int, config: Config) -> Tensor:
    """Mean over frequency, then over the columns whose centres lie in each second: (B, seconds, d)."""
    columns_BTd = patches_BQd.unflatten(1, (-1, n_columns)).mean(dim=1)
    share_ST = _second_shares(n_columns, config, columns_BTd.device)
    return torch.einsum("st,btd->bsd", share_ST.to(columns_BTd.dtype), columns_BTd)


@lru_cache(maxsize=8)
def _second_shares(n_columns: int, config: Config, device: torch.device) -> Tensor:
    """(seconds, columns) weights of the mean over each second, copied once: nobody may wait for it in each step."""
    with torch.inference_mode(False):  # a cached tensor must serve later passes with gradients, too
        share_ST = F.one_hot(seconds_of_columns(n_columns, config)).float().T
        return (share_ST / share_ST.sum(dim=1, keepdim=True).clamp_min(1)).to(device)
