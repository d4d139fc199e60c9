"""Numbers of states that the tensor-core kernels do not have, without a GPU: the CUDA C++ emulated on the CPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; where it has a wheel, '.[dev]' brings it",
)


@pytest.mark.parametrize("part", ["backward", "inference", "training", "choice"])
def test_rounded_states(part: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")
    script = Path(__file__).with_name("few_states_small.py")
    done = subprocess.run([sys.executable, str(script), part], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
