"""What a weight may be: a dense tensor of floating-point numbers that a trained model can have.

A damaged bit, a diverged training or a file of another kind gives NaN, 1e30 or whole numbers. A model computes on with
them and returns nonsense, so they are refused when a file is read, wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssamba.utils.errors import CheckpointError
from ssamba.utils.terminal import shorten

LARGEST_WEIGHT = 1e6
"""Bound on the absolute value of a weight. Those of trained models stay below 100 (of ``tiny`` below 8); an official
file of a model with ``residual_scale`` 1 has them times 4096."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = ("p_input_fdim", "p_input_tdim")
"""Last part of the names of tensors that hold whole numbers: the sizes in an official file."""
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_tensors(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Refuse tensors that no model has: of another kind or type, NaN, infinite or absurdly large.

    Reads each value once: 0.05 s for the 98 M parameters of ``base``. Raises ``CheckpointError`` that names ``path``
    and the first tensor.
    """
    for name, tensor in tensors.items():
        reason = _wrong_kind(name, tensor) or _wrong_value(tensor)
        if reason:
            raise CheckpointError(f"{path}: {shorten(name)} {reason}")


def check_type(name: str, dtype: torch.dtype, path: Path | str) -> None:
    """Refuse a type that a tensor of this name cannot have. Raises ``CheckpointError`` that names ``path``."""
    allowed = (*FLOATS, *_INTEGERS) if name.rpartition(".")[2] in WHOLE else FLOATS
    if dtype not in allowed:
        raise CheckpointError(f"{path}: {shorten(name)} {_type_reason(dtype)}")


def check_memory(tensors: Mapping[str, Tensor], size: int, path: Path | str) -> None:
    """Refuse tensors that together take far more memory than the ``size`` bytes of their file.

    Views that repeat few values (``expand``) and tensors that share memory would be written out when they are copied.
    """
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > 2 * size + (1 << 20):
        raise CheckpointError(
            f"{path}: has {size:,} bytes and its tensors would take {total:,}: they repeat values; save each as a copy "
            "(tensor.clone())"
        )


def _wrong_kind(name: str, tensor: Tensor) -> str:
    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else "quantised" if tensor.is_quantized else "sparse"
        return f"is a {kind} tensor: save it dense, in float32"
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device.type!r}, without values: save the model after its weights are loaded"
    whole = name.rpartition(".")[2] in WHOLE
    if tensor.dtype not in ((*FLOATS, *_INTEGERS) if whole else FLOATS):
        return _type_reason(tensor.dtype)
    return ""


def _type_reason(dtype: torch.dtype) -> str:
    return f"holds {str(dtype).removeprefix('torch.')} numbers: save it in float32, float16 or bfloat16"


def _wrong_value(tensor: Tensor) -> str:
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    low, high = (value.item() for value in torch.aminmax(tensor.detach()))
    if low >= -LARGEST_WEIGHT and high <= LARGEST_WEIGHT:  # neither holds of NaN
        return ""
    if low != low:
        return "holds NaN: the file is damaged or the training diverged, take an earlier copy"
    worst = low if -low > high else high
    return (
        f"holds {worst:.3g}, beyond {LARGEST_WEIGHT:.0e}, which no trained model has: the file is damaged or the "
        "training diverged, take an earlier copy"
    )
