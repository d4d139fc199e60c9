"""A few kills and flips of the torture that ``make torture`` does at length."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flips import flips
from rounds import Torture, prepared, torture

JOBS = 2


@pytest.fixture(scope="module")
def state() -> Iterator[Torture]:
    with prepared(3) as state:
        yield state


@pytest.mark.slow
def test_kills(state: Torture) -> None:
    run = torture(state, 10, JOBS)
    assert run.counts.total() == 10
    assert run.wrong == []


@pytest.mark.slow
@pytest.mark.long
def test_flips(state: Torture) -> None:
    counts, silent = flips(state, 20, JOBS)
    assert counts.total() == 20
    assert silent == []
    assert any(outcome in ("refused", "repaired", "reported") for _, outcome in counts)
