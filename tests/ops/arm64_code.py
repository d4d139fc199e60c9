"""Compiles CPU kernels for arm64 processors on any machine, and prints what their machine code is made of.

    NUMBA_OPT=0 python tests/ops/arm64_code.py KERNEL CPU ...

Prints a JSON list with one entry for each pair: ``kernel``, ``cpu``, ``machine`` (of the ELF file), ``multiply_adds``
(of sixteen lanes, in LLVM's optimised form), ``instructions`` (counts by name and by the form of their first operand),
``loop`` (see ``longest_loop``) and ``calls`` (names of functions). With NUMBA_OPT=0 Numba leaves its module as it was
written, and LLVM optimises it here for the given processor. It is a process of its own, because LLVM ends it where it
cannot select an instruction.
"""

from __future__ import annotations

import collections
import json
import os
import re
import struct
import sys
from typing import Any

import llvmlite.binding as llvm
from numba import cfunc, types

from ssamba.ops.mamba.cpu import kernels

TRIPLE = "aarch64-unknown-linux-gnu"
_FORMS = {"vector": re.compile(r"[vz]\d+\."), "quad": re.compile(r"q\d+"), "scalar": re.compile(r"[shd]\d+")}
"""How an instruction's first operand begins: lanes of a register, a whole one, one number."""


def written(kernel: str) -> str:
    """LLVM's form of a kernel with all that it calls, without optimisation for this machine."""
    compiled = cfunc(types.void(types.int64), error_model="numpy")(kernels.entry_point(kernel, 0))
    text = re.sub(r"^target (triple|datalayout) = .*\n", "", compiled.inspect_llvm(), flags=re.MULTILINE)
    return f'target triple = "{TRIPLE}"\n{text}'


def instructions(assembly: str) -> collections.Counter[str]:
    """How often each instruction occurs, as ``fmla vector``, ``fmadd scalar``, ``ldr quad``, ``add``."""
    found: collections.Counter[str] = collections.Counter()
    for name, operand in re.findall(r"^\t([a-z][\w.]*)[ \t]*(\S*)", assembly, re.MULTILINE):
        form = next((f" {form}" for form, pattern in _FORMS.items() if pattern.match(operand)), "")
        found[name.partition(".")[0] + form] += 1
    return found


def longest_loop(assembly: str) -> dict[str, int]:
    """The longest loop without branches: its instructions, and its vector loads and stores of the stack."""
    pieces = re.split(r"^(\.L\w+):", assembly, flags=re.MULTILINE)
    found = {"instructions": 0, "stack_loads": 0, "stack_stores": 0}
    for label, code in zip(pieces[1::2], pieces[2::2], strict=True):
        back = re.search(rf"^\t(?:b\.|cb|tb)\w+\t.*{re.escape(label)}$", code, re.MULTILINE)
        loop = code[: back.end()] if back else ""
        count = len(re.findall(r"^\t[a-z]", loop, re.MULTILINE))
        if count > found["instructions"]:
            loads, stores = (
                len(re.findall(rf"^\t(?:{names})\tq.*\[sp\b", loop, re.MULTILINE)) for names in ("ldr|ldp", "str|stp")
            )
            found = {"instructions": count, "stack_loads": loads, "stack_stores": stores}
    return found


def describe(kernel: str, text: str, cpu: str) -> dict[str, Any]:
    """One entry of the list."""
    module = llvm.parse_assembly(text)
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=cpu, opt=3, reloc="pic")
    module.data_layout = str(machine.target_data)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    assembly = machine.emit_assembly(module)
    (elf_machine,) = struct.unpack_from("<H", machine.emit_object(module), 18)
    return {
        "kernel": kernel,
        "cpu": cpu,
        "machine": elf_machine,
        "multiply_adds": len(re.findall(r"call .*@llvm\.fmuladd\.v16f32", str(module))),
        "instructions": dict(instructions(assembly)),
        "loop": longest_loop(assembly),
        "calls": sorted(set(re.findall(r"^\tbl?\t([A-Za-z_]\S*)", assembly, re.MULTILINE))),
    }


def main() -> None:
    if os.environ.get("NUMBA_OPT") != "0":
        sys.exit("set NUMBA_OPT=0: otherwise Numba optimises for this machine first")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    texts = {kernel: written(kernel) for kernel, _ in pairs}
    print(json.dumps([describe(kernel, texts[kernel], cpu) for kernel, cpu in pairs]))


if __name__ == "__main__":
    main()
