"""Compiles the CPU kernels on first use and keeps the machine code on disk where that is possible."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_lock = threading.Lock()


def sources() -> list[Path]:
    """The files that decide what the machine code does: the kernels, their helpers, and how they are launched."""
    ops = Path(__file__).parents[2]
    return sorted([*(ops / "mamba" / "cpu").glob("*.py"), ops / "jit" / "numba_simd.py", ops / "jit" / "openmp.py"])


def digest(paths: Iterable[Path]) -> int:
    """A number of 56 bits that changes with the contents of ``paths``.

    It is part of Numba's cache key: Numba's own looks at one file only and would miss a changed helper.
    """
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return int.from_bytes(found.digest()[:7], "big")


@lru_cache(maxsize=1)
def _version() -> int:
    return digest(sources())


class Kernel:
    """A compiled C function ``void(int64 table)``, as an address and as a Python callable."""

    def __init__(self, compiled: Any) -> None:
        self._keep = compiled
        self.address = int(compiled.address)
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self.address)  # releases the GIL while it runs


def _entry_points() -> dict[str, Callable[[int], Callable[[int], None]]]:
    from ssamba.ops.mamba.cpu.conv import conv_backward, conv_forward
    from ssamba.ops.mamba.cpu.scan_backward import scan_backward
    from ssamba.ops.mamba.cpu.scan_forward import scan_forward
    from ssamba.ops.mamba.cpu.tied_backward import tied_backward
    from ssamba.ops.mamba.cpu.tied_forward import tied_forward

    return {
        "scan_forward": scan_forward,
        "scan_backward": scan_backward,
        "tied_forward": tied_forward,
        "tied_backward": tied_backward,
        "conv_forward": conv_forward,
        "conv_backward": conv_backward,
    }


def compile_kernel(name: str) -> Kernel:
    """A new instance of the kernel, from Numba's cache where that holds it. Raises ImportError without Numba."""
    return Kernel(_compile(name))


def _compile(name: str) -> Any:
    from numba import cfunc, types

    entry = _entry_points()[name](_version())
    signature = types.void(types.int64)
    try:
        return cfunc(signature, cache=True, error_model="numpy")(entry)
    except (RuntimeError, OSError) as error:  # neither __pycache__ nor the user's cache directory can be written
        _log.info("the CPU kernels are compiled anew in every process: %s", error)
        return cfunc(signature, error_model="numpy")(entry)


_compiled: dict[str, Kernel] = {}


def loaded() -> bool:
    """Whether this process has loaded any kernel."""
    return bool(_compiled)


def kernel(name: str) -> Kernel:
    """The kernel, compiled at first use. Raises ImportError where Numba cannot be imported."""
    found = _compiled.get(name)
    if found is None:
        with _lock:
            found = _compiled.get(name)
            if found is None:
                found = _compiled[name] = compile_kernel(name)
    return found
