"""Residual addition and layer normalisation on a GPU as torch custom ops.

``dispatch`` chooses the kernels when an op runs: the forward is CUDA C++ where NVRTC compiles for the device, else
Triton's, and the backward is Triton's, which only a process that takes gradients imports.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops import derivatives, dispatch
from ssamba.ops.layer_norm import naive
from ssamba.ops.register import define_operator


def add_layer_norm(
    x_BLd: Tensor, residual_BLd: Tensor | None = None, weight_d: Tensor | None = None, bias_d: Tensor | None = None, *,
    eps: float = 1e-5, residual_scale: float = 1.0, x_scale_B: Tensor | None = None,
    out_dtype: torch.dtype | None = None, inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``naive.add_layer_norm`` in one pass; statistics and arithmetic are float32.

    ``residual_scale`` 2 makes the doubling of the residual stream at a pair's end part of the next pair's addition.
    ``x_scale_B`` is one factor for each clip (stochastic depth); where its gradient is asked for, the plain form runs.
    Give ``weight`` and ``bias`` together or not at all. ``inplace`` allows the stream over the residual (without one, x
    becomes the stream) and the norm over x, where no gradient is asked for and the norm has x's dtype.
    """
    if (weight_d is None) != (bias_d is None):
        raise ValueError("add_layer_norm needs weight and bias together, or neither")
    if derivatives.wants_gradient(x_scale_B):
        options: dict[str, Any] = {"eps": eps, "residual_scale": residual_scale, "out_dtype": out_dtype}
        return naive.add_layer_norm(x_BLd, residual_BLd, weight_d, bias_d, x_scale_B=x_scale_B, **options)
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


def forward_kernels(*tensors: Tensor | None) -> Any:
    """The module of the forward's kernels, ``forward`` and ``normalise``, that takes these tensors."""
    return dispatch.small_kernels("norm", *tensors)


@define_operator("ssamba::gpu_add_layer_norm")
def _gpu_add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, x_scale: Tensor | None, eps: float,
    residual_scale: float, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    kernels = forward_kernels(x, residual, x_scale, weight, bias)
    return kernels.forward(x, residual, x_scale, weight, bias, eps, residual_scale, out_dtype)


@define_operator("ssamba::gpu_add_layer_norm_", mutates_args=("x", "residual"))
def add_layer_norm_(x: Tensor, residual: Tensor, eps: float, residual_scale: float) -> None:
    """``residual = residual_scale residual + x`` and ``x = LayerNorm(residual)``, in place, without gradients."""
    kernels = forward_kernels(x, residual)
    kernels.forward(x, residual, None, None, None, eps, residual_scale, x.dtype, in_place=True)


@add_layer_norm_.register_fake
def _(x: Tensor, residual: Tensor, eps: float, residual_scale: float) -> None:
    return None


@define_operator("ssamba::gpu_layer_norm")
def layer_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm of contiguous x without weights or gradients."""
    return forward_kernels(x).normalise(x.flatten(0, -2), eps, x.dtype).view(x.shape)


@layer_norm.register_fake
def _(x: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@define_operator("ssamba::gpu_add_layer_norm_backward")
def _gpu_add_layer_norm_backward(
    dout: Tensor, dnew: Tensor | None, saved: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor,
    x_scale: Tensor | None, residual_scale: float, x_dtype: torch.dtype, residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    # An op may not return the same tensor twice, nor None: what is not there, or is dx, is empty.
    dx, *others = dispatch.small_kernels("norm_backward").backward(
        dout, dnew, saved, weight, mean, rstd, x_scale, residual_scale, x_dtype, residual_dtype
    )
    dres, dw, db = (dx.new_empty(0) if x is None or x is dx else x for x in others)
    return dx, dres, dw, db


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx = saved.new_empty(saved.shape, dtype=x_dtype)
    two = naive.two_gradients(residual_scale, x_scale, x_dtype, residual_dtype)
    dres = saved.new_empty(saved.shape, dtype=residual_dtype) if two else dx.new_empty(0)
    dw, db = (dx.new_empty(0) if weight is None else torch.empty_like(weight) for _ in range(2))
    return dx, dres, dw, db


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _bias, x_scale, _eps, residual_scale, _ = inputs
    out, new, mean, rstd = output
    # With an affine map the statistics are computed again from the sum, so nothing flows through 1/std.
    ctx.mark_non_differentiable(mean, *([] if weight is None else [rstd]))
    ctx.set_materialize_grads(False)
    ctx.residual_scale, ctx.x_dtype = residual_scale, x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    # Without an affine map the output is all that is needed, and the matrix product after it keeps it anyway.
    ctx.save_for_backward(out if weight is None else new, weight, mean, rstd, x_scale)


def _plain_norm_backward(
    dout: Tensor, dnew: Tensor | None, saved: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor,
    x_scale: Tensor | None, residual_scale: float, x_dtype: torch.dtype, residual_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """What the backward's kernel computes, in torch operators: its derivatives are taken through here."""
    given, normal, rstd = dout.float(), saved.float(), rstd[..., None]
    if weight is not None:
        centred = normal - normal.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        eps = (rstd**-2 - variance).detach()
        rstd = (variance + eps).rsqrt()
        normal = centred * rstd
    d = given if weight is None else given * weight.float()
    d = (d - d.mean(-1, keepdim=True) - normal * (d * normal).mean(-1, keepdim=True)) * rstd
    if dnew is not None:
        d = d + dnew.float()
    dx = d if x_scale is None else d * x_scale.float().view(-1, *[1] * (d.dim() - 1))
    dres = dw = db = None
    if naive.two_gradients(residual_scale, x_scale, x_dtype, residual_dtype):
        dres = (d * residual_scale).to(residual_dtype)
    if weight is not None:
        dw, db = (x.flatten(0, -2).sum(0).to(weight.dtype) for x in (given * normal, given))
    return dx.to(x_dtype), dres, dw, db


def _differentiate_norm(ctx: Any, dout: Tensor | None, dnew: Tensor | None, _dmean: Any, drstd: Tensor | None) -> Any:
    saved, weight, mean, rstd, x_scale = ctx.saved_tensors
    if drstd is not None:  # in a second backward only: d rstd / d sum = -rstd^2 normal / width
        through_rstd = (drstd * rstd**2 / -saved.shape[-1])[..., None] * saved
        dnew = through_rstd if dnew is None else dnew + through_rstd
    if dout is None:
        dout = torch.zeros_like(saved)
    plain = derivatives.in_forward_mode()
    dx, dres, dw, db = (_plain_norm_backward if plain else _gpu_add_layer_norm_backward)(
        dout, dnew, saved, weight, mean, rstd, x_scale, ctx.residual_scale, ctx.x_dtype, ctx.residual_dtype
    )
    two = naive.two_gradients(ctx.residual_scale, x_scale, ctx.x_dtype, ctx.residual_dtype)
    of_residual = None if ctx.residual_dtype is None else dres if two else dx
    of_maps = (None, None) if weight is None else (dw, db)
    return dx, of_residual, *of_maps, None, None, None, None


_gpu_add_layer_norm.register_autograd(_differentiate_norm, setup_context=_save_norm)
_save_all, _differentiate_plain = derivatives.gradient_of_plain(_plain_norm_backward)
_gpu_add_layer_norm_backward.register_autograd(_differentiate_plain, setup_context=_save_all)
for _operator in (_gpu_add_layer_norm, _gpu_add_layer_norm_backward):
    _operator.register_vmap(derivatives.one_by_one(_operator))
