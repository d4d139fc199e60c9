"""Adapter: the CUDA units that the published sizes launch, and their machine code. No other guard knows internals.

``python tests/guards/cuda_units.py list`` prints the units as JSON, ``... compile`` their cubins' digests as well, for
sm_80 and sm_90a. It runs in a process of its own: Triton's interpreter is on, and private functions are replaced. NVRTC
comes from the package nvidia-cuda-nvrtc and needs no GPU.

When the sources move, adapt ``visit`` and ``compile_unit``: how units are visited and compiled. The digests must stay.

A unit is one kernel with one set of macros. Two digests are kept of its cubin:
- ``cubin``, of the whole file. It holds the kernel's entry name (in symbols and section names), so a renamed
  ``extern "C"`` entry changes it.
- ``code``, of the instructions and of the tables that belong to them (sections ``.text.*``, ``.nv.constant*``,
  ``.nv.info.*``, ``.nv.shared.*`` by size), without names: that stays when an entry is renamed.

Tried with NVRTC 13.5 (13.5.37) on conv_backward, gated_output, scan_fragments and scan_forward, for both architectures.
The cubin is equal to the byte when all inlined ``__device__`` functions or all structs get other names, when lines and
comments are added, when the file gets another name or folder, and when macros come as ``-D`` options instead of lines.
Another name of the entry changes the file and leaves ``code`` as it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ARCHITECTURES = {"sm_80": (8, 0), "sm_90a": (9, 0)}
HOPPER_ONLY = ("gated_output_sm90.cu", "conv_projection_bulk.cu")  # have wgmma or bulk copies
KEPT_SECTIONS = (".text.", ".nv.constant", ".nv.info.", ".nv.shared.")
OPS_TESTS = Path(__file__).parents[1] / "ops"


def nvrtc_folder() -> Path | None:
    """The folder of NVRTC's libraries, None where the package is not installed."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((Path(p) / "cu13" / "lib" for p in places if (Path(p) / "cu13" / "lib").is_dir()), None)


def visit() -> list[tuple[str, Any, tuple[str, ...]]]:
    """(name, ``nvrtc.Unit``, macros) of each unit, once each."""
    os.environ["TRITON_INTERPRET"] = "1"  # here alone: tests on a GPU import this module, too
    sys.path.insert(0, str(OPS_TESTS))
    import nvrtc_compile

    units: dict[tuple[str, tuple[str, ...]], Any] = {}
    nvrtc_compile.visit_units(lambda unit, name, defines: units.setdefault((name, defines), unit), every_case=True)
    return [(name, unit, defines) for (name, defines), unit in sorted(units.items(), key=lambda item: item[0])]


def compile_unit(unit: Any, defines: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    """The cubin, compiled as the package compiles it."""
    from ssamba.ops.jit import nvrtc

    return nvrtc.compile_unit(unit, defines, capability)


def code_digest(cubin: bytes) -> str:
    """SHA-256 of a cubin's instructions and launch tables, without the names in it."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * entry_size) for i in range(count)]
    strings = headers[names_at][4]
    digest = hashlib.sha256()
    for name_at, kind, _, _, offset, size, *_ in headers:
        name = cubin[strings + name_at : cubin.index(b"\0", strings + name_at)].decode()
        kept = next((k for k in KEPT_SECTIONS if name.startswith(k)), None)
        if kept is None:
            continue
        no_bits = kind == 8  # shared memory: a size without contents
        digest.update(f"{kept} {size}\n".encode() + (b"" if no_bits else cubin[offset : offset + size]))
    return digest.hexdigest()


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def _cubin(call: tuple[dict[str, Any], str, Any, tuple[str, ...]]) -> bytes:
    _, arch, source, defines = call
    return compile_unit(source, defines, ARCHITECTURES[arch])


def snapshot(compile_too: bool) -> dict[str, Any]:
    """All units: ``"name MACRO=1 ..."`` -> digests. Compiling takes minutes."""
    units: dict[str, Any] = {}
    result: dict[str, Any] = {"units": units}
    calls: list[tuple[dict[str, Any], str, Any, tuple[str, ...]]] = []
    if compile_too:
        if nvrtc_folder() is None:
            raise SystemExit("nvidia-cuda-nvrtc is not installed; where it has a wheel, '.[dev]' brings it")
        from ssamba.ops.jit import nvrtc

        build = importlib.metadata.version("nvidia-cuda-nvrtc")
        result["nvrtc"] = f"{nvrtc.version()} ({build})"
    for name, source, defines in visit():
        text = "".join(f"#define {d.replace('=', ' ', 1)}\n" for d in defines)
        text += source.source + "".join(part for header in source.headers for part in header)
        unit: dict[str, Any] = {"source": sha256(text.encode())}
        units[" ".join((name, *defines))] = unit
        for arch in ARCHITECTURES if compile_too else ():
            if arch == "sm_90a" or source.path.name not in HOPPER_ONLY:
                calls.append((unit, arch, source, defines))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (unit, arch, *_), cubin in zip(calls, pool.map(_cubin, calls), strict=True):
            unit[arch] = {"bytes": len(cubin), "cubin": sha256(cubin), "code": code_digest(cubin)}
    return result


if __name__ == "__main__":
    print(json.dumps(snapshot(sys.argv[1] == "compile")))
