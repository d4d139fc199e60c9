"""The backward with free decays in tensor-core fragments, emulated on the CPU: values and gradients, and its choice."""

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


@pytest.mark.parametrize("part", ["free", pytest.param("frees", marks=pytest.mark.slow)])
def test_values_and_gradients(part: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")
    script = Path(__file__).with_name("cuda_forms_small.py")
    done = subprocess.run([sys.executable, str(script), part], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
