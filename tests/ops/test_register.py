"""The first call of a custom operator does not import torch's compiler, which sees the operators all the same."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize("form", ["fresh", "compiled"])
def test_the_gpus_operators(form: str) -> None:
    script = str(Path(__file__).with_name("register_small.py"))
    done = subprocess.run([sys.executable, script, form], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
