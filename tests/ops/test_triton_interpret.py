"""The GPU kernels at small sizes without a GPU: Triton in its interpreter, the CUDA C++ emulated on the CPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; CPU builds of torch come without it: pip install --no-deps triton==3.6.0",
)


@pytest.mark.parametrize("form", ["interpret", "emulate"])
def test_small_sizes(form: str) -> None:
    if form == "emulate" and shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")
    script = Path(__file__).with_name("triton_small.py")
    done = subprocess.run([sys.executable, str(script), form], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
