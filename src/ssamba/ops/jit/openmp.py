"""Runs a kernel on as many threads as torch uses, on torch's own OpenMP workers where they can be reached."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ssamba.utils.threads import InterruptsHeld

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


@lru_cache(maxsize=1)
def openmp_parallel() -> Any | None:
    """libgomp's ``GOMP_parallel`` as torch itself has loaded it, or None (macOS, Windows, other OpenMP libraries)."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        function = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint]
    return function


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="ssamba")


def thread_count(tasks: int) -> int:
    """Threads for that many tasks. A forked child has none of its parent's workers, so it works alone."""
    return 1 if _forked else max(1, min(torch.get_num_threads(), tasks))


def run(kernel: Any, table: int, threads: int) -> None:
    """Calls the kernel once on each thread with the address of its argument table."""
    if threads == 1:
        kernel.call(table)
        return
    parallel = openmp_parallel()
    if parallel is not None:
        parallel(kernel.address, table, threads, 0)
        return
    with InterruptsHeld():  # until all are done: they write to the caller's memory
        waiting = [_pool().submit(kernel.call, table) for _ in range(threads - 1)]
        kernel.call(table)
        for future in waiting:
            future.result()
