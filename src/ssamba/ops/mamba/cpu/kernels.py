"""Compiles the CPU kernels on first use and keeps the machine code on disk where that is possible."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_lock = threading.Lock()


def sources() -> list[Path]:
    """The files that decide what the machine code does: the kernels, their helpers, how they load and launch."""
    ops = Path(__file__).parents[2]
    helpers = (ops / "jit" / f"{name}.py" for name in ("machine_code", "numba_simd", "openmp"))
    return sorted([*(ops / "mamba" / "cpu").glob("*.py"), *helpers])


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


MODULES = {
    "scan_forward": "scan_forward",
    "scan_backward": "scan_backward",
    "tied_forward": "tied_forward",
    "tied_backward": "tied_backward",
    "conv_forward": "conv",
    "conv_backward": "conv",
}
"""The module of each kernel; importing one imports Numba."""


def check() -> None:
    """Raises what importing Numba raises, where no kernel's machine code is kept: else it may not be needed."""
    from ssamba.ops.jit import machine_code

    if not any(machine_code.held(machine_code.key(name, _version())) for name in MODULES):
        importlib.import_module("numba")


def compile_kernel(name: str) -> Kernel:
    """A new instance of the kernel, from a cache where one holds it. Raises ImportError without Numba."""
    from ssamba.ops.jit import machine_code

    key = machine_code.key(name, _version())
    kept = machine_code.load(key)
    if kept is not None:
        return Kernel(kept)
    compiled = _compile(name)
    machine_code.keep(key, compiled)
    return Kernel(compiled)


def entry_point(name: str, version: int) -> Callable[[int], None]:
    """The Python function that a kernel is compiled from. Raises ImportError without Numba."""
    make: Callable[[int], Callable[[int], None]] = getattr(
        importlib.import_module(f"{__package__}.{MODULES[name]}"), name
    )
    return make(version)


def _compile(name: str) -> Any:
    from numba import cfunc, types

    entry = entry_point(name, _version())
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
