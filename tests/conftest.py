"""What several test files share: the golden numbers, and a model of seconds."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.models.pretrained.pth_file import read_pth

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", help="I/N: of the tests chosen, every Nth from the Ith on")
    parser.addoption("--passed", type=Path, help="a file of tests to leave out, to which those that pass are added")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shard, shards = map(int, config.getoption("--shard").split("/"))
    passed = config.getoption("--passed")
    done = set(passed.read_text().splitlines()) if passed is not None and passed.exists() else set()
    kept = [item for i, item in enumerate(items) if i % shards == shard and item.nodeid not in done]
    left_out = set(items) - set(kept)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    passed = item.config.getoption("--passed")
    if passed is not None and report.when == "call" and report.passed:
        with passed.open("a") as file:
            file.write(f"{item.nodeid}\n")
    return report


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
