"""A GPU's inference in 16 bits neither imports Triton nor asks for it: that alone takes half a second of a process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("form", ["walk", "values"])
def test_inference(form: str) -> None:
    if form == "values" and shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")
    script = str(Path(__file__).with_name("without_triton_small.py"))
    done = subprocess.run([sys.executable, script, form], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
