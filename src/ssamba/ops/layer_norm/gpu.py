"""Residual addition and layer normalisation on a GPU as torch custom ops, over the Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.layer_norm import triton as kernels


def add_layer_norm(
    x_BLd: Tensor, residual_BLd: Tensor | None = None, weight_d: Tensor | None = None, bias_d: Tensor | None = None, *,
    eps: float = 1e-5, residual_scale: float = 1.0, x_scale_B: Tensor | None = None,
    out_dtype: torch.dtype | None = None, inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``naive.add_layer_norm`` in one pass; statistics and arithmetic are float32.

    ``residual_scale`` 2 makes the doubling of the residual stream at a pair's end part of the next pair's addition.
    ``x_scale_B`` is one factor for each clip (stochastic depth), taken as constant. Give ``weight`` and ``bias``
    together or not at all. ``inplace`` allows the stream over the residual (without one, x becomes the stream) and the
    norm over x, where no gradient is asked for and the norm has x's dtype.
    """
    if (weight_d is None) != (bias_d is None):
        raise ValueError("add_layer_norm needs weight and bias together, or neither")
    plain = x_scale_B is None and weight_d is None and out_dtype in (None, x_BLd.dtype)
    if inplace and plain and not torch.is_grad_enabled():
        if residual_BLd is None:
            contiguous = x_BLd.is_contiguous()
            return layer_norm(x_BLd, eps) if contiguous else F.layer_norm(x_BLd, x_BLd.shape[-1:], eps=eps), x_BLd
        if x_BLd.is_contiguous() and residual_BLd.is_contiguous():
            add_layer_norm_(x_BLd, residual_BLd, eps, residual_scale)
            return x_BLd, residual_BLd
    out, stream, _, _ = _gpu_add_layer_norm(
        x_BLd, residual_BLd, weight_d, bias_d, x_scale_B, eps, residual_scale, out_dtype or x_BLd.dtype
    )
    return out, stream


@torch.library.custom_op("ssamba::gpu_add_layer_norm", mutates_args=())
def _gpu_add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, x_scale: Tensor | None, eps: float,
    residual_scale: float, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return kernels.forward(x, residual, x_scale, weight, bias, eps, residual_scale, out_dtype)


@torch.library.custom_op("ssamba::gpu_add_layer_norm_", mutates_args=("x", "residual"))
def add_layer_norm_(x: Tensor, residual: Tensor, eps: float, residual_scale: float) -> None:
    """``residual = residual_scale residual + x`` and ``x = LayerNorm(residual)``, in place, without gradients."""
    kernels.forward(x, residual, None, None, None, eps, residual_scale, x.dtype, in_place=True)


@add_layer_norm_.register_fake
def _(x: Tensor, residual: Tensor, eps: float, residual_scale: float) -> None:
    return None


@torch.library.custom_op("ssamba::gpu_layer_norm", mutates_args=())
def layer_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm of contiguous x without weights or gradients."""
    return kernels.normalise(x.flatten(0, -2), eps, x.dtype).view(x.shape)


@layer_norm.register_fake
def _(x: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("ssamba::gpu_add_layer_norm_backward", mutates_args=())
def _gpu_add_layer_norm_backward(
    dout: Tensor, dnew: Tensor | None, saved: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor,
    x_scale: Tensor | None, residual_scale: float, x_dtype: torch.dtype, residual_dtype: torch.dtype | None,
) -> list[Tensor]:  # fmt: skip
    # One tensor where the gradients of x and residual are equal: an op may not return the same tensor twice.
    dx, dres, dw, db = kernels.backward(
        dout, dnew, saved, weight, mean, rstd, x_scale, residual_scale, x_dtype, residual_dtype
    )
    found = [dx] if dres is None or dres is dx else [dx, dres]
    return found if dw is None or db is None else [*found, dw, db]


@_gpu_add_layer_norm.register_fake
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, x_scale: Tensor | None, eps: float,
    residual_scale: float, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    new = x.new_empty(x.shape) if residual is None else residual.new_empty(residual.shape)
    mean = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return x.new_empty(x.shape, dtype=out_dtype), new, mean, torch.empty_like(mean)


@_gpu_add_layer_norm_backward.register_fake
def _(
    dout: Tensor, dnew: Tensor | None, saved: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor,
    x_scale: Tensor | None, residual_scale: float, x_dtype: torch.dtype, residual_dtype: torch.dtype | None,
) -> list[Tensor]:  # fmt: skip
    found = [saved.new_empty(saved.shape, dtype=x_dtype)]
    if kernels.two_gradients(residual_scale, x_scale, x_dtype, residual_dtype):
        assert residual_dtype is not None
        found.append(saved.new_empty(saved.shape, dtype=residual_dtype))
    return found if weight is None else [*found, torch.empty_like(weight), torch.empty_like(weight)]


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _bias, x_scale, _eps, residual_scale, _ = inputs
    out, new, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.residual_scale, ctx.x_dtype = residual_scale, x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    # Without an affine map the output is all that is needed, and the matrix product after it keeps it anyway.
    ctx.save_for_backward(out if weight is None else new, weight, mean, rstd, x_scale)


def _differentiate_norm(ctx: Any, dout: Tensor | None, dnew: Tensor | None, *_: Any) -> Any:
    saved, weight, mean, rstd, x_scale = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(saved)
    found = _gpu_add_layer_norm_backward(
        dout, dnew, saved, weight, mean, rstd, x_scale, ctx.residual_scale, ctx.x_dtype, ctx.residual_dtype
    )
    dw, db = found[-2:] if weight is not None else (None, None)
    two = kernels.two_gradients(ctx.residual_scale, x_scale, ctx.x_dtype, ctx.residual_dtype)
    dres = None if ctx.residual_dtype is None else found[1 if two else 0]
    return found[0], dres, dw, db, None, None, None, None


_gpu_add_layer_norm.register_autograd(_differentiate_norm, setup_context=_save_norm)
