"""What a training pass on a GPU does beside the scans, without a GPU: Triton in its interpreter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; where it has a wheel, '.[dev]' brings it",
)


@pytest.mark.parametrize("part", ["small", "pair"])
def test_small_sizes(part: str) -> None:
    script = Path(__file__).with_name("training_small.py")
    done = subprocess.run([sys.executable, str(script), part], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
