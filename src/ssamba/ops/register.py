"""Custom operators of torch whose first call does not import torch's compiler.

The kernel that ``torch.library.custom_op`` registers imports ``torch._dynamo`` when it first runs, to be left alone by
``torch.compile``: 870 modules, sympy among them, which take one to five seconds of a process that compiles nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

DEVICES = ("cpu", "cuda")
"""Where the operators have kernels: the GPU's run on the CPU too, in Triton's interpreter."""


def define_operator(
    name: str, *, mutates_args: tuple[str, ...] = (), schema: str | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: ``torch.library.custom_op``, with its own kernels for ``DEVICES``.

    All else is that function's: what ``torch.compile``, ``torch.export`` and autograd see, and what is returned. Its
    check that no result shares memory with an argument is ``torch.library.opcheck``'s alone.
    """

    def define(run: Callable[..., Any]) -> Any:
        operator = torch.library.custom_op(name, run, mutates_args=mutates_args, schema=schema)
        torch.library.impl(name, DEVICES, untraced(run))
        return operator

    return define


def untraced(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` as an operator's kernel, which torch's compiler leaves alone where it has been imported.

    It would look into kernels that run in a function which it has given up on.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(run)
    def kernel(*arguments: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return run(*arguments)
        if not disabled:
            disabled.append(torch.compiler.disable(run))
        return disabled[0](*arguments)

    return kernel
