"""The CUDA units of the published sizes stay the same, down to their machine code."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from cuda_units import ARCHITECTURES, nvrtc_folder
from guard_snapshots import cuda_units
from guard_support import assert_same, read_golden

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; where it has a wheel, '.[dev]' brings it",
)


def test_units() -> None:
    """Kernels and macros, without compiling."""
    assert_same(sorted(cuda_units("list")["units"]), sorted(read_golden("cuda_units")["units"]), "cuda_units")


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    if nvrtc_folder() is None:
        pytest.skip("nvidia-cuda-nvrtc is not installed; where it has a wheel, '.[dev]' brings it")
    found, wanted = cuda_units("compile"), read_golden("cuda_units")["nvrtc"]
    assert found["nvrtc"] == wanted, f"the digests are those of NVRTC {wanted}: install that one to compare"
    return found["units"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_machine_code(compiled: dict[str, Any], arch: str) -> None:
    """Instructions and launch tables, whatever units, macros and entries are called."""
    golden = read_golden("cuda_units")["units"]
    assert codes(compiled, arch) == codes(golden, arch), f"other code for {arch} in {differing(compiled, golden, arch)}"


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_cubins(compiled: dict[str, Any], arch: str) -> None:
    """Whole files, names of entries included."""
    golden = read_golden("cuda_units")["units"]
    found = {name: unit[arch]["cubin"] for name, unit in compiled.items() if arch in unit}
    assert_same(found, {name: unit[arch]["cubin"] for name, unit in golden.items() if arch in unit}, "cuda_units")


def codes(units: dict[str, Any], arch: str) -> list[str]:
    """Digests of the units' code, in order of the digests."""
    return sorted(unit[arch]["code"] for unit in units.values() if arch in unit)


def differing(found: dict[str, Any], golden: dict[str, Any], arch: str) -> list[str]:
    """Units whose code is in one of the two alone."""
    known = {unit[arch]["code"] for unit in golden.values() if arch in unit}
    return [name for name, unit in found.items() if arch in unit and unit[arch]["code"] not in known]
