"""The fast CPU form of ``conv_silu`` and ``selective_scan``, registered as torch operators with their gradients.

``ssamba::conv_silu`` and ``ssamba::selective_scan`` (and ``*_backward``) are ordinary torch operators: autograd,
torch.compile and torch.export see them. Importing this module does not import Numba. Shapes: ``naive``'s legend.
Inputs of lower precision are computed in float32; results and gradients come back in their input's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssamba.ops import derivatives
from ssamba.ops.linear_layer import cpu as linear_layer
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import launch, layout, mixer_inference
from ssamba.ops.mamba.cpu.launch import ScanInputs, rows
from ssamba.ops.mamba.params import SCHEMA, MixerParams
from ssamba.ops.register import untraced

_SCAN = ", ".join(f"Tensor {name}" for name in ScanInputs._fields)
_library = torch.library.Library("ssamba", "DEF")
_ALTERNATING = "bool alternating=False"
_library.define(f"conv_silu(Tensor x, Tensor weight, Tensor bias, {_ALTERNATING}) -> Tensor")
_library.define(
    f"conv_silu_backward(Tensor du, Tensor x, Tensor weight, Tensor bias, {_ALTERNATING}) -> (Tensor, Tensor, Tensor)"
)
_library.define(f"selective_scan({_SCAN}, Tensor? z, bool keep_states, {_ALTERNATING}) -> (Tensor, Tensor)")
_library.define(
    f"selective_scan_backward(Tensor dy, {_SCAN}, Tensor? z, Tensor states, {_ALTERNATING})"
    f" -> ({', '.join(['Tensor'] * 8)})"
)
_library.define(f"bimamba_inference(Tensor x, Tensor z, {SCHEMA}, {_ALTERNATING}) -> Tensor")


_SCAN_ARGUMENTS = len(ScanInputs._fields) + 3
"""With z, what is kept, and ``alternating``."""


def _filled(arguments: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """All ``count`` arguments: torch leaves out a last one that has its default."""
    return (*arguments, False)[:count]


def _empty_by_direction(like: Tensor, batch: int, length: int, pairs: tuple[int, int], last: int) -> Tensor:
    """An empty (B, L, R, K, last) that lies in memory as (R, K, B, L, last): a matrix of each direction and block."""
    shape = (*pairs, batch, length, last)
    return torch.empty(shape, dtype=like.dtype, device=like.device).permute(2, 3, 0, 1, 4)


# ---- convolution


def _conv_silu_empty(x: Tensor, weight: Tensor, bias: Tensor, alternating: bool = False) -> Tensor:
    return _empty_by_direction(x, x.shape[0], x.shape[1], (weight.shape[0], x.shape[2]), x.shape[3])


def _conv_silu_cpu(x: Tensor, weight: Tensor, bias: Tensor, alternating: bool = False) -> Tensor:
    x32 = rows(x)
    u = _conv_silu_empty(x32, weight, bias)
    backwards = layout.backwards(x.shape[2], alternating)
    launch.conv_forward(x32, launch.taps_first(weight.float()), bias.float().contiguous(), u, backwards=backwards)
    return u.to(x.dtype)


def _conv_silu_backward_empty(
    du: Tensor, x: Tensor, weight: Tensor, bias: Tensor, alternating: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _conv_silu_backward_cpu(
    du: Tensor, x: Tensor, weight: Tensor, bias: Tensor, alternating: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    backwards = layout.backwards(x.shape[2], alternating)
    dx, dweight, dbias = launch.conv_backward(rows(du), rows(x), weight.float(), bias.float(), backwards)
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(bias.dtype)


def _conv_silu_backward_plain(du: Tensor, *inputs: Any) -> list[Tensor | None]:
    return derivatives.gradient(naive.conv_silu, inputs, [du])[:3]


def _conv_silu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.alternating = inputs
    ctx.save_for_backward(*tensors)


def _conv_silu_autograd(ctx: Any, du: Tensor) -> tuple[Tensor | None, ...]:
    if derivatives.in_forward_mode():
        inputs = *ctx.saved_tensors, ctx.alternating
        return tuple(derivatives.gradient(naive.conv_silu, inputs, [du], required_only=True))
    return (*torch.ops.ssamba.conv_silu_backward(du, *ctx.saved_tensors, ctx.alternating), None)


# ---- scan


def _scan_empty(u: Tensor, states: int, keep_states: bool) -> tuple[Tensor, Tensor]:
    batch, length, _, blocks, channels = u.shape
    shape = launch.states_shape(u, states) if keep_states else (0,)
    y = torch.empty((batch, length, blocks, channels), dtype=u.dtype, device=u.device)
    return y, torch.empty(shape, dtype=torch.float32, device=u.device)


def _scan_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, _z, keep_states, _alternating = _filled(arguments, _SCAN_ARGUMENTS)
    inputs = ScanInputs(*tensors)
    return _scan_empty(inputs.u, inputs.states, keep_states)


def _scan_cpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, z, keep_states, alternating = _filled(arguments, _SCAN_ARGUMENTS)
    inputs = ScanInputs(*(rows(x) for x in tensors))
    y, states = _scan_empty(inputs.u, inputs.states, keep_states)
    backwards = layout.backwards(y.shape[2], alternating)
    launch.scan_forward(inputs, None if z is None else rows(z), y, states if keep_states else None, backwards)
    return y.to(tensors[0].dtype), states


def _scan_backward_fake(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, z, _states, _alternating = _filled(arguments, _SCAN_ARGUMENTS)
    u, dt, A, B, C, D, dt_bias = tensors
    pairs = (u.shape[2], u.shape[3])
    du, ddt, dB, dC = (_empty_by_direction(x, x.shape[0], x.shape[1], pairs, x.shape[-1]) for x in (u, dt, B, C))
    dz = u.new_empty(0) if z is None else z.new_empty(z.shape)
    return du, ddt, A.new_empty(A.shape), dB, dC, D.new_empty(D.shape), dt_bias.new_empty(dt_bias.shape), dz


def _scan_backward_cpu(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, z, states, alternating = _filled(arguments, _SCAN_ARGUMENTS)
    inputs = ScanInputs(*(rows(x) for x in tensors))
    backwards = layout.backwards(dy.shape[2], alternating)
    gradients = launch.scan_backward(rows(dy), inputs, None if z is None else rows(z), states, backwards)
    like = (*tensors, tensors[0] if z is None else z)
    return tuple(gradient.to(x.dtype) for gradient, x in zip(gradients, like, strict=True))


def _scan_backward_plain(dy: Tensor, *arguments: Any) -> list[Tensor | None]:
    *inputs, _states, alternating = _filled(arguments, _SCAN_ARGUMENTS)
    return derivatives.gradient(naive.selective_scan, (*inputs, alternating), [dy])[:-1]


def _scan_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, z, keep_states, ctx.alternating = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.gated, ctx.kept = z is not None, keep_states
    ctx.save_for_backward(*tensors, *([z] if z is not None else []), output[1])


def _scan_autograd(ctx: Any, dy: Tensor, _dstates: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.kept:
        raise RuntimeError("ssamba::selective_scan was run with keep_states=False: its gradient needs keep_states=True")
    *tensors, states = ctx.saved_tensors
    z = tensors.pop() if ctx.gated else None
    if derivatives.in_forward_mode():
        inputs = *tensors, z, ctx.alternating
        *gradients, dz, _ = derivatives.gradient(naive.selective_scan, inputs, [dy], required_only=True)
    else:
        *gradients, dz = torch.ops.ssamba.selective_scan_backward(dy, *tensors, z, states, ctx.alternating)
    return (*gradients, dz if ctx.gated else None, None, None)


# ---- everything of the mixer at once, without a gradient


def _bimamba_inference_fake(x: Tensor, z: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _bimamba_plain(x: Tensor, z: Tensor, *rest: Any) -> Tensor:
    *parameters, alternating = _filled(rest, len(MixerParams._fields) + 1)
    params = MixerParams(*parameters).to(torch.float32)
    return naive.bimamba_inner(x.float(), z.float(), params, alternating).to(x.dtype)


def _bimamba_inference_cpu(x: Tensor, z: Tensor, *rest: Any) -> Tensor:
    *parameters, alternating = _filled(rest, len(MixerParams._fields) + 1)
    weights = mixer_inference.Weights.of(MixerParams(*parameters))
    return mixer_inference.bimamba(x, z, weights, alternating=alternating)


def _register() -> None:
    _register_kernels()
    torch.library.register_autograd(
        "ssamba::conv_silu", _conv_silu_autograd, setup_context=_conv_silu_setup, lib=_library
    )
    torch.library.register_autograd("ssamba::selective_scan", _scan_autograd, setup_context=_scan_setup, lib=_library)
    for name, plain in (
        ("conv_silu_backward", _conv_silu_backward_plain),
        ("selective_scan_backward", _scan_backward_plain),
        ("bimamba_inference", _bimamba_plain),
    ):
        save, differentiate = derivatives.gradient_of_plain(plain)
        torch.library.register_autograd(f"ssamba::{name}", differentiate, setup_context=save, lib=_library)
    for name in ("conv_silu", "selective_scan", "conv_silu_backward", "selective_scan_backward", "bimamba_inference"):
        rule = derivatives.one_by_one(getattr(torch.ops.ssamba, name))
        torch.library.register_vmap(f"ssamba::{name}", rule, lib=_library)


def _register_kernels() -> None:
    for name, kernel in (
        ("conv_silu", _conv_silu_cpu),
        ("conv_silu_backward", _conv_silu_backward_cpu),
        ("selective_scan", _scan_cpu),
        ("selective_scan_backward", _scan_backward_cpu),
        ("bimamba_inference", _bimamba_inference_cpu),
    ):
        _library.impl(name, untraced(kernel), "CPU")
    for name, fake in (
        ("conv_silu", _conv_silu_empty),
        ("conv_silu_backward", _conv_silu_backward_empty),
        ("selective_scan", _scan_fake),
        ("selective_scan_backward", _scan_backward_fake),
        ("bimamba_inference", _bimamba_inference_fake),
    ):
        torch.library.register_fake(f"ssamba::{name}", fake, lib=_library)


_register()


def conv_silu(x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, alternating: bool = False) -> Tensor:
    """``naive.conv_silu``. The result lies in memory as (R, K, B, L, E), ready for matrix products."""
    return torch.ops.ssamba.conv_silu(x_BLKE, weight_RKEW, bias_RKE, alternating)


def selective_scan(
    u_BLRKE: Tensor, dt_BLRKE: Tensor, A_RKEN: Tensor, B_BLRKN: Tensor, C_BLRKN: Tensor, D_RKE: Tensor,
    dt_bias_RKE: Tensor, z_BLKE: Tensor | None = None, alternating: bool = False,
) -> Tensor:  # fmt: skip
    """``naive.selective_scan``. States are kept for the gradient (L / 32 of them) only where one is wanted."""
    inputs = u_BLRKE, dt_BLRKE, A_RKEN, B_BLRKN, C_BLRKN, D_RKE, dt_bias_RKE, z_BLKE
    return torch.ops.ssamba.selective_scan(*inputs, derivatives.wants_gradient(*inputs), alternating)[0]


def bimamba_inner(x_BLKE: Tensor, z_BLKE: Tensor, params: MixerParams, alternating: bool = False) -> Tensor:
    """``naive.bimamba_inner``: the two operators and, between them, two matrix products for each direction and block.

    Where no gradient is wanted, one operator runs the same kernels part by part, in memory that does not grow with L.
    """
    if not derivatives.wants_gradient(x_BLKE, z_BLKE, *params):
        return torch.ops.ssamba.bimamba_inference(x_BLKE, z_BLKE, *params, alternating)
    directions, blocks, channels, rank = params.dt_proj_RKEr.shape
    batch, length = x_BLKE.shape[:2]
    u_BLRKE = conv_silu(x_BLKE, params.conv_weight_RKEW, params.conv_bias_RKE, alternating)
    u_GTE = u_BLRKE.permute(2, 3, 0, 1, 4).reshape(directions * blocks, batch * length, channels)
    p_GTP = linear_layer.batched_linear(u_GTE, params.x_proj_RKPE.flatten(0, 1).to(u_GTE.dtype))
    low_GTr, B_GTN, C_GTN = p_GTP.split([rank, params.states, params.states], dim=-1)
    dt_GTE = torch.bmm(low_GTr, params.dt_proj_RKEr.flatten(0, 1).transpose(1, 2).to(p_GTP.dtype))
    dt_BLRKE, B_BLRKN, C_BLRKN = (
        x.unflatten(1, (batch, length)).unflatten(0, (directions, blocks)).permute(2, 3, 0, 1, 4)
        for x in (dt_GTE, B_GTN, C_GTN)
    )
    A_RKEN = -torch.exp(params.A_log_RKEN.float())
    of_channel = params.D_RKE, params.dt_bias_RKE
    return selective_scan(u_BLRKE, dt_BLRKE, A_RKEN, B_BLRKN, C_BLRKN, *of_channel, z_BLKE, alternating)


def bimamba_inner_packed(
    xz_BLhKE: Tensor, params: MixerParams, alternating: bool = False, bias_hKE: Tensor | None = None,
    keep_states: bool = False,
) -> Tensor:  # fmt: skip
    """``naive.bimamba_inner_packed``. A bias's gradient costs a pass over xz: better leave it to the input product."""
    x_BLKE, z_BLKE = naive.with_bias_gradient(xz_BLhKE, bias_hKE).unbind(2)
    return bimamba_inner(x_BLKE, z_BLKE, params, alternating)
