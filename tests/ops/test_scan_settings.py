"""Settings of the tensor-core forward scan (SSAMBA_CUT): what may change no bit, and its shorter softplus."""

from __future__ import annotations

import pytest
from part_script import NEEDS_TRITON, run_script, skip_without_compiler

pytestmark = NEEDS_TRITON


ALL_CASES = [pytest.param(part, marks=pytest.mark.slow) for part in ("early", "powers", "unroll", "all")]


@pytest.mark.parametrize("part", ["some", "short", *ALL_CASES])
def test_emulated(part: str) -> None:
    skip_without_compiler()
    run_script("scan_settings_small.py", part, seconds=500)
