"""Makes Triton's interpreter take NumPy's arrays. Imported after TRITON_INTERPRET is set."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
from triton.runtime import interpreter


class _Int(type):
    """Triton 3.6's interpreter calls int() on arrays of one element, which NumPy 2.4 refuses."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, builtins.int)

    def __call__(cls, value: Any = 0, *rest: Any) -> int:
        return builtins.int(value.item() if isinstance(value, np.ndarray) else value, *rest)


interpreter.int = _Int("int", (), {})
