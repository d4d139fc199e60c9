"""Warps of the tensor-core forward scan in every order: all give the same bits."""

from __future__ import annotations

import pytest
from part_script import NEEDS_TRITON, run_script, skip_without_compiler

pytestmark = NEEDS_TRITON


@pytest.mark.parametrize("part", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_emulated(part: str) -> None:
    skip_without_compiler()
    run_script("scan_orders_small.py", part, seconds=500)
