"""CUDA C++ compiled at run time by the NVRTC library that torch's CUDA wheels carry.

No compiler, no CUDA headers and no private torch API: two shared libraries through ctypes. What was compiled once is
kept in memory and on disk (``kernel_cache``); ``cuda_driver`` loads and launches it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ssamba.ops.jit import kernel_cache
from ssamba.ops.jit.cuda_driver import (
    Kernel,
    TensorMap,
    Unavailable,
    driver,
    make_tensor_map,
    make_tensor_map_2d,
    on,
    open_library,
)
from ssamba.utils.threads import ThreadPool

__all__ = [
    "Kernel", "Sources", "TensorMap", "Unavailable", "Unit", "available", "compile_for", "compile_unit", "cubin",
    "defines", "kernel", "make_tensor_map", "make_tensor_map_2d", "multiplies_bfloat16", "on", "version",
]  # fmt: skip

_OPTIONS = ("--std=c++17", "--use_fast_math")

compilations = 0
"""How many times this process has compiled a unit: what neither memory nor the disk had."""

_counting = threading.Lock()
_requests: list[tuple[Unit, str, tuple[str, ...], int]] | None = None
"""What ``kernel`` was asked for, while ``compile_for`` collects it."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A translation unit: one ``.cu`` file and every header that it may include. Compared by identity."""

    path: Path
    """The file; compiler messages name it."""
    source: str
    """Its text."""
    headers: tuple[tuple[str, str], ...] = ()
    """Name, as in ``#include "name"``, and text of each header."""


class Sources:
    """The units of ``kernels/*.cu`` in a package's folder, with ``include/**/*.cuh`` and headers that are generated.

    ``generated``: name and text of each of those.
    """

    def __init__(self, folder: Path, generated: tuple[tuple[str, str], ...]) -> None:
        self._folder, self._generated = folder, generated
        self.headers, self.unit = functools.cache(self._read_headers), functools.cache(self._read_unit)

    def _read_headers(self) -> tuple[tuple[str, str], ...]:
        """Name and text of every header, those in files and those that are generated."""
        include = self._folder / "include"
        files = sorted(include.rglob("*.cuh"))
        texts = [(p.relative_to(include).as_posix(), p.read_text(encoding="utf-8")) for p in files]
        return (*texts, *self._generated)

    def _read_unit(self, file: str) -> Unit:
        """The unit of ``kernels/<file>``. Raises OSError when the package was installed without it."""
        path = self._folder / "kernels" / file
        return Unit(path, path.read_text(encoding="utf-8"), self.headers())


def defines(**values: int) -> tuple[str, ...]:
    """Macros in the form that ``kernel`` takes."""
    return tuple(f"{name}={value}" for name, value in values.items())


@functools.cache
def _compiler() -> ctypes.CDLL:
    """NVRTC of torch's CUDA version. A torch without CUDA takes what the package nvidia-cuda-nvrtc brought."""
    site = Path(torch.__file__).resolve().parent.parent
    if torch.version.cuda is None:
        majors = sorted((p.name[2:] for p in (site / "nvidia").glob("cu*") if p.name[2:].isdigit()), key=int)
    else:
        majors = [torch.version.cuda.split(".")[0]]
    folders = [site / "nvidia" / f"cu{major}" / "lib" for major in majors]
    folders += [site / "nvidia" / "cuda_nvrtc" / "lib", site / "torch" / "lib"]
    if sys.platform == "win32":
        return open_library([p.name for p in folders[-1].glob("nvrtc64_*_0.dll")], folders)
    return open_library([f"libnvrtc.so.{major}" for major in majors], folders)


def version() -> str:
    """NVRTC's version, as ``13.0``. Raises :class:`Unavailable` where it cannot be loaded."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    if _compiler().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)):
        raise RuntimeError("nvrtcVersion failed")
    return f"{major.value}.{minor.value}"


def _architecture(capability: tuple[int, int]) -> str:
    # Hopper has instructions that no GPU after it has: "a" is for those.
    return f"sm_{capability[0]}{capability[1]}" + "a" * (capability == (9, 0))


def _text(unit: Unit, defines: tuple[str, ...]) -> str:
    """The source with its macros: as options they would also reach NVRTC's own header, which uses short names, too."""
    lines = "".join(f"#define {d.replace('=', ' ', 1)}\n" for d in defines)
    return f'{lines}#line 1 "{unit.path.as_posix()}"\n{unit.source}'


def compile_unit(unit: Unit, defines: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    """The cubin of ``unit`` for a compute capability, compiled now.

    ``defines``: macros as ``NAME=VALUE``. Raises RuntimeError with the compiler's log, which names file and line.
    """
    global compilations
    lib, program = _compiler(), ctypes.c_void_p()
    count = len(unit.headers)
    names = (ctypes.c_char_p * count)(*(name.encode() for name, _ in unit.headers))
    texts = (ctypes.c_char_p * count)(*(text.encode() for _, text in unit.headers))
    source, path = _text(unit, defines).encode(), unit.path.as_posix().encode()
    if lib.nvrtcCreateProgram(ctypes.byref(program), source, path, count, texts, names):
        raise RuntimeError(f"{unit.path}: nvrtcCreateProgram failed")
    with _counting:
        compilations += 1
    try:
        options = (f"--gpu-architecture={_architecture(capability)}", *_OPTIONS)
        raw = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        size = ctypes.c_size_t()
        if lib.nvrtcCompileProgram(program, len(options), raw):
            lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            lib.nvrtcGetProgramLog(program, log)
            lines = log.value.decode(errors="replace")[:4000]
            raise RuntimeError(f"{unit.path}: NVRTC refused {' '.join(defines)} ({' '.join(options)}):\n{lines}")
        lib.nvrtcGetCUBINSize(program, ctypes.byref(size))
        result = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetCUBIN(program, result)
        return result.raw
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _key(unit: Unit, defines: tuple[str, ...], capability: tuple[int, int]) -> str:
    """The sha256 of all that decides the cubin: source, headers, macros, options, architecture, NVRTC's version."""
    parts = [unit.source, *(part for header in unit.headers for part in header), *defines, *_OPTIONS]
    parts += [str(len(unit.headers)), str(len(defines)), _architecture(capability), version()]
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@functools.cache
def cubin(unit: Unit, defines: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    """The cubin of ``unit`` from memory, from disk, or compiled and stored. As :func:`compile_unit` else."""
    key = _key(unit, defines, capability)
    found = kernel_cache.load(key)
    if found is None:
        found = compile_unit(unit, defines, capability)
        kernel_cache.store(key, found)
    return found


@functools.cache
def _loaded(unit: Unit, name: str, defines: tuple[str, ...], device: int) -> Kernel:
    return Kernel(cubin(unit, defines, torch.cuda.get_device_capability(device)), name)


def kernel(unit: Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
    """The function ``name`` of ``unit``, compiled once for each set of ``defines``, loaded once for each device.

    ``device`` must be the current one. It is called as ``Kernel`` is.
    """
    if _requests is not None:
        _requests.append((unit, name, defines, device))
        return lambda *_: None
    return _loaded(unit, name, defines, device)


def compile_for(*calls: Callable[[], object]) -> list[list[str]]:
    """Compiles what ``calls`` would launch, side by side on all cores; names and macros of each call's kernels.

    The calls run with kernels that do nothing, so their results mean nothing.
    """
    global _requests
    wanted = []
    try:
        for call in calls:
            _requests = []
            call()
            wanted.append(_requests)
    finally:
        _requests = None
    once = {(unit, defines, torch.cuda.get_device_capability(d)) for w in wanted for unit, _, defines, d in w}
    with ThreadPool(os.cpu_count() or 1) as pool:
        list(pool.map(lambda one: cubin(*one), once))
    return [[" ".join((name, *defines)) for _, name, defines, _ in w] for w in wanted]


@functools.cache
def available(device: int) -> bool:
    """Whether NVRTC can compile for this device. An AMD GPU, or a build of torch without NVRTC, cannot."""
    if torch.version.cuda is None:
        return False
    try:
        driver()
        count = ctypes.c_int()
        lib = _compiler()
        lib.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        lib.nvrtcGetSupportedArchs(known)
    except (Unavailable, AttributeError):
        return False
    major, minor = torch.cuda.get_device_capability(device)
    return major >= 7 and major * 10 + minor in list(known)


def multiplies_bfloat16(device: int) -> bool:
    """Whether NVRTC can compile for it, and the device has the instructions of ptx_sm80.cuh (capability 8.0)."""
    return available(device) and torch.cuda.get_device_capability(device)[0] >= 8
