"""What a classifier reads of the tokens."""

import numpy as np
import pytest
import torch

from ssamba.models.classifier import Classification, Classifier
from ssamba.models.config import Config
from ssamba.utils.errors import ConfigError

WIDTH, ROWS, COLUMNS, PREFIX = 12, 8, 6, 1


def classifier(pooling: str) -> Classifier:
    config = Config(width=WIDTH, depth=2, frames=16 * COLUMNS)
    made = Classifier(config, Classification(("a", "b", "c"), pooling=pooling))
    made.reset_parameters(torch.Generator().manual_seed(0))
    return made


def tokens(columns: int = COLUMNS) -> torch.Tensor:
    return torch.randn(2, PREFIX + ROWS * columns, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("columns", [1, 2, COLUMNS, 2 * COLUMNS + 1])
def test_rows_are_read_apart(columns: int) -> None:
    head, x = classifier("rows"), tokens(columns)
    seen: list[torch.Tensor] = []
    head.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits = head(x, PREFIX, columns)
    patches = x[:, PREFIX:].double().numpy().reshape(2, ROWS, columns, WIDTH)  # time runs fastest
    means, deviations = patches.mean(axis=2), np.sqrt(patches.var(axis=2) + 1e-6)
    expected = np.concatenate([means.reshape(2, -1), deviations.reshape(2, -1)], axis=1)
    assert logits.shape == (2, 3)
    assert np.abs(seen[0].numpy() - expected).max() < 1e-5


def test_rows_hear_what_the_mean_cannot() -> None:
    """The same tokens with low and high frequencies exchanged."""
    x = tokens()
    other = torch.cat([x[:, :PREFIX], x[:, PREFIX:].unflatten(1, (ROWS, COLUMNS)).flip(1).flatten(1, 2)], dim=1)
    mean, rows = classifier("mean"), classifier("rows")
    assert torch.allclose(mean(x, PREFIX, COLUMNS), mean(other, PREFIX, COLUMNS), atol=1e-5)
    assert not torch.allclose(rows(x, PREFIX, COLUMNS), rows(other, PREFIX, COLUMNS), atol=1e-2)


@pytest.mark.parametrize("columns", [1, COLUMNS])
@pytest.mark.parametrize("silent", [False, True])
def test_rows_have_a_finite_slope(columns: int, silent: bool) -> None:
    """Also where nothing varies over time: the root of 0 has none."""
    x = (torch.zeros_like(tokens(columns)) if silent else tokens(columns)).requires_grad_()
    classifier("rows")(x, PREFIX, columns).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_rows_are_not_for_each_second() -> None:
    with pytest.raises(ConfigError, match="takes the mean"):
        Classification(("a", "b"), pooling="rows", per_second=True)
    with pytest.raises(ConfigError, match="'row', choose mean, cls, rows"):
        Classification(("a", "b"), pooling="row")


def test_each_second_reads_its_own_columns_in_time_order() -> None:
    """Scenes of 61.44 s: over all frequencies, then over the columns whose centres lie in the second; no CLS."""
    config = Config(width=WIDTH, depth=2, frames=6144)
    columns = config.grid[1]
    head = Classifier(config, Classification(("a", "b", "c"), per_second=True))
    seen: list[torch.Tensor] = []
    head.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, PREFIX + ROWS * columns, WIDTH, generator=torch.Generator().manual_seed(2))
    logits = head(x, PREFIX, columns)
    grid = x[0, PREFIX:].double().numpy().reshape(ROWS, columns, WIDTH)  # time runs fastest
    centres = 0.0125 + 0.01 * (16 * np.arange(columns) + 7.5)  # frames are 25 ms long, a patch has 16 of them
    expected = [grid[:, np.floor(centres) == second].mean(axis=(0, 1)) for second in range(62)]
    assert logits.shape == (1, 62, 3)
    assert np.abs(seen[0][0].numpy() - np.stack(expected)).max() < 1e-5
