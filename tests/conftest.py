"""What several test files share: the golden numbers, and a model of seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssamba.config import Config
from ssamba.interop.official import read_pth
from ssamba.models.ssamba import SSAMBA

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Thousands of tiny steps run tenfold slower in several threads when other programs want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers that the reference implementation computed."""
    return GOLDEN


@pytest.fixture(scope="session")
def official_path() -> Path:
    """A checkpoint in the official key form: width 32, 4 blocks, 512 patches, both heads."""
    return GOLDEN / "ssamba_official.pth"


@pytest.fixture(scope="session")
def official_tensors(official_path: Path) -> dict[str, Tensor]:
    return read_pth(official_path)


@pytest.fixture
def official(official_tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official state dict, free to be changed."""
    return {k: v.clone() for k, v in official_tensors.items()}


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


@pytest.fixture
def small_config() -> Config:
    """8 x 8 patches, two pairs of blocks."""
    return Config(width=16, depth=4, frames=128, state_size=4)


@pytest.fixture
def small_model(small_config: Config, rng: torch.Generator) -> SSAMBA:
    """With heads, and weights that differ between all blocks and directions."""
    model = SSAMBA(small_config, heads=True, generator=rng)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return model.eval()
