"""A few kills and flips of the torture that ``make torture`` does at length."""

from __future__ import annotations

import pytest
from flips import flips
from rounds import torture


@pytest.mark.slow
def test_kills() -> None:
    state = torture(10, seed=3, say=lambda line: None)
    assert state.kills >= 10
    assert state.wrong == []


@pytest.mark.slow
def test_flips() -> None:
    counts, silent = flips(20, seed=3)
    assert sum(counts.values()) == 20
    assert silent == []
    assert any(outcome == "detected" for _, outcome in counts)
