"""What a GPU's forms of an input product and its folded weights take; asking imports no kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ssamba.ops import derivatives, environment

MIN_VALUES = 1 << 22
"""Values of the product below which torch's sum of columns is as fast."""


def supports(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """None, or why ``ssamba.ops.mamba.gpu_input.linear`` is not for these tensors."""
    if bias is None or not derivatives.wants_gradient(bias):
        return "only a bias's gradient has a form of its own"
    if not x.is_cuda and not environment.interprets_triton():
        return "the tensors are not on a GPU"
    device = x.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if any(t.dtype != kind for t in (x, weight, bias)) or kind == torch.float64:
        return "torch converts the tensors"
    if x.numel() // max(1, x.shape[-1]) * weight.shape[0] < MIN_VALUES:
        return "the product is small"
    return None


def supports_fold(in_proj: Tensor, *of_norm: Tensor) -> str | None:
    """None, or why ``ssamba.ops.mamba.gpu_input.fold_norm`` is not for these tensors."""
    if not in_proj.is_cuda and not environment.interprets_triton():
        return "the tensors are not on a GPU"
    if not derivatives.wants_gradient(in_proj, *of_norm):
        return "the GPU's form is for training"
    return "float64 is computed by the reference form only" if in_proj.dtype == torch.float64 else None
