from pathlib import Path

import pytest
from pretrain_runs import SMALL

from ssamba.data.synthetic.generate import make_synthetic


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 45 real files, half a second to a second each."""
    folder = tmp_path_factory.mktemp("sounds")
    make_synthetic(folder, clips=45, seconds=1.0, seed=1)
    return folder


@pytest.fixture(scope="session")
def small_run() -> dict[str, object]:
    """Those values for fixtures of a wider scope, which do not change them."""
    return SMALL


@pytest.fixture
def small() -> dict[str, object]:
    return dict(SMALL)


@pytest.fixture
def tiny(small: dict[str, object]) -> dict[str, object]:
    """With all that is drawn for a step; 5 clips leave the processes different numbers of rows.

    A small rate, for Adam makes much of rounding where gradients are nearly 0.
    """
    return small | {"batch": 5, "steps": 16, "drop_path": 0.2, "lr": 1e-4, "save_minutes": 60.0}
