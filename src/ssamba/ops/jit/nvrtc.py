"""CUDA C++ compiled at run time by the NVRTC library that torch's CUDA wheels carry, and launched through the driver.

No compiler, no headers and no private torch API: two shared libraries through ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Unavailable(RuntimeError):
    """NVRTC or the driver cannot be loaded, or does not know this GPU."""


def _open(names: list[str], folders: list[Path]) -> ctypes.CDLL:
    for name in [*names, *(str(f / n) for f in folders for n in names if (f / n).exists())]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Unavailable(f"none of {', '.join(names)} could be loaded")


@functools.cache
def _driver() -> ctypes.CDLL:
    return _open(["nvcuda.dll"] if sys.platform == "win32" else ["libcuda.so.1"], [])


@functools.cache
def _compiler() -> ctypes.CDLL:
    major = (torch.version.cuda or "0").split(".")[0]
    site = Path(torch.__file__).resolve().parent.parent
    folders = [site / "nvidia" / f"cu{major}" / "lib", site / "nvidia" / "cuda_nvrtc" / "lib", site / "torch" / "lib"]
    if sys.platform == "win32":
        return _open([p.name for f in folders[2:] for p in f.glob("nvrtc64_*_0.dll")], folders)
    return _open([f"libnvrtc.so.{major}"], folders)


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{what} failed: {(text.value or b'unknown error').decode()} ({code})")


def compile_source(source: str, options: tuple[str, ...]) -> bytes:
    """The cubin of ``source``. Raises RuntimeError with the compiler's log."""
    lib = _compiler()
    program = ctypes.c_void_p()
    if lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"ssamba.cu", 0, None, None):
        raise RuntimeError("nvrtcCreateProgram failed")
    try:
        raw = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        if lib.nvrtcCompileProgram(program, len(options), raw):
            size = ctypes.c_size_t()
            lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            lib.nvrtcGetProgramLog(program, log)
            raise RuntimeError(
                f"NVRTC refused a kernel (options {options}):\n{log.value.decode(errors='replace')[:4000]}"
            )
        size = ctypes.c_size_t()
        lib.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


class Kernel:
    """One function of one module, loaded on one device."""

    def __init__(self, cubin: bytes, name: str) -> None:
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._shared = 0
        driver = _driver()
        _check(driver.cuModuleLoadData(ctypes.byref(self._module), cubin), "cuModuleLoadData")
        found = driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode())
        _check(found, f"cuModuleGetFunction({name})")

    def __call__(self, grid: tuple[int, int, int], threads: int, args: ctypes.Structure, shared: int = 0) -> None:
        """Launches on torch's current stream; ``args`` is the kernel's only parameter, passed by value.

        ``shared`` is the kernel's dynamic shared memory in bytes.
        """
        if shared > self._shared:
            _check(
                _driver().cuFuncSetAttribute(self._function, 8, shared), f"asking for {shared} bytes of shared memory"
            )
            self._shared = shared
        params = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        launched = _driver().cuLaunchKernel(self._function, *grid, threads, 1, 1, shared, stream, params, None)
        _check(launched, "cuLaunchKernel")


BoxMap = ctypes.c_uint64 * 16
"""``CUtensorMap``, in a structure whose own place is a multiple of 64."""


def box_map(matrix: Tensor, height: int, width: int) -> ctypes.Array[ctypes.c_uint64]:
    """What a bulk copy of boxes of a contiguous bfloat16 matrix needs to know.

    A row of a box becomes ``width`` values in shared memory, at most 128 bytes, swizzled by that; beyond the matrix are
    zeros.
    """
    rows, columns = matrix.shape
    memory = ctypes.create_string_buffer(128 + 64)
    address = (ctypes.addressof(memory) + 63) // 64 * 64
    sizes, box = (ctypes.c_uint64 * 2)(columns, rows), (ctypes.c_uint32 * 2)(width, height)
    stride, steps = (ctypes.c_uint64 * 1)(2 * columns), (ctypes.c_uint32 * 2)(1, 1)
    bfloat16, plain, by_128, to_256 = 9, 0, 3, 3  # type, interleaving, swizzling, bytes to fetch into the cache
    made = _driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(address), bfloat16, 2, ctypes.c_void_p(matrix.data_ptr()), sizes, stride, box, steps,
        plain, by_128, to_256, 0,
    )  # fmt: skip
    _check(made, f"describing a matrix of {rows} x {columns}")
    return BoxMap.from_buffer_copy(ctypes.string_at(address, 128))


@functools.cache
def kernel(source: str, name: str, defines: tuple[str, ...], device: int) -> Kernel:
    """Compiled once for each set of ``defines``, loaded once for each device. ``device`` must be the current one."""
    return Kernel(_cubin(source, defines, torch.cuda.get_device_capability(device)), name)


@functools.cache
def _cubin(source: str, defines: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    # Hopper has instructions that no GPU after it has: "a" is for those.
    arch = f"--gpu-architecture=sm_{capability[0]}{capability[1]}" + "a" * (capability == (9, 0))
    # In the text rather than as options: NVRTC's own header comes first and knows nothing of our short names.
    lines = "".join(f"#define {d.replace('=', ' ', 1)}\n" for d in defines)
    return compile_source(lines + source, (arch, "--std=c++17", "--use_fast_math"))


def compile_for(*calls: Callable[[], object]) -> list[list[str]]:
    """Compiles what ``calls`` would launch, side by side on all cores; names and macros of each call's kernels.

    The calls run with kernels that do nothing, so their results mean nothing.
    """
    global kernel
    wanted: list[list[tuple[str, str, tuple[str, ...], int]]] = []

    def note(*what: Any) -> Callable[..., None]:
        wanted[-1].append(what)
        return lambda *_: None

    real, kernel = kernel, note  # type: ignore[assignment]
    try:
        for call in calls:
            wanted.append([])
            call()
    finally:
        kernel = real
    once = {(source, defines, torch.cuda.get_device_capability(d)) for w in wanted for source, _, defines, d in w}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: _cubin(*one), once))
    return [[" ".join((name, *defines)) for _, name, defines, _ in w] for w in wanted]


def on(x: Tensor) -> Any:
    """The device of ``x`` as the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def available(device: int) -> bool:
    """Whether NVRTC can compile for this device. An AMD GPU, or a build of torch without NVRTC, cannot."""
    if torch.version.cuda is None:
        return False
    try:
        _driver()
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
    """Whether it can, and the device has the matrix products of ``nvrtc_primitives`` (compute capability 8.0)."""
    return available(device) and torch.cuda.get_device_capability(device)[0] >= 8
