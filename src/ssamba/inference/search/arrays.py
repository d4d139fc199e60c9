"""The kinds of arrays that an index is made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
"""Vectors on disk."""
CountArray = npt.NDArray[np.int64]
