"""The mixer's inside and its normalisation on a GPU, as torch custom ops: forward, backward, fake and autograd.

Two forms of the scan sit behind one interface. On NVIDIA it is CUDA C++ compiled at run time by the NVRTC that torch
carries (``nvrtc_scan``); elsewhere, and where NVRTC cannot be had, a Triton kernel (``triton_kernels.scan``).
Everything around the scan is Triton or a plain matrix product. dev/KERNEL-NOTES.md has the numbers.

The ops are opaque to ``torch.compile``, save what a backward can start from (x, z, the output y and the small
projection p) and compute the rest again, take no decision on the host that depends on data, and use no atomics: two
runs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.layer_norm import triton
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cuda import conv as nvrtc_conv
from ssamba.ops.mamba.cuda import projection
from ssamba.ops.mamba.cuda import scan as nvrtc_scan
from ssamba.ops.mamba.gpu_inference import bimamba_ungated, gated_output_, ready_weights, runs_ungated
from ssamba.ops.mamba.triton import conv, scan

__all__ = [
    "add_layer_norm",
    "add_layer_norm_",
    "bimamba_inner",
    "bimamba_inner_packed",
    "bimamba_ungated",
    "gated_output_",
    "ready_weights",
    "runs_ungated",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_Params = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _dense(x: Tensor) -> Tensor:
    """Strides are free but for the channels, which must lie side by side."""
    return x if x.stride(-1) == 1 or (x.shape[-1] == 1 and x.stride(-2) > 0) else x.contiguous()


def _lanes(x_RKXY: Tensor, dtype: torch.dtype) -> Tensor:
    return x_RKXY.flatten(0, 1).to(dtype)


def _over_tokens(a_GTM: Tensor, b_GTN: Tensor) -> Tensor:
    """``a^T b`` for each lane in float32: a small result from many tokens, so these are cut and added after."""
    lanes, tokens = a_GTM.shape[:2]
    parts = 16
    while parts > 1 and (tokens % parts or tokens // parts < 256):
        parts //= 2
    if parts == 1:
        return (a_GTM.transpose(1, 2) @ b_GTN).float()
    a, b = (x.unflatten(1, (parts, -1)).flatten(0, 1) for x in (a_GTM, b_GTN))
    return (a.transpose(1, 2) @ b).unflatten(0, (lanes, parts)).sum(1, dtype=torch.float32)


def _inner_forward(x: Tensor, z: Tensor, params: _Params) -> tuple[Tensor, Tensor]:
    """``y_BLKE`` and the projection ``p_GBLP``, which the backward starts from."""
    conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a_log, skip = (w.contiguous() for w in params)
    x, z = _dense(x), _dense(z)
    with torch.autocast(x.device.type, enabled=False):
        cuda = nvrtc_scan.usable(x, a_log, conv_weight.shape[-1], x_proj.shape[2])
        if cuda:
            conv_weight, conv_bias, dt_proj, dt_bias, a_log, skip = nvrtc_scan.in_float32(
                conv_weight, conv_bias, dt_proj, dt_bias, a_log, skip
            )
        fast = cuda and projection.usable(x, conv_weight, x_proj)
        p_GBLP = (projection if fast else conv).conv_proj(x, conv_weight, conv_bias, x_proj)
        if cuda:
            y = nvrtc_scan.forward(x, z, p_GBLP, conv_weight, conv_bias, dt_proj, dt_bias, a_log, skip)
            return y, p_GBLP
        u, dt = _expand(x, p_GBLP, conv_weight, conv_bias, dt_proj)
        return scan.forward(u, dt, p_GBLP, z, a_log, skip, dt_bias)[0], p_GBLP


def _expand(x: Tensor, p_GBLP: Tensor, weight: Tensor, bias: Tensor, dt_proj_RKEr: Tensor) -> tuple[Tensor, Tensor]:
    """``u_GBLE`` and the raw ``dt_GBLE`` in memory, as the portable scan reads them."""
    u_GBLE = conv.conv_silu(x, weight, bias)
    rank = dt_proj_RKEr.shape[-1]
    dt_GTE = p_GBLP.flatten(1, 2)[..., :rank] @ _lanes(dt_proj_RKEr, x.dtype).transpose(1, 2)
    return u_GBLE, dt_GTE.view(u_GBLE.shape)


def _inner_backward(
    dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p_GBLP: Tensor, params: _Params, dx: Tensor, dz: Tensor
) -> tuple[Tensor, ...]:
    """Writes ``dx`` and ``dz`` (views with free strides) and returns the gradients of ``params``, in their dtypes."""
    conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a_log, skip = (w.contiguous() for w in params)
    x, z, dy = _dense(x), _dense(z), dy.contiguous()
    rank = dt_proj.shape[-1]
    with torch.autocast(x.device.type, enabled=False):
        cuda = nvrtc_scan.usable(x, a_log, conv_weight.shape[-1], x_proj.shape[2])
        if cuda:
            du, ddt, dbc, da_log, dvec = nvrtc_scan.backward(
                dy, x, z, p_GBLP, y, conv_weight, conv_bias, dt_proj, dt_bias, a_log, skip, dz=dz
            )
        else:
            u, dt = _expand(x, p_GBLP, conv_weight, conv_bias, dt_proj)
            _, ckpt = scan.forward(u, dt, p_GBLP, z, a_log, skip, dt_bias, dy, dz)
            assert ckpt is not None
            du, ddt, dbc, da_log, dvec = scan.backward(u, dt, p_GBLP, z, a_log, skip, dt_bias, ckpt, dy)
            del u, dt, ckpt
        ddt_GTE, du_GTE = ddt.flatten(1, 2), du.flatten(1, 2)
        ddt_proj = _over_tokens(ddt_GTE, p_GBLP.flatten(1, 2)[..., :rank])
        # Rows of a multiple of eight: the products' fast kernels want them aligned.
        outputs, pad = x_proj.shape[2], -x_proj.shape[2] % 8
        dp_GTP = x.new_zeros(*ddt_GTE.shape[:2], outputs + pad)
        dp_GTP[..., :rank] = ddt_GTE @ _lanes(dt_proj, x.dtype)
        dp_GTP[..., rank:outputs] = dbc.flatten(1, 2)
        del ddt, ddt_GTE, dbc
        du_GTE.baddbmm_(dp_GTP, F.pad(_lanes(x_proj, x.dtype), (0, 0, 0, pad)))
        conv_backward = nvrtc_conv.backward if cuda else conv.backward
        u, dconv_weight, dconv_bias = conv_backward(x, conv_weight, conv_bias, du, dx)
        dx_proj = _over_tokens(dp_GTP, u.flatten(1, 2))[:, :outputs]
    found = (dconv_weight, dconv_bias, dx_proj, ddt_proj, dvec[1], da_log, dvec[0])
    return tuple(g.reshape(w.shape).to(w.dtype).contiguous() for g, w in zip(found, params, strict=True))


def _empty_forward(x: Tensor, params: _Params) -> tuple[Tensor, Tensor]:
    batch, length, blocks, width = x.shape
    lanes = params[2].shape[0] * blocks
    return x.new_empty(batch, length, blocks, width), x.new_empty(lanes, batch, length, params[2].shape[2])


@torch.library.custom_op("ssamba::gpu_inner", mutates_args=())
def _gpu_inner(
    x: Tensor, z: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor,
    A_log: Tensor, D: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _inner_forward(x, z, (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D))


@torch.library.custom_op("ssamba::gpu_inner_backward", mutates_args=())
def _gpu_inner_backward(
    dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor,
    dt_proj: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    params = (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D)
    dx, dz = x.new_empty(x.shape), z.new_empty(z.shape)
    return (dx, dz, *_inner_backward(dy, x, z, y, p, params, dx, dz))  # type: ignore[return-value]


@torch.library.custom_op("ssamba::gpu_inner_packed", mutates_args=())
def _gpu_inner_packed(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor,
    A_log: Tensor, D: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _inner_forward(xz[:, :, 0], xz[:, :, 1], (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D))


@torch.library.custom_op("ssamba::gpu_inner_packed_backward", mutates_args=())
def _gpu_inner_packed_backward(
    dy: Tensor, xz: Tensor, y: Tensor, p: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor,
    dt_proj: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    params = (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D)
    dxz = torch.empty_like(xz)  # with xz's order of axes: the product before has its own
    grads = _inner_backward(dy, xz[:, :, 0], xz[:, :, 1], y, p, params, dxz[:, :, 0], dxz[:, :, 1])
    return (dxz, *grads)  # type: ignore[return-value]


@_gpu_inner.register_fake
def _(x: Tensor, z: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_forward(x, params)  # type: ignore[arg-type]


@_gpu_inner_packed.register_fake
def _(xz: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_forward(xz[:, :, 0], params)  # type: ignore[arg-type]


@_gpu_inner_backward.register_fake
def _(dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
    return (x.new_empty(x.shape), z.new_empty(z.shape), *(w.new_empty(w.shape) for w in params))


@_gpu_inner_packed_backward.register_fake
def _(dy: Tensor, xz: Tensor, y: Tensor, p: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
    return (torch.empty_like(xz), *(w.new_empty(w.shape) for w in params))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.activations = len(inputs) - 7
    ctx.save_for_backward(*inputs, *output)  # the product after the mixer keeps its output anyway


def _differentiate(ctx: Any, dy: Tensor | None, dp: Tensor | None) -> Any:
    *inputs, y, p = ctx.saved_tensors
    if dy is None:
        return (None,) * len(inputs)
    activations, params = inputs[: ctx.activations], inputs[ctx.activations :]
    op = _gpu_inner_backward if len(activations) == 2 else _gpu_inner_packed_backward
    return op(dy, *activations, y, p, *params)


_gpu_inner.register_autograd(_differentiate, setup_context=_save)
_gpu_inner_packed.register_autograd(_differentiate, setup_context=_save)


def bimamba_inner(
    x_BLKE: Tensor,
    z_BLKE: Tensor,
    conv_weight_RKEW: Tensor,
    conv_bias_RKE: Tensor,
    x_proj_RKPE: Tensor,
    dt_proj_RKEr: Tensor,
    dt_bias_RKE: Tensor,
    A_log_RKEN: Tensor,
    D_RKE: Tensor,
) -> Tensor:
    """``naive.bimamba_inner`` on a GPU, differentiable once. ``x`` and ``z`` may be strided views of one tensor.

    Computed in float32 from float32, bfloat16 or float16 activations (parameters in any of them); float64 goes to the
    reference form. Up to 64 states and 2 directions.
    """
    params = (conv_weight_RKEW, conv_bias_RKE, x_proj_RKPE, dt_proj_RKEr, dt_bias_RKE, A_log_RKEN, D_RKE)
    if x_BLKE.dtype not in _DTYPES:
        return naive.bimamba_inner(x_BLKE, z_BLKE, *params)
    _check(x_BLKE, A_log_RKEN)
    return _gpu_inner(x_BLKE, z_BLKE.to(x_BLKE.dtype), *params)[0]


def bimamba_inner_packed(
    xz_BLJKE: Tensor,
    conv_weight_RKEW: Tensor,
    conv_bias_RKE: Tensor,
    x_proj_RKPE: Tensor,
    dt_proj_RKEr: Tensor,
    dt_bias_RKE: Tensor,
    A_log_RKEN: Tensor,
    D_RKE: Tensor,
) -> Tensor:
    """``bimamba_inner`` with x and z as ``xz[:, :, 0]`` and ``xz[:, :, 1]``: an input product's output as it is.

    Its gradient comes back in one piece too, which saves the backward one copy of 4 E values for each token.
    """
    params = (conv_weight_RKEW, conv_bias_RKE, x_proj_RKPE, dt_proj_RKEr, dt_bias_RKE, A_log_RKEN, D_RKE)
    if xz_BLJKE.dtype not in _DTYPES:
        return naive.bimamba_inner(xz_BLJKE[:, :, 0], xz_BLJKE[:, :, 1], *params)
    _check(xz_BLJKE, A_log_RKEN)
    return _gpu_inner_packed(xz_BLJKE, *params)[0]


def _check(x: Tensor, A_log_RKEN: Tensor) -> None:
    directions, states = A_log_RKEN.shape[0], A_log_RKEN.shape[-1]
    if directions > 2 or not 1 <= states <= 64:
        raise ValueError(
            f"the GPU scan takes 1 or 2 directions and 1 to 64 states, got {directions} and {states}; "
            "use ssamba.ops.mamba.naive for others"
        )


@torch.library.custom_op("ssamba::gpu_add_layer_norm", mutates_args=())
def _gpu_add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, x_scale: Tensor | None, eps: float,
    residual_scale: float, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return triton.forward(x, residual, x_scale, weight, bias, eps, residual_scale, out_dtype)


@torch.library.custom_op("ssamba::gpu_add_layer_norm_", mutates_args=("x", "residual"))
def add_layer_norm_(x: Tensor, residual: Tensor, eps: float, residual_scale: float) -> None:
    """``residual = residual_scale residual + x`` and ``x = LayerNorm(residual)``, in place, without gradients."""
    triton.forward(x, residual, None, None, None, eps, residual_scale, x.dtype, in_place=True)


@add_layer_norm_.register_fake
def _(x: Tensor, residual: Tensor, eps: float, residual_scale: float) -> None:
    return None


@torch.library.custom_op("ssamba::gpu_layer_norm", mutates_args=())
def layer_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm of contiguous x without weights or gradients."""
    return triton.normalise(x.flatten(0, -2), eps, x.dtype).view(x.shape)


@layer_norm.register_fake
def _(x: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("ssamba::gpu_add_layer_norm_backward", mutates_args=())
def _gpu_add_layer_norm_backward(
    dout: Tensor, dnew: Tensor | None, saved: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor,
    x_scale: Tensor | None, residual_scale: float, x_dtype: torch.dtype, residual_dtype: torch.dtype | None,
) -> list[Tensor]:  # fmt: skip
    # One tensor where the gradients of x and residual are equal: an op may not return the same tensor twice.
    dx, dres, dw, db = triton.backward(
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
    if triton.two_gradients(residual_scale, x_scale, x_dtype, residual_dtype):
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
    two = triton.two_gradients(ctx.residual_scale, x_scale, ctx.x_dtype, ctx.residual_dtype)
    dres = None if ctx.residual_dtype is None else found[1 if two else 0]
    return found[0], dres, dw, db, None, None, None, None


_gpu_add_layer_norm.register_autograd(_differentiate_norm, setup_context=_save_norm)


def add_layer_norm(
    x_BLd: Tensor,
    residual_BLd: Tensor | None = None,
    weight_d: Tensor | None = None,
    bias_d: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual_scale: float = 1.0,
    x_scale_B: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """``new = residual_scale residual + x_scale x``; returns ``(LayerNorm(new) weight + bias, new)`` in one pass.

    ``residual_scale`` 2 makes the doubling of the residual stream at a pair's end part of the next pair's addition.
    ``x_scale_B`` is one factor for each clip (stochastic depth), taken as constant. ``new`` has the residual's dtype,
    the first output ``out_dtype`` (default: x's). Statistics and arithmetic are float32. Give ``weight`` and ``bias``
    together or not at all.
    """
    if (weight_d is None) != (bias_d is None):
        raise ValueError("add_layer_norm needs weight and bias together, or neither")
    out, new, _, _ = _gpu_add_layer_norm(
        x_BLd, residual_BLd, weight_d, bias_d, x_scale_B, eps, residual_scale, out_dtype or x_BLd.dtype
    )
    return out, new
