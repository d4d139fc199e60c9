"""What a training pass on a GPU does beside the scans, without a GPU: Triton in its interpreter."""

from __future__ import annotations

import pytest
from part_script import NEEDS_TRITON, run_script

pytestmark = NEEDS_TRITON


@pytest.mark.parametrize("part", ["small", "pair"])
def test_small_sizes(part: str) -> None:
    run_script("training_small.py", part, seconds=300)


def test_the_gradient_of_the_bias_from_the_mixer() -> None:
    run_script("bias_small.py", seconds=300)
