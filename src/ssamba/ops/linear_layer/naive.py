"""The products of linear layers in torch's own operators: the reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x (..., n), weight (m, n), bias (m,) -> (..., m)."""
    return F.linear(x, weight, bias)


def batched_linear(
    x_GTn: Tensor, weight_Gmn: Tensor, bias_Gm: Tensor | None = None, out_GTm: Tensor | None = None
) -> Tensor:
    """``linear`` of each x with its own weight and bias; written to ``out_GTm`` where it is given, in inference."""
    weight_Gnm = weight_Gmn.transpose(1, 2)
    if bias_Gm is None:
        return torch.bmm(x_GTn, weight_Gnm) if out_GTm is None else torch.bmm(x_GTn, weight_Gnm, out=out_GTm)
    made = torch.baddbmm(bias_Gm[:, None], x_GTn, weight_Gnm)
    return made if out_GTm is None else out_GTm.copy_(made)


def column_sums(x_Tm: Tensor) -> Tensor:
    """``x.sum(0)``: a bias's gradient."""
    return x_Tm.sum(0)
