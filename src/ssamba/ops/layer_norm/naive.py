"""Residual addition and layer normalisation in plain torch operators: the truth, and the fast form off the GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(
    x_BLd: Tensor, residual_BLd: Tensor | None = None, weight_d: Tensor | None = None, bias_d: Tensor | None = None, *,
    eps: float = 1e-5, residual_scale: float = 1.0, x_scale_B: Tensor | None = None,
    out_dtype: torch.dtype | None = None, inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``stream = residual_scale residual + x_scale x``; returns ``(LayerNorm(stream) weight + bias, stream)``.

    The stream has the residual's dtype (x's without one), the norm ``out_dtype`` (x's where it is None). ``inplace``
    allows the fast form to write over its inputs: this one never does.
    """
    out_dtype = out_dtype or x_BLd.dtype
    x_BLd = x_BLd if x_scale_B is None else x_BLd * x_scale_B.to(x_BLd.dtype)[:, None, None]
    if residual_BLd is not None:
        x_BLd = torch.add(x_BLd.to(residual_BLd.dtype), residual_BLd, alpha=residual_scale)
    normal_BLd = F.layer_norm(x_BLd, x_BLd.shape[-1:], weight_d, bias_d, eps)
    return normal_BLd.to(out_dtype), x_BLd


def two_gradients(
    residual_scale: float, x_scale: Tensor | None, x_dtype: torch.dtype, residual_dtype: torch.dtype | None
) -> bool:
    """Whether the gradient of the residual differs from that of x."""
    return residual_dtype is not None and (residual_scale != 1.0 or x_scale is not None or residual_dtype != x_dtype)
