"""A GPU's inference in 16 bits neither imports Triton nor asks for it: that alone takes half a second of a process."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssamba.ops import dispatch


@pytest.mark.parametrize("form", ["walk", "values"])
def test_inference(form: str) -> None:
    if form == "values" and shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")
    script = str(Path(__file__).with_name("without_triton_small.py"))
    done = subprocess.run([sys.executable, script, form], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_gpus_forms_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, they are not taken: training would stop in the middle."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    dispatch.reset()
    for name in ("gpu_inference", "gpu_input"):
        assert dispatch._load(f"ssamba.ops.mamba.{name}") == "Triton is not installed"
    monkeypatch.undo()
    dispatch.reset()
    found = dispatch._load("ssamba.ops.layer_norm.gpu")
    if importlib.util.find_spec("triton") is None:
        assert found == "Triton is not installed"
    else:
        assert found.__name__ == "ssamba.ops.layer_norm.gpu"
