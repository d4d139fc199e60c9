"""A kernel's argument described once: the C struct for the compiler and the ctypes structure for the launch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_SCALARS: dict[str, type] = {"int": ctypes.c_int, "long long": ctypes.c_longlong, "float": ctypes.c_float}


class CStruct(NamedTuple):
    """Both forms of one struct. They have the same fields in the same order."""

    ctype: type[ctypes.Structure]
    """The class whose instances are passed to the kernel."""
    header: str
    """C++ source that defines the struct."""


def c_struct(
    name: str,
    fields: Sequence[tuple[str, str]],
    includes: Sequence[str] = (),
    types: Mapping[str, Any] | None = None,
    alignment: int = 1,
) -> CStruct:
    """Both forms of ``struct name``.

    ``fields``: pairs of a C type and the names of it, apart by spaces, in the struct's order: ``("const T *", "x z")``.
    A type that ends in ``*`` is an address; ``int``, ``long long`` and ``float`` are themselves; any other must be in
    ``types``, as a ctypes type of the same size. ``includes``: headers that define the types. ``alignment``: that of
    the C struct in bytes, where a type asks for more than ctypes knows; the ctypes structure is then as long as the C
    struct, padding included, since a launch reads all of it. Raises KeyError for a type that is none of these,
    ValueError for a name that occurs twice.
    """
    known = {**_SCALARS, **(types or {})}
    members = [(n, ctypes.c_void_p if t.endswith("*") else known[t]) for t, names in fields for n in names.split()]
    if len({n for n, _ in members}) != len(members):
        raise ValueError(f"struct {name} has two fields of one name")
    lines = [f"// Generated from the fields of {name} in Python; see c_struct.", "#pragma once"]
    lines += [f'#include "{path}"' for path in includes]
    lines.append(f"struct {name} {{")
    for type_, names in fields:
        if type_.endswith("*"):
            lines.append(f"  {type_[:-1].strip()} {', '.join('*' + n for n in names.split())};")
        else:
            lines.append(f"  {type_} {', '.join(names.split())};")
    lines.append("};\n")
    plain = type(name, (ctypes.Structure,), {"_fields_": members})
    padding = -ctypes.sizeof(plain) % alignment
    if padding:
        plain = type(name, (ctypes.Structure,), {"_fields_": [*members, ("_padding", ctypes.c_char * padding)]})
    return CStruct(plain, "\n".join(lines))
