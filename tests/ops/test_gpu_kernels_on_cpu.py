"""The GPU kernels at small sizes without a GPU: Triton in its interpreter, the CUDA C++ emulated on the CPU."""

from __future__ import annotations

import os

import pytest
from part_script import NEEDS_TRITON, run_script, skip_without_compiler

from ssamba.ops.jit import nvrtc

pytestmark = NEEDS_TRITON


@pytest.mark.parametrize("form", ["interpret", "emulate-one", pytest.param("emulate", marks=pytest.mark.slow)])
def test_small_sizes(form: str) -> None:
    if form.startswith("emulate"):
        skip_without_compiler()
    run_script("triton_small.py", form, seconds=300)


@pytest.mark.parametrize(
    "part",
    [
        "states",
        "overflow",
        "chunks",
        "work",
        "backward",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("forward", "training", "half", "backwards")),
    ],
)
def test_tied_decays_and_alternating_directions(part: str) -> None:
    skip_without_compiler()
    run_script("cuda_forms_small.py", part, seconds=500)


@pytest.mark.parametrize(
    ("form", "skewed"), [("one", "3"), ("one", "4"), pytest.param("all", "3", marks=pytest.mark.slow)]
)
def test_gate_and_output_for_hopper(form: str, skewed: str) -> None:
    """Alone, joined to the stream, and up to the next pair's x; with products and copies as late as they may be."""
    skip_without_compiler()
    run_script("gated_output_small.py", form, seconds=300, variables={**os.environ, "SSAMBA_SKEWED": skewed})


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu() -> None:
    """NVRTC, which needs no GPU, takes the CUDA C++ of every published size, forward and backward, in every cut."""
    try:
        nvrtc.version()
    except nvrtc.Unavailable:
        pytest.skip("nvidia-cuda-nvrtc is not installed; where it has a wheel, '.[dev]' brings it")
    printed = run_script("nvrtc_compile.py", seconds=500)
    kernels = "add_layer_norm conv_backward conv_proj gated_output prepare_weights scan_backward scan_backward_mma"
    for name in (*kernels.split(), "scan_forward", "scan_fragments", "scan_states"):
        assert name in printed
