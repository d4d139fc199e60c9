"""Machine code that Numba has made, loaded by later processes without Numba.

Importing Numba and its registries takes half a second, most of a new process's first pass, for 25 KB of machine code
that are on disk already. LLVM alone links them in a tenth of that. The code is what Numba keeps in its cache, bit for
bit, kept once more in ``kernel_cache``, where that has been tried (``SUPPORTED``); elsewhere there is Numba's cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from ssamba.ops.jit import kernel_cache

SUPPORTED = sys.platform.startswith("linux") and platform.machine() == "x86_64"
_log = logging.getLogger(__name__)

_GIL = """
declare i32 @PyGILState_Ensure()
declare void @PyGILState_Release(i32)

define void @numba_gil_ensure(ptr %state) {
  %held = call i32 @PyGILState_Ensure()
  store i32 %held, ptr %state
  ret void
}

define void @numba_gil_release(ptr %state) {
  %held = load i32, ptr %state
  call void @PyGILState_Release(i32 %held)
  ret void
}
"""
"""What Numba's own library holds of the symbols that a C callback without an exception may name."""
_KNOWN = {b"numba_gil_ensure", b"numba_gil_release"}


class MachineCode:
    """Loaded machine code: the address of its function ``symbol``."""

    def __init__(self, symbol: str, code: bytes) -> None:
        import llvmlite.binding as llvm

        if not code.startswith(b"\x7fELF"):  # LLVM ends the process at anything else
            raise ValueError("the machine code is no object file")
        machine = _target().create_target_machine(cpu=llvm.get_host_cpu_name(), jit=True)
        self._engine = llvm.create_mcjit_compiler(_gil(), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.address = int(self._engine.get_function_address(symbol))
        if self.address == 0:
            raise ValueError(f"the machine code has no function {symbol}")


@lru_cache(maxsize=1)
def _target() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(llvm.get_process_triple())


def _gil() -> Any:
    import llvmlite.binding as llvm

    # Before LLVM 17 a pointer says to what: Numba 0.61 has LLVM 15.
    text = _GIL if llvm.llvm_version_info >= (17,) else _GIL.replace("ptr ", "i32* ")
    return llvm.parse_assembly(text)


def key(name: str, version: int) -> str | None:
    """The key of a kernel's machine code, a sha256; None without Numba or where that is not ``SUPPORTED``.

    ``version`` says what the kernel is made from. All else that Numba's own key holds goes in: its version and those of
    what it imports, the processor, and its settings.
    """
    if not SUPPORTED or importlib.util.find_spec("numba") is None:
        return None
    try:
        parts = json.dumps([name, version, *_surroundings(), _settings()])
    except Exception as error:  # an installation without metadata, an LLVM that does not know the processor
        _log.debug("machine code is not kept: %s: %s", type(error).__name__, error)
        return None
    return hashlib.sha256(parts.encode()).hexdigest()


@lru_cache(maxsize=1)
def _surroundings() -> tuple[str, ...]:
    import llvmlite.binding as llvm

    versions = [importlib.metadata.version(package) for package in ("numba", "llvmlite")]
    processor = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return (*versions, np.__version__, str(sys.implementation.cache_tag), *processor)


def _settings() -> list[tuple[str, str]]:
    found = [pair for pair in os.environ.items() if pair[0].startswith("NUMBA_") and pair[0] != "NUMBA_CACHE_DIR"]
    return [*sorted(found), (".numba_config.yaml", str(os.path.exists(".numba_config.yaml")))]


def load(key: str | None) -> MachineCode | None:
    """The code kept under ``key``; None where there is none, or it cannot be loaded."""
    content = None if key is None else kernel_cache.load(key, kernel_cache.OBJECT)
    if content is None:
        return None
    symbol, _, code = content.partition(b"\n")
    try:
        return MachineCode(symbol.decode(), code)
    except Exception as error:  # LLVM's own; Numba compiles it then
        _log.debug("%s: machine code cannot be loaded: %s: %s", key, type(error).__name__, error)
        return None


def held(key: str | None) -> bool:
    """Whether there is code under ``key``."""
    return key is not None and kernel_cache.load(key, kernel_cache.OBJECT) is not None


def keep(key: str | None, compiled: Any) -> None:
    """Keeps the code of ``compiled``, Numba's C callback, where it needs nothing of Numba."""
    if key is None:
        return
    try:
        code = _code(compiled)
    except Exception as error:  # another Numba
        _log.debug("%s: no machine code to keep: %s: %s", key, type(error).__name__, error)
        return
    needs = set(re.findall(rb"\0((?:numba|NRT)_\w+)(?=\0)", code)) - _KNOWN
    if needs:
        _log.debug("%s: machine code is not kept: it needs %s", key, sorted(needs))
        return
    kernel_cache.store(key, compiled.native_name.encode() + b"\n" + code, kernel_cache.OBJECT)


def _code(compiled: Any) -> bytes:
    """What Numba has just made, or has in its own cache."""
    if compiled.cache_hits == 0:
        return bytes(compiled._library._get_compiled_object())
    cache, context = compiled._cache, compiled._targetdescr.target_context
    (_, kind, data), *_ = cache._cache_file.load(cache._index_key(compiled._sig, context.codegen()))
    if kind != "object":
        raise ValueError(f"Numba keeps {kind}")
    return bytes(data[0])
