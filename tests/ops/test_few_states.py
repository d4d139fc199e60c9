"""Numbers of states that the tensor-core kernels do not have, without a GPU: the CUDA C++ emulated on the CPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; where it has a wheel, '.[dev]' brings it",
)


SLOW = ("free", "backwards", "inferences", "training")


@pytest.mark.parametrize(
    "part",
    ["backward", "inference", "choice", *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)],
)
def test_rounded_states(part: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")
    script = Path(__file__).with_name("few_states_small.py")
    done = subprocess.run([sys.executable, str(script), part], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def test_triton_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    script = Path(__file__).with_name("triton_compile.py")
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
