"""The CPU's machine code without Numba: the same bits, and Numba wherever it cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ssamba.ops.jit import kernel_cache, machine_code
from ssamba.ops.mamba.cpu import kernels

pytestmark = pytest.mark.skipif(not machine_code.SUPPORTED, reason="Numba's cache alone serves here")

CONVOLVE = """
    import hashlib, sys, warnings
    warnings.simplefilter("error")
    import torch
    from ssamba import ops
    x = torch.randn(1, 70, 1, 48, generator=torch.Generator().manual_seed(1), requires_grad=GRADIENT)
    weight, bias = torch.linspace(-1, 1, 2 * 48 * 4).view(2, 1, 48, 4), torch.linspace(-1, 1, 96).view(2, 1, 48)
    found = ops.conv_silu(x, weight, bias)
    if GRADIENT:
        found.square().sum().backward()
        found = x.grad
    print("numba" in sys.modules, hashlib.sha256(found.detach().numpy().tobytes()).hexdigest())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of machine code, which does not exist yet, and a folder for Numba's."""
    monkeypatch.setenv("SSAMBA_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.delenv("SSAMBA_BACKEND", raising=False)
    return tmp_path / "kernels"


def convolve(gradient: bool = False, **environment: str) -> tuple[str, str]:
    """Whether a new process imports Numba for a convolution, and what it computes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CONVOLVE).replace("GRADIENT", str(gradient))],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported, digest = done.stdout.split()
    return imported, digest


def test_a_second_process_does_without_numba(folder: Path) -> None:
    made = convolve()
    assert made[0] == "True"
    kept = list(folder.iterdir())
    assert [path.suffix for path in kept] == [".object"]
    assert convolve(OMP_NUM_THREADS="2") == ("False", made[1])
    # What is not there yet is compiled beside what is, and then is.
    gradient = convolve(gradient=True)
    assert gradient[0] == "True"
    assert convolve(gradient=True) == ("False", gradient[1])
    # What Numba alone has in its cache is taken from there.
    for path in kept:
        path.unlink()
    assert convolve() == ("True", made[1])
    assert convolve() == ("False", made[1])
    # Nothing runs of what another user may have written or of what is damaged. Without a warning: Numba has a cache.
    folder.chmod(0o777)
    assert convolve() == ("True", made[1])
    folder.chmod(0o700)
    for path in folder.glob("*.object"):
        path.write_bytes(path.read_bytes()[:-1])
    assert convolve() == ("True", made[1])


def test_what_is_no_object_is_compiled_again(folder: Path) -> None:
    key = machine_code.key("conv_forward", kernels._version())
    assert key is not None
    for content in (b"", b"symbol\n", b"symbol\nno object", b"\xff\n\x7fELF"):
        kernel_cache.store(key, content, kernel_cache.OBJECT)
        assert machine_code.held(key)
        assert machine_code.load(key) is None
    assert not isinstance(kernels.compile_kernel("conv_forward")._keep, machine_code.MachineCode)
    assert isinstance(kernels.compile_kernel("conv_forward")._keep, machine_code.MachineCode)


def test_the_key_holds_what_the_code_depends_on(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def keys() -> list[str | None]:
        machine_code._surroundings.cache_clear()
        return [machine_code.key(name, version) for name in ("conv_forward", "scan_forward") for version in (1, 2)]

    found = keys()
    assert len(set(found)) == 4
    assert None not in found
    assert keys() == found
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    assert keys() == found
    others = [found]
    import llvmlite.binding as llvm

    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_CPU_NAME", "generic")
        others.append(keys())
    for name, value in (("get_host_cpu_name", lambda: "another"), ("get_host_cpu_features", llvm.FeatureMap)):
        with monkeypatch.context() as patch:
            patch.setattr(llvm, name, value)
            others.append(keys())
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda package: "0.0")
        others.append(keys())
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / ".numba_config.yaml").write_text("opt: 1\n")
        others.append(keys())
    assert len({key for some in others for key in some}) == 4 * len(others)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert keys() == [None] * 4


def test_code_that_needs_numba_is_not_kept(folder: Path) -> None:
    class Library:
        def __init__(self, code: bytes) -> None:
            self._get_compiled_object = lambda: code

    class Compiled:
        native_name, cache_hits = "symbol", 0

        def __init__(self, code: bytes) -> None:
            self._library = Library(code)

    key = "1" * 64
    for code in (b"\x7fELF\0NRT_allocate\0", b"\x7fELF\0numba_gil_ensure\0numba_unpickle\0"):
        machine_code.keep(key, Compiled(code))
        assert not machine_code.held(key)
    machine_code.keep(key, object())  # another Numba
    assert not machine_code.held(key)
    machine_code.keep(key, Compiled(b"\x7fELF\0numba_gil_ensure\0PyErr_Clear\0numba_gil_release\0"))
    assert machine_code.held(key)


def test_an_error_in_a_callback_reaches_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels raise none, but their wrappers name the interpreter's lock: what stands in for it works."""
    from numba import cfunc, types

    def fails(table):  # type: ignore[no-untyped-def]
        if table == 7:
            raise ValueError

    raised: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: raised.append(error.exc_type))
    compiled = cfunc(types.void(types.int64))(fails)
    code = bytes(compiled._library._get_compiled_object())
    assert set(code.split(b"\0")) >= machine_code._KNOWN
    kernel = kernels.Kernel(machine_code.MachineCode(compiled.native_name, code))
    kernel.call(1)
    assert raised == []
    kernel.call(7)
    assert raised == [ValueError]
