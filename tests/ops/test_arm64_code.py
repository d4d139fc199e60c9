"""The CPU kernels compile to arm64 machine code that computes in vectors. Running it takes dev/arm64.py."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest

from ssamba.ops.mamba.cpu import kernels

LANES, NEON_LANES = 16, 4
AARCH64 = 183
"""The machine's number in the head of an ELF file."""
CPUS = ["generic", "neoverse-n1", "neoverse-v1", "apple-m1"]
"""ARMv8 with NEON; servers without and with SVE; a laptop."""


def has_arm64() -> bool:
    llvm.initialize_all_targets()
    try:
        return bool(llvm.Target.from_triple("aarch64-unknown-linux-gnu"))
    except RuntimeError:
        return False


def check(*pairs: tuple[str, str]) -> None:
    """Compiles kernels for processors and looks at the machine code.

    Each multiply-add of sixteen lanes must be four fused ones of four, none made lane by lane or by a function; nothing
    may be called, no mathematical library and no atomic helper, but the kernel by Numba's entry, and Python where that
    has an error to report. NEON has too few registers for a scan's states: less than half of its longest loop may move
    vectors to and from the stack.
    """
    if not has_arm64():
        pytest.skip("this llvmlite cannot compile for aarch64")
    command = [sys.executable, str(Path(__file__).with_name("arm64_code.py")), *itertools.chain(*pairs)]
    environment = {**os.environ, "NUMBA_OPT": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    entries: list[dict[str, Any]] = json.loads(done.stdout)
    assert [(entry["kernel"], entry["cpu"]) for entry in entries] == list(pairs)
    for entry in entries:
        name, count = f"{entry['kernel']} for {entry['cpu']}", entry["instructions"]
        assert entry["machine"] == AARCH64, name
        assert entry["multiply_adds"] >= 10, name
        assert count.get("fmla vector", 0) >= LANES // NEON_LANES * entry["multiply_adds"], name
        one_by_one = {"fmadd", "fmsub", "fnmadd", "fnmsub", "fdiv scalar"}
        assert not [key for key in count if key in one_by_one or key.split()[0] in one_by_one], name
        loop = entry["loop"]
        assert loop["stack_loads"] + loop["stack_stores"] < loop["instructions"] / 2, name
        calls = [call for call in entry["calls"] if not call.startswith(("Py", "numba_gil_"))]
        assert len(calls) == 1, name
        assert entry["kernel"] in calls[0], name


def test_arithmetic_is_in_vectors() -> None:
    check(("scan_forward", "generic"), ("conv_backward", "neoverse-v1"))


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
def test_every_kernel(cpu: str) -> None:
    check(*((kernel, cpu) for kernel in kernels.MODULES))
