"""The CUDA C++ built by g++ over cuda_shim, in place of NVRTC: no GPU, and no Triton, is needed."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from ssamba.ops.jit import nvrtc

SHIM = Path(__file__).with_name("cuda_shim")

_built: dict[str, Callable[..., None]] = {}


def build(unit: nvrtc.Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
    """Stands in for ``nvrtc.kernel``: the unit built by g++, with cuda_shim in place of the headers of PTX."""
    key = " ".join((unit.path.name, name, *defines))
    if key not in _built:
        folder = Path(tempfile.mkdtemp())
        for header, text in unit.headers:
            (folder / "include" / header).parent.mkdir(parents=True, exist_ok=True)
            (folder / "include" / header).write_text(text)
        (folder / unit.path.name).write_text(unit.source)
        lines = ['#include "cuda_builtins.h"', *(f"#define {d.replace('=', ' ', 1)}" for d in defines)]
        lines += [f'#include "{unit.path.name}"']
        lines += ["template <class Args> Launch<Args> launch_of(void (*)(Args));"]
        lines += ['extern "C" void run(int x, int y, int z, int threads, const void *args) {']
        lines += [f"  decltype(launch_of({name}))::run<{name}>({{x, y, z}}, threads, args);", "}", ""]
        (folder / "run.cpp").write_text("\n".join(lines))
        command = ["g++", "-O1", "-std=c++17", "-w", "-Wno-psabi", "-shared", "-fPIC"]
        command += ["-I", str(SHIM), "-I", str(folder / "include")]
        subprocess.run([*command, "-o", str(folder / "run.so"), str(folder / "run.cpp")], check=True)
        library = ctypes.CDLL(str(folder / "run.so"))
        _built[key] = lambda grid, threads, args, *_: library.run(*grid, threads, ctypes.byref(args))
    return _built[key]
