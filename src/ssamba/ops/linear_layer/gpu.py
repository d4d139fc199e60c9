"""Float32 products on a GPU as a torch operator, over Triton's kernels, which are imported when it runs.

``gpu_limits.supports_product`` says when.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssamba.ops import derivatives, dispatch
from ssamba.ops.linear_layer import gpu_limits
from ssamba.ops.register import define_operator


@define_operator("ssamba::gpu_product")
def product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """``a b^T + bias`` of float32 matrices (G, M, k) and (G, N, k) with any strides and (G, N) -> (G, M, N)."""
    return dispatch.small_kernels("product").product(a, b, bias)


@product.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(*a.shape[:2], b.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    wants_a, wants_b, wants_bias = ctx.needs_input_grad
    with torch.autocast(a.device.type, enabled=False):
        if derivatives.in_forward_mode():
            da, db = dy @ b, dy.mT @ a
        else:
            da = product(dy, b.mT, None) if wants_a else None
            long = gpu_limits.too_long(a.shape[2], a.shape[1])
            db = None if not wants_b else dy.mT @ a if long else product(dy.mT, a.mT, None)
        return da, db, dy.sum(1) if wants_bias else None


product.register_autograd(_differentiate, setup_context=_save)
product.register_vmap(derivatives.one_by_one(product))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``naive.linear`` of float32 tensors that ``gpu_limits.supports_product`` takes."""
    x_Tn = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y_xTm = product(x_Tn[None], weight[None], None if bias is None else bias[None])
    return y_xTm.view(*x.shape[:-1], weight.shape[0])


def batched_linear(x_GTn: Tensor, weight_Gmn: Tensor, bias_Gm: Tensor | None = None) -> Tensor:
    """``naive.batched_linear`` of tensors that ``gpu_limits.supports_batch`` takes."""
    return product(x_GTn, weight_Gmn, bias_Gm)
