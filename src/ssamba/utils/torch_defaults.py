"""Where new tensors live: independent of ``torch.set_default_dtype`` and ``torch.set_default_device``.

Both hold for a whole process, so a program that uses this package may have set them for its own needs. Everything made
here names its device, and its dtype where that would be the default one (``tests/test_torch_defaults.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

HOST_FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""Of a factory of torch: ``torch.zeros(3, **HOST_FLOAT32)``."""

_weights_dtype: ContextVar[torch.dtype] = ContextVar("_weights_dtype", default=torch.float32)


@contextmanager
def weights_in(dtype: torch.dtype) -> Iterator[None]:
    """New weights of models made in the block have that dtype."""
    token = _weights_dtype.set(dtype)
    try:
        yield
    finally:
        _weights_dtype.reset(token)


def of_new_weights() -> dict[str, Any]:
    """dtype and device of a model's new weights: float32, on the CPU or where a ``with torch.device(...)`` says.

    Such a block says it of the code in it, as ``with torch.device("meta")`` does; a process's default does not.
    """
    default = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    modes = [m for m in _get_current_function_mode_stack() if isinstance(m, DeviceContext) and m is not default]
    return {"dtype": _weights_dtype.get(), "device": modes[-1].device if modes else "cpu"}
