"""Numbers of states that the tensor-core kernels do not have, without a GPU: the CUDA C++ emulated on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from part_script import NEEDS_TRITON, run_script, skip_without_compiler

pytestmark = NEEDS_TRITON


SLOW = ("free", "backwards", "inferences", "training")


@pytest.mark.parametrize(
    "part",
    ["backward", "inference", "choice", *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)],
)
def test_rounded_states(part: str) -> None:
    skip_without_compiler()
    run_script("few_states_small.py", part, seconds=500)


def test_triton_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    run_script("triton_compile.py", seconds=300, variables=variables)
