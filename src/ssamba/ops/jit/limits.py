"""Limits of a GPU that Triton and CUDA C++ kernels both have to keep."""

from __future__ import annotations

import torch

SHARED_LIMIT = 48 * 1024
"""Bytes of shared memory that a block has without asking."""


def dynamic_limit(device: int) -> int:
    """Shared memory that one block may ask for, in bytes."""
    found = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return int(found) or SHARED_LIMIT
