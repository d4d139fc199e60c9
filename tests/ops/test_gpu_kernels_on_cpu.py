"""The GPU kernels at small sizes without a GPU: Triton in its interpreter, the CUDA C++ emulated on the CPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssamba.ops.jit import nvrtc

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; where it has a wheel, '.[dev]' brings it",
)


@pytest.mark.parametrize("form", ["interpret", "emulate-one", pytest.param("emulate", marks=pytest.mark.slow)])
def test_small_sizes(form: str) -> None:
    if form.startswith("emulate") and shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")
    script = Path(__file__).with_name("triton_small.py")
    done = subprocess.run([sys.executable, str(script), form], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "part",
    [
        "states",
        "overflow",
        "chunks",
        "backward",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("forward", "training", "half", "backwards")),
    ],
)
def test_tied_decays_and_alternating_directions(part: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("emulating the CUDA kernels needs g++")
    script = Path(__file__).with_name("cuda_forms_small.py")
    done = subprocess.run([sys.executable, str(script), part], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu() -> None:
    """NVRTC, which needs no GPU, takes the CUDA C++ of every published size, forward and backward, in every cut."""
    try:
        nvrtc.version()
    except nvrtc.Unavailable:
        pytest.skip("nvidia-cuda-nvrtc is not installed; where it has a wheel, '.[dev]' brings it")
    script = Path(__file__).with_name("nvrtc_compile.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = "add_layer_norm conv_backward conv_proj gated_output prepare_weights scan_backward scan_backward_mma"
    for name in (*kernels.split(), "scan_forward", "scan_fragments", "scan_states"):
        assert name in done.stdout
