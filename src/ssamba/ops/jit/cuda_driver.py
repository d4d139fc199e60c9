"""The CUDA driver through ctypes: loading cubins, launching their kernels, and tensor maps for bulk copies."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.ops import environment


class Unavailable(RuntimeError):
    """NVRTC or the driver cannot be loaded, or does not know this GPU."""


def open_library(names: list[str], folders: list[Path]) -> ctypes.CDLL:
    """The first shared library of these names that loads, by the system's search and then from ``folders``.

    Raises :class:`Unavailable` when none does.
    """
    for name in [*names, *(str(f / n) for f in folders for n in names if (f / n).exists())]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Unavailable(f"none of {', '.join(names)} could be loaded")


@functools.cache
def driver() -> ctypes.CDLL:
    """The driver's library. Raises :class:`Unavailable` where there is none."""
    return open_library(["nvcuda.dll"] if sys.platform == "win32" else ["libcuda.so.1"], [])


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{what} failed: {(text.value or b'unknown error').decode()} ({code})")


class _LaunchAttribute(ctypes.Structure):
    """``CUlaunchAttribute``: its value is a union of 64 bytes."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


class _LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_LaunchAttribute)), ("count", ctypes.c_uint),
    ]  # fmt: skip


_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # of CUlaunchAttributeID


class Kernel:
    """One kernel function of one cubin, loaded on the current device."""

    def __init__(self, cubin: bytes, name: str) -> None:
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._shared = 0
        _check(driver().cuModuleLoadData(ctypes.byref(self._module), cubin), "cuModuleLoadData")
        found = driver().cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode())
        _check(found, f"cuModuleGetFunction({name})")

    def __call__(
        self, grid: tuple[int, int, int], threads: int, args: ctypes.Structure, shared: int = 0, waits: bool = False
    ) -> None:
        """Launches on torch's current stream; ``args`` is the kernel's only parameter, passed by value.

        ``shared`` is the kernel's dynamic shared memory in bytes. ``waits``: the kernel itself waits for the one before
        it in the stream (``wait_for_kernel_before``, compute capability 9.0 and above) before it touches what that one
        may use, so its blocks may start while that one ends. Raises RuntimeError when the launch fails.
        """
        if shared > self._shared:
            max_dynamic_shared_size_bytes = 8  # of CUfunction_attribute
            code = driver().cuFuncSetAttribute(self._function, max_dynamic_shared_size_bytes, shared)
            _check(code, f"asking for {shared} bytes of shared memory")
            self._shared = shared
        params = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if waits and environment.overlaps_launches() and torch.cuda.get_device_capability()[0] >= 9:
            attribute = _LaunchAttribute(_PROGRAMMATIC_STREAM_SERIALIZATION, b"", 1)
            config = _LaunchConfig(grid, (threads, 1, 1), shared, stream, ctypes.pointer(attribute), 1)
            launched = driver().cuLaunchKernelEx(ctypes.byref(config), self._function, params, None)
        else:
            launched = driver().cuLaunchKernel(self._function, *grid, threads, 1, 1, shared, stream, params, None)
        _check(launched, "launching a kernel")


TensorMap = ctypes.c_uint64 * 16
"""``CUtensorMap``: 128 bytes. As a kernel's parameter it lies at a multiple of 64 bytes (ssamba/tensor_map.cuh)."""


def make_tensor_map(
    address: int, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
) -> ctypes.Array[ctypes.c_uint64]:
    """The tensor map for bulk copies of boxes of an array of 16-bit values, of up to five dimensions.

    ``sizes`` and ``box`` begin with the innermost dimension, whose values are adjacent; ``strides`` are those of the
    others, in bytes. In shared memory a row of a box is at most 128 bytes, with the 128-byte swizzle; elements beyond
    the array are read as zeros. Raises RuntimeError when the driver refuses the sizes or the address.
    """
    rank = len(sizes)
    memory = ctypes.create_string_buffer(128 + 64)
    place = (ctypes.addressof(memory) + 63) // 64 * 64
    of_sizes, of_box = (ctypes.c_uint64 * rank)(*sizes), (ctypes.c_uint32 * rank)(*box)
    of_strides, steps = (ctypes.c_uint64 * (rank - 1))(*strides), (ctypes.c_uint32 * rank)(*[1] * rank)
    bfloat16, no_interleave, swizzle_128b, l2_promotion_256b = 9, 0, 3, 3
    made = driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(place), bfloat16, rank, ctypes.c_void_p(address), of_sizes, of_strides, of_box, steps,
        no_interleave, swizzle_128b, l2_promotion_256b, 0,
    )  # fmt: skip
    _check(made, f"describing an array of {' x '.join(map(str, reversed(sizes)))}")
    return TensorMap.from_buffer_copy(ctypes.string_at(place, 128))


def make_tensor_map_2d(matrix: Tensor, height: int, width: int) -> ctypes.Array[ctypes.c_uint64]:
    """The tensor map for bulk copies of ``height x width`` boxes of a contiguous matrix, as ``make_tensor_map``."""
    rows, columns = matrix.shape
    return make_tensor_map(matrix.data_ptr(), (columns, rows), (2 * columns,), (width, height))


def on(x: Tensor) -> Any:
    """A context in which the device of ``x`` is the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
