"""The mixer's inside on a GPU, as torch custom ops: forward, backward, fake and autograd.

``dispatch`` chooses between a backend's kernels when an op runs, among those that the caller allows: the scan is CUDA
C++ compiled at run time by the NVRTC that torch carries, or a portable Triton kernel. dev/KERNEL-NOTES.md has the
numbers.

The ops are opaque to ``torch.compile``, save what a backward can start from (x, z, the output y and the small
projection p) and compute the rest again, take no decision on the host that depends on data, and use no atomics: two
runs give the same bits.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops import derivatives, dispatch
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import SCHEMA, MixerParams
from ssamba.ops.register import define_operator

COUNT = len(MixerParams._fields)


def bimamba_inner(x_BLKE: Tensor, z_BLKE: Tensor, params: MixerParams, alternating: bool = False) -> Tensor:
    """``naive.bimamba_inner`` on a GPU. ``x`` and ``z`` may be strided views of one tensor.

    Differentiable as often as wanted: from the second time on through the plain form.
    Computed in float32 from float32, bfloat16 or float16 activations (parameters in any of them). Up to 64 states and 2
    directions.
    """
    return _gpu_inner(x_BLKE, z_BLKE.to(x_BLKE.dtype), *params, dispatch.gpu_backends(), alternating)[0]


def bimamba_inner_packed(xz_BLhKE: Tensor, params: MixerParams, alternating: bool = False) -> Tensor:
    """``bimamba_inner`` with x and z as ``xz[:, :, 0]`` and ``xz[:, :, 1]``: an input product's output as it is.

    Its gradient comes back in one piece too, which saves the backward one copy of 4 E values for each token.
    """
    return _gpu_inner_packed(xz_BLhKE, *params, dispatch.gpu_backends(), alternating)[0]


def _dense(x: Tensor) -> Tensor:
    """Strides are free but for the channels, which must lie next to each other."""
    return x if x.stride(-1) == 1 or (x.shape[-1] == 1 and x.stride(-2) > 0) else x.contiguous()


def _products_over_tokens(a_GTm: Tensor, b_GTn: Tensor) -> Tensor:
    """``a^T b`` of each matrix in float32: a small result from many tokens, so these are cut and added after."""
    matrices, tokens = a_GTm.shape[:2]
    parts = 16
    while parts > 1 and (tokens % parts or tokens // parts < 256):
        parts //= 2
    if parts == 1:
        return (a_GTm.transpose(1, 2) @ b_GTn).float()
    a, b = (x.unflatten(1, (parts, -1)).flatten(0, 1) for x in (a_GTm, b_GTn))
    return (a.transpose(1, 2) @ b).unflatten(0, (matrices, parts)).sum(1, dtype=torch.float32)


def _projection_gradients(
    ddt_GTE: Tensor, dbc_xGT2N: Tensor, p_GTP: Tensor, params: MixerParams, joined: bool
) -> tuple[Tensor, Tensor]:
    """``dp_GTP``, from the gradients of dt and (B, C), the latter in parts, and the gradient of ``dt_proj``.

    The products' fast kernels want rows aligned, so those of dp are padded with zeros to a multiple of eight.
    ``joined``: all in one pass, for the forms of a mixer that have always been computed so; the others keep the order
    of their sums.
    """
    rank, outputs, pad = params.rank, params.outputs, -params.outputs % 8
    dt_proj_GEr = params.dt_proj_RKEr.flatten(0, 1).to(ddt_GTE.dtype)
    if joined and importlib.util.find_spec("triton") is not None:
        from ssamba.ops.mamba.triton import gradients

        dt_GTm = ddt_GTE @ F.pad(dt_proj_GEr, (0, -rank % 8))
        dp_GTP, low_GTm = gradients.join(dt_GTm, dbc_xGT2N, p_GTP, rank, pad)
        return dp_GTP, _products_over_tokens(ddt_GTE, low_GTm)[..., :rank]
    ddt_proj = _products_over_tokens(ddt_GTE, p_GTP[..., :rank])
    dp_GTP = ddt_GTE.new_zeros(*ddt_GTE.shape[:2], outputs + pad)
    dp_GTP[..., :rank] = ddt_GTE @ dt_proj_GEr
    dp_GTP[..., rank:outputs] = dbc_xGT2N.sum(0)
    return dp_GTP, ddt_proj


def _forward(x: Tensor, z: Tensor, params: MixerParams, backends: str, alternating: bool) -> tuple[Tensor, Tensor]:
    """``y_BLKE`` and the projection ``p_GBLP``, which the backward starts from."""
    x, z, params = _dense(x), _dense(z), params.contiguous()
    with torch.autocast(x.device.type, enabled=False):
        return dispatch.kernels("mixer", x, params, backends=backends).forward(x, z, params, alternating)


def _backward(
    dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p_GBLP: Tensor, params: MixerParams, backends: str,
    alternating: bool, dx: Tensor, dz: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Writes ``dx`` and ``dz`` (views with free strides) and returns the gradients of ``params``, in their dtypes."""
    given, params = params, params.contiguous()
    x, z, dy = _dense(x), _dense(z), dy.contiguous()
    outputs, pad = params.outputs, -params.outputs % 8
    with torch.autocast(x.device.type, enabled=False):
        kernels = dispatch.kernels("mixer", x, params, backends=backends)
        du, ddt, dbc, da_log, dvec_2RKE = kernels.scan_backward(dy, x, z, y, p_GBLP, params, dz, alternating)
        ddt_GTE, du_GTE = ddt.flatten(1, 2), du.flatten(1, 2)
        inputs = ddt_GTE, dbc.flatten(2, 3), p_GBLP.flatten(1, 2), params
        dp_GTP, ddt_proj = _projection_gradients(*inputs, joined=alternating or params.tied)
        del ddt, ddt_GTE, dbc, inputs
        du_GTE.baddbmm_(dp_GTP, F.pad(params.x_proj_RKPE.flatten(0, 1).to(x.dtype), (0, 0, 0, pad)))
        u, dconv_weight, dconv_bias = kernels.conv_backward(x, params, du, dx, alternating)
        dx_proj = _products_over_tokens(dp_GTP, u.flatten(1, 2))[:, :outputs]
    # An op may not return two views of one tensor; with one block and direction the second would be one.
    dD = dvec_2RKE[0].clone(memory_format=torch.contiguous_format)
    found = MixerParams(dconv_weight, dconv_bias, dx_proj, ddt_proj, dvec_2RKE[1], da_log, dD)
    return tuple(g.reshape(w.shape).to(w.dtype).contiguous() for g, w in zip(found, given, strict=True))


# ---- the operators of torch: their arguments are flat


def _run_inner(x: Tensor, z: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _forward(x, z, MixerParams(*rest[:COUNT]), *rest[COUNT:])


def _run_inner_packed(xz: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _run_inner(xz[:, :, 0], xz[:, :, 1], *rest)


def _run_backward(dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dx, dz = x.new_empty(x.shape), z.new_empty(z.shape)
    params, (backends, alternating) = MixerParams(*rest[:COUNT]), rest[COUNT:]
    return (dx, dz, *_backward(dy, x, z, y, p, params, backends, alternating, dx, dz))


def _run_backward_packed(dy: Tensor, xz: Tensor, y: Tensor, p: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dxz = torch.empty_like(xz)  # with xz's order of axes: the product before has its own
    params, (backends, alternating) = MixerParams(*rest[:COUNT]), rest[COUNT:]
    halves = xz[:, :, 0], xz[:, :, 1], y, p, params, backends, alternating, dxz[:, :, 0], dxz[:, :, 1]
    return (dxz, *_backward(dy, *halves))


def _op(name: str, inputs: str, outputs: int, run: Any) -> Any:
    """A custom op of the tensors ``inputs``, a mixer's parameters, the backends that it may use, and the directions."""
    tensors = ", ".join(["Tensor"] * outputs)
    schema = f"({inputs}, {SCHEMA}, str backends, bool alternating) -> ({tensors})"
    return define_operator(f"ssamba::{name}", schema=schema)(run)


_gpu_inner = _op("gpu_inner", "Tensor x, Tensor z", 2, _run_inner)
_gpu_inner_packed = _op("gpu_inner_packed", "Tensor xz", 2, _run_inner_packed)
_gpu_inner_backward = _op(
    "gpu_inner_backward", "Tensor dy, Tensor x, Tensor z, Tensor y, Tensor p", 2 + COUNT, _run_backward
)
_gpu_inner_packed_backward = _op(
    "gpu_inner_packed_backward", "Tensor dy, Tensor xz, Tensor y, Tensor p", 1 + COUNT, _run_backward_packed
)


@_gpu_inner.register_fake
def _(x: Tensor, z: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, length, blocks, channels = x.shape
    x_proj_RKPE = MixerParams(*rest[:COUNT]).x_proj_RKPE
    p_GBLP = x.new_empty(x_proj_RKPE.shape[0] * blocks, batch, length, x_proj_RKPE.shape[2])
    return x.new_empty(batch, length, blocks, channels), p_GBLP


@_gpu_inner_packed.register_fake
def _(xz: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.ssamba.gpu_inner(xz[:, :, 0], xz[:, :, 1], *rest)


@_gpu_inner_backward.register_fake
def _(dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return (x.new_empty(x.shape), z.new_empty(z.shape), *(w.new_empty(w.shape) for w in rest[:COUNT]))


@_gpu_inner_packed_backward.register_fake
def _(dy: Tensor, xz: Tensor, y: Tensor, p: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return (torch.empty_like(xz), *(w.new_empty(w.shape) for w in rest[:COUNT]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.backends, ctx.alternating = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)  # the product after the mixer keeps its output anyway


def _plain_inner(x: Tensor, z: Tensor, *rest: Any) -> Tensor:
    params = MixerParams(*rest[:COUNT]).to(torch.float32)
    return naive.bimamba_inner(x.float(), z.float(), params, rest[COUNT]).to(x.dtype)


def _plain_inner_packed(xz: Tensor, *rest: Any) -> Tensor:
    return _plain_inner(xz[:, :, 0], xz[:, :, 1], *rest)


def _plain_backward(dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p: Tensor, *rest: Any) -> list[Tensor | None]:
    return derivatives.gradient(_plain_inner, (x, z, *rest[:COUNT], rest[-1]), [dy])[:-1]


def _plain_backward_packed(dy: Tensor, xz: Tensor, y: Tensor, p: Tensor, *rest: Any) -> list[Tensor | None]:
    return derivatives.gradient(_plain_inner_packed, (xz, *rest[:COUNT], rest[-1]), [dy])[:-1]


def _differentiate(ctx: Any, dy: Tensor | None, dp: Tensor | None) -> Any:
    *inputs, y, p = ctx.saved_tensors
    if dy is None:
        return (None,) * (len(inputs) + 2)
    activations, params = inputs[:-COUNT], inputs[-COUNT:]
    apart = len(activations) == 2
    if derivatives.in_forward_mode():
        plain = _plain_inner if apart else _plain_inner_packed
        return (*derivatives.gradient(plain, [*inputs, ctx.alternating], [dy], required_only=True), None)
    op = _gpu_inner_backward if apart else _gpu_inner_packed_backward
    return (*op(dy, *activations, y, p, *params, ctx.backends, ctx.alternating), None, None)


_gpu_inner.register_autograd(_differentiate, setup_context=_save)
_gpu_inner_packed.register_autograd(_differentiate, setup_context=_save)
for _operator, _plain in (
    (_gpu_inner_backward, _plain_backward),
    (_gpu_inner_packed_backward, _plain_backward_packed),
):
    _save_all, _differentiate_plain = derivatives.gradient_of_plain(_plain)
    _operator.register_autograd(_differentiate_plain, setup_context=_save_all)
for _operator in (_gpu_inner, _gpu_inner_packed, _gpu_inner_backward, _gpu_inner_packed_backward):
    _operator.register_vmap(derivatives.one_by_one(_operator))
