"""The backward with free decays in tensor-core fragments, emulated on the CPU: values and gradients, and its choice."""

from __future__ import annotations

import pytest
from part_script import NEEDS_TRITON, run_script, skip_without_compiler

pytestmark = NEEDS_TRITON


@pytest.mark.parametrize("part", ["free", pytest.param("frees", marks=pytest.mark.slow)])
def test_values_and_gradients(part: str) -> None:
    skip_without_compiler()
    run_script("cuda_forms_small.py", part, seconds=500)
