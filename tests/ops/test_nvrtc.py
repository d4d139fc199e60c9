"""Compilation of the CUDA C++ by NVRTC, which needs no GPU: messages, argument structs, what is compiled and when."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssamba.ops.jit import nvrtc
from ssamba.ops.jit.c_struct import CStruct, c_struct
from ssamba.ops.mamba.cuda import kernel_args, sources

ROOT = Path(__file__).parents[2]
CONV = sources.defines(DTYPE=1, W=4, DIRS=2, V=2, STEPS=4, THREADS=64)


@pytest.fixture(autouse=True)
def compiler() -> None:
    try:
        nvrtc.version()
    except nvrtc.Unavailable:
        pytest.skip("nvidia-cuda-nvrtc is not installed; where it has a wheel, '.[dev]' brings it")


def line_of(text: str, part: str) -> int:
    (number,) = (i for i, line in enumerate(text.splitlines(), 1) if part in line)
    return number


def test_an_error_names_file_and_line() -> None:
    good = sources.unit("conv_backward.cu")
    line = line_of(good.source, "Window m;")
    broken = replace(good, source=good.source.replace("Window m;", "Widnow m;"))
    with pytest.raises(RuntimeError, match=re.escape(f"{good.path.as_posix()}({line}): error")) as caught:
        nvrtc.compile_unit(broken, CONV, (8, 0))
    assert "Widnow" in str(caught.value)
    assert line == line_of(good.path.read_text(), "Window m;")


def test_an_error_in_a_header_names_the_header() -> None:
    good = sources.unit("conv_backward.cu")
    headers = dict(good.headers)
    line = line_of(headers["ssamba/common.cuh"], "float sigmoid(float v)")
    headers["ssamba/common.cuh"] = headers["ssamba/common.cuh"].replace(
        "float sigmoid(float v)", "flaot sigmoid(float v)"
    )
    with pytest.raises(RuntimeError, match=re.escape(f"ssamba/common.cuh({line}): error")):
        nvrtc.compile_unit(replace(good, headers=tuple(headers.items())), CONV, (8, 0))


@pytest.mark.parametrize("name", ["SCAN_ARGS", "CONV_BACKWARD_ARGS", "CONV_PROJECTION_ARGS", "GATED_OUTPUT_ARGS"])
def test_both_forms_of_an_argument_have_one_layout(name: str) -> None:
    struct: CStruct = getattr(kernel_args, name)
    c_name = struct.ctype.__name__
    checks = [f"static_assert(sizeof({c_name}) == {ctypes.sizeof(struct.ctype)});"]
    for field in (name for name, *_ in struct.ctype._fields_ if name != "_padding"):
        member = getattr(struct.ctype, field)
        checks.append(f"static_assert(__builtin_offsetof({c_name}, {field}) == {member.offset});")
        checks.append(f"static_assert(sizeof({c_name}::{field}) == {member.size});")
    source = struct.header + "\n".join(checks) + f'\nextern "C" __global__ void nothing(const {c_name} a) {{}}\n'
    unit = nvrtc.Unit(Path("layout.cu"), source, sources.headers())
    assert nvrtc.compile_unit(unit, ("DTYPE=1", "WIDE=1"), (8, 0))


def test_a_struct_with_a_wrong_field_is_refused() -> None:
    with pytest.raises(ValueError, match="two fields of one name"):
        c_struct("S", [("int", "a"), ("float", "a")])
    with pytest.raises(KeyError, match="double"):
        c_struct("S", [("double", "a")])


def test_the_benchmark_of_pipes_compiles() -> None:
    spec = importlib.util.spec_from_file_location("pipes", ROOT / "benchmarks" / "pipes.py")
    assert spec is not None
    assert spec.loader is not None
    pipes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pipes)
    found = {mix: nvrtc.compile_unit(pipes.UNIT, pipes.defines(mix), (9, 0)) for mix in pipes.MIXES}
    assert len(set(found.values())) == len(pipes.MIXES)


def test_kernels_of_several_calls_are_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSAMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    one, two = (
        nvrtc.Unit(Path(f"{name}.cu"), f'extern "C" __global__ void run(int *a) {{ *a = A + {name}; }}')
        for name in ("1", "2")
    )

    def launch(unit: nvrtc.Unit) -> None:
        nvrtc.kernel(unit, "run", ("A=1",), 0)((1, 1, 1), 32, None)

    before = nvrtc.compilations
    names = nvrtc.compile_for(lambda: launch(one), lambda: [launch(one), launch(two)])
    assert names == [["run A=1"], ["run A=1", "run A=1"]]
    assert nvrtc.compilations == before + 2
    nvrtc.compile_for(lambda: launch(two))
    assert nvrtc.compilations == before + 2
