"""A pair's input product on a GPU in training: the norm folded into its weights, and its bias's gradient.

torch's own sum of 32,768 rows of 1,536 bfloat16 numbers, that gradient, takes twice as long on an H100 as reading them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops import derivatives, dispatch
from ssamba.ops.linear_layer import gpu as gpu_linear
from ssamba.ops.linear_layer import gpu_limits
from ssamba.ops.mamba import naive
from ssamba.ops.register import define_operator

# ---- the norm's scale and shift folded into the input product


def fold_norm(in_proj_hKEd: Tensor, norm_weight_Kd: Tensor, norm_bias_Kd: Tensor) -> tuple[Tensor, Tensor]:
    """``naive.fold_norm`` in one launch and its backward in another, in the dtype that autocast's products take."""
    device = in_proj_hKEd.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else in_proj_hKEd.dtype
    return _fold(in_proj_hKEd, norm_weight_Kd, norm_bias_Kd, dtype)


@define_operator("ssamba::gpu_fold_norm")
def _fold(in_proj: Tensor, norm_weight: Tensor, norm_bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight, bias = (in_proj.new_empty(shape, dtype=dtype) for shape in (in_proj.shape, in_proj.shape[:-1]))
    scale, shift = norm_weight.contiguous(), norm_bias.contiguous()
    arguments: tuple[Any, ...] = in_proj.contiguous(), scale, shift, weight, bias, (), ()
    dispatch.small_kernels("prepare", *arguments).prepare(*arguments)
    return weight, bias


@define_operator("ssamba::gpu_fold_norm_backward")
def _fold_backward(
    dweight: Tensor, dbias: Tensor, in_proj: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = dispatch.small_kernels("fold_backward")
    return kernels.fold_backward(dweight, *(t.contiguous() for t in (dbias, in_proj, norm_weight, norm_bias)))


@_fold.register_fake
def _(in_proj: Tensor, norm_weight: Tensor, norm_bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return in_proj.new_empty(in_proj.shape, dtype=dtype), in_proj.new_empty(in_proj.shape[:-1], dtype=dtype)


@_fold_backward.register_fake
def _(dweight: Tensor, dbias: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in tensors)


def _plain_fold(in_proj: Tensor, norm_weight: Tensor, norm_bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight, bias = naive.fold_norm(in_proj.float(), norm_weight.float(), norm_bias.float())
    return weight.to(dtype), bias.to(dtype)


def _plain_fold_backward(dweight: Tensor, dbias: Tensor, *tensors: Tensor) -> list[Tensor | None]:
    return derivatives.gradient(_plain_fold, (*tensors, dweight.dtype), [dweight, dbias])[:-1]


def _save_fold(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dtype = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_fold(ctx: Any, dweight: Tensor, dbias: Tensor) -> Any:
    if derivatives.in_forward_mode():
        inputs = [*ctx.saved_tensors, ctx.dtype]
        return tuple(derivatives.gradient(_plain_fold, inputs, [dweight, dbias], required_only=True))
    return (*_fold_backward(dweight, dbias, *ctx.saved_tensors), None)


_fold.register_autograd(_differentiate_fold, setup_context=_save_fold)
_save_all, _differentiate_plain = derivatives.gradient_of_plain(_plain_fold_backward)
_fold_backward.register_autograd(_differentiate_plain, setup_context=_save_all)
for _operator in (_fold, _fold_backward):
    _operator.register_vmap(derivatives.one_by_one(_operator))


# ---- the product


@define_operator("ssamba::gpu_column_sums")
def column_sums(x: Tensor) -> Tensor:
    """``linear_layer.naive.column_sums``: (T, m) -> (m,)."""
    return dispatch.small_kernels("column_sums").column_sums(x.contiguous())


@column_sums.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1:])


def _save_sizes(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.sizes = inputs[0].shape


def _differentiate_sums(ctx: Any, d: Tensor) -> Tensor:
    return d.expand(ctx.sizes)


column_sums.register_autograd(_differentiate_sums, setup_context=_save_sizes)
column_sums.register_vmap(derivatives.one_by_one(column_sums))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if derivatives.beyond_backward() or gpu_limits.supports_product(x, weight, bias) is not None:
        return F.linear(x, weight, bias)
    return gpu_linear.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """The gradients are what torch's own are, but for the sum and float32's products, and have gradients in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        dy_Tm, x_Tn = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            dx = _product(dy_Tm, weight.t()).view(x.shape) if wants_x else None
            dweight = _weight_gradient(dy_Tm, x_Tn) if wants_weight else None
            total = _bias_gradient(dy_Tm) if wants_bias else None
        return dx, dweight, total


def _weight_gradient(dy_Tm: Tensor, x_Tn: Tensor) -> Tensor:
    if derivatives.beyond_backward() or gpu_limits.supports_product(dy_Tm.t(), x_Tn.t()) is not None:
        return (x_Tn.t() @ dy_Tm).t()
    return gpu_linear.linear(dy_Tm.t(), x_Tn.t())


def _bias_gradient(dy_Tm: Tensor) -> Tensor:
    return dy_Tm.sum(0) if derivatives.in_forward_mode() else column_sums(dy_Tm)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear_layer.naive.linear`` of what ``ssamba.ops.linear_layer.gpu_limits`` takes."""
    if derivatives.wants_gradient(x, weight, bias):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)
