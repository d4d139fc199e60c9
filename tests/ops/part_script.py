"""Scripts beside the tests that run in a process of their own, whose imports the interpreter and stand-ins change."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; where it has a wheel, '.[dev]' brings it",
)


def skip_without_compiler() -> None:
    """Skips the test where g++ is missing, which emulation builds the CUDA C++ with."""
    if shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")


def run_script(name: str, *words: str, seconds: float, variables: Mapping[str, str] | None = None) -> str:
    """What ``name``, a script in this folder, prints; the test fails with the end of its errors unless it ends well.

    ``variables``: its environment, by default this process's.
    """
    command = [sys.executable, str(Path(__file__).with_name(name)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=variables, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
