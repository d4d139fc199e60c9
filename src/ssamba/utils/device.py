"""Devices and dtypes by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ssamba.utils.errors import ConfigError, SsambaError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """``auto`` is the first CUDA (or ROCm) device, else the CPU. Raises ``ConfigError`` for one that is not there."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device '{device}': give auto, cpu or cuda") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{device}': give auto, cpu or cuda")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{device}': no CUDA device is visible here, give cpu or auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device '{device}': there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return chosen


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 on a GPU that has it, else fp32. Raises ``ConfigError`` for other names."""
    if dtype == "auto":
        able = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if able else torch.float32
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ConfigError(f"dtype '{dtype}': give auto, {', '.join(DTYPES)}")
    assert found is not None
    return found


def dtype_name(dtype: torch.dtype | str) -> str:
    """The name by which ``pick_dtype`` takes a dtype, given as torch has it or as ``float32``."""
    full = str(dtype).removeprefix("torch.")
    return next((name for name, known in DTYPES.items() if str(known) == f"torch.{full}"), full)


@contextlib.contextmanager
def device_memory(fix: str) -> Iterator[None]:
    """One line where the block takes more memory than the device has; ``fix`` is what to give instead."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise SsambaError(f"the device's memory does not suffice: give {fix}") from None
