"""Operators: one name for each; ``ssamba.ops.dispatch`` chooses the fastest form that can run.

``use_backend`` (or the environment variable ``SSAMBA_BACKEND``) overrides the choice. Where the fast form cannot run,
one warning for each reason says so and the reference form runs. Shapes: ``ssamba.ops.mamba.naive``'s legend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssamba.ops import derivatives, dispatch, environment
from ssamba.ops.dispatch import SHORT as SHORT
from ssamba.ops.dispatch import short_work, use_backend
from ssamba.ops.linear_layer import naive as naive_linear
from ssamba.ops.mamba.params import MixerParams
from ssamba.utils.errors import ConfigError

__all__ = [
    "add_layer_norm",
    "batched_linear",
    "bimamba_inner",
    "bimamba_inner_packed",
    "bimamba_ungated",
    "conv_silu",
    "gated_output_",
    "gated_output_to_input_",
    "gives_bias_gradient",
    "linear",
    "output_to_stream_",
    "ready_weights_of_pairs",
    "runs_ungated",
    "selective_scan",
    "short_work",
    "use_backend",
]


def _check_directions(alternating: bool, of_each_RKx: Tensor) -> None:
    if alternating and of_each_RKx.shape[0] != 1:
        raise ConfigError(f"alternating scans have parameters of one direction, got {of_each_RKx.shape[0]}; give R = 1")


def conv_silu(x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, alternating: bool = False) -> Tensor:
    """Depthwise causal convolution and SiLU for each direction: see ``naive.conv_silu``."""
    _check_directions(alternating, weight_RKEW)
    return dispatch.run("conv_silu", x_BLKE, weight_RKEW, bias_RKE, alternating)


def selective_scan(
    u_BLRKE: Tensor, dt_BLRKE: Tensor, A_RKEN: Tensor, B_BLRKN: Tensor, C_BLRKN: Tensor, D_RKE: Tensor,
    dt_bias_RKE: Tensor, z_BLKE: Tensor | None = None, alternating: bool = False,
) -> Tensor:  # fmt: skip
    """Gated mean of the directions' selective scans: see ``naive.selective_scan``."""
    _check_directions(alternating, A_RKEN)
    inputs = u_BLRKE, dt_BLRKE, A_RKEN, B_BLRKN, C_BLRKN, D_RKE, dt_bias_RKE, z_BLKE
    return dispatch.run("selective_scan", *inputs, alternating)


def bimamba_inner(
    x_BLKE: Tensor, z_BLKE: Tensor, conv_weight_RKEW: Tensor, conv_bias_RKE: Tensor, x_proj_RKPE: Tensor,
    dt_proj_RKEr: Tensor, dt_bias_RKE: Tensor, A_log_RKEN: Tensor, D_RKE: Tensor, alternating: bool = False,
) -> Tensor:  # fmt: skip
    """The mixer between its input and its output projection: see ``naive.bimamba_inner``.

    The parameters are those of ``MixerParams``, in its order.
    """
    params = MixerParams(conv_weight_RKEW, conv_bias_RKE, x_proj_RKPE, dt_proj_RKEr, dt_bias_RKE, A_log_RKEN, D_RKE)
    _check_directions(alternating, A_log_RKEN)
    return dispatch.run("bimamba_inner", x_BLKE, z_BLKE, params, alternating)


def bimamba_inner_packed(
    xz_BLJKE: Tensor, conv_weight_RKEW: Tensor, conv_bias_RKE: Tensor, x_proj_RKPE: Tensor, dt_proj_RKEr: Tensor,
    dt_bias_RKE: Tensor, A_log_RKEN: Tensor, D_RKE: Tensor, alternating: bool = False,
    bias_JKE: Tensor | None = None, keep_states: bool = False,
) -> Tensor:  # fmt: skip
    """``bimamba_inner`` of ``x = xz[:, :, 0]`` and ``z = xz[:, :, 1]``, with any strides: an input product as it is.

    ``bias``, for training: that product's own, where it was given ``bias.detach()``. No value changes; the gradient
    that the product then leaves out comes from here, see ``gives_bias_gradient``. J, in these names, is the legend's h.

    ``keep_states``, for training in 16 bits: a GPU saves the states before every 8 steps for the backward, which
    otherwise computes them again. They take 2 R K E N bytes for 8 tokens; no value of the output changes.
    """
    params = MixerParams(conv_weight_RKEW, conv_bias_RKE, x_proj_RKPE, dt_proj_RKEr, dt_bias_RKE, A_log_RKEN, D_RKE)
    _check_directions(alternating, A_log_RKEN)
    return dispatch.run(
        "bimamba_inner_packed", xz_BLJKE, params, alternating, bias_JKE, keep_states, name="bimamba_inner"
    )


def bimamba_inner_with_work(xz_BLJKE: Tensor, work: Tensor, *parameters: Tensor, alternating: bool = False) -> Tensor:
    """Of ``BlockPair`` alone: ``bimamba_inner_packed`` in inference, with memory of any size that may be overwritten.

    A GPU's form puts its projection there, ``naive.bimamba_inner_with_work``; others leave ``work`` as it is.
    """
    params = MixerParams(*parameters)
    _check_directions(alternating, params.A_log_RKEN)
    form = dispatch.find("bimamba_inner_with_work", xz_BLJKE, work, params, alternating)
    if form is None:
        return bimamba_inner_packed(xz_BLJKE, *params, alternating)
    return form.bimamba_inner_with_work(xz_BLJKE, work, params, alternating)


def gives_bias_gradient(like: Tensor, bias_JKE: Tensor, *parameters: Tensor) -> bool:
    """Whether ``bimamba_inner_packed`` of a product of ``like`` should give the gradient of that product's bias.

    That gradient is a sum over all tokens. A GPU's kernels that write the gradient of xz have its values in registers
    and add them up; elsewhere the product gives it. Only a bias that wants one. ``parameters``: those of the mixer.
    """
    if not derivatives.wants_gradient(bias_JKE) or environment.bias_gradient() == "product":
        return False
    form = dispatch.find("bimamba_inner_packed", like, MixerParams(*parameters), False)
    return getattr(form, "GIVES_BIAS_GRADIENT", False)


def runs_ungated(like: Tensor, A_log_RKEN: Tensor, states: int | None = None, alternating: bool = False) -> bool:
    """Whether ``bimamba_ungated`` is likely to have a form for a product of ``like``: ask before making x for it.

    ``states``: N, which the rates of tied decays do not say; None takes it from ``A_log_RKEN``. Never while a graph is
    traced: the form looks at addresses.
    """
    if torch.compiler.is_compiling():
        return False
    states = A_log_RKEN.shape[-1] if states is None else states
    return dispatch.find("bimamba_ungated", like, A_log_RKEN, states, alternating) is not None


def ready_weights_of_pairs(pairs: Sequence[tuple[Tensor, ...]], dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Each pair's weights as ``bimamba_ungated`` and ``gated_output_`` read them, on a GPU all made in one launch.

    A pair's are in_proj, scale and shift of its norm, out_proj and the parameters of ``bimamba_inner``. Returns the
    folded input product's weight and bias, then the others, as ``naive.ready_weights``.
    """
    given = [(*pair[:4], MixerParams(*pair[4:])) for pair in pairs]
    found = dispatch.prefer("ready_weights_of_pairs", given[0][0], given, dtype)
    return [(*weights, *params) for *weights, params in found]


def fold_norm(in_proj_hKEd: Tensor, norm_weight_Kd: Tensor, norm_bias_Kd: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``BlockPair`` alone: the input product's weight and bias with each LayerNorm folded in, ``naive.fold_norm``.

    In training on a GPU they are rounded at once to the dtype that autocast's products take.
    """
    return dispatch.prefer("fold_norm", in_proj_hKEd, norm_weight_Kd, norm_bias_Kd)


def bimamba_ungated(x_BLKE: Tensor, work: Tensor, *parameters: Tensor, alternating: bool = False) -> Tensor | None:
    """``bimamba_inner`` without its gate, in inference, for a caller that goes on with ``gated_output_``.

    ``parameters``: those of ``bimamba_inner``. ``work`` is memory of any size that may be overwritten. None, and
    ``work`` untouched, where there is no such form: use ``bimamba_inner``.
    """
    params = MixerParams(*parameters)
    _check_directions(alternating, params.A_log_RKEN)
    form = dispatch.find("bimamba_ungated", x_BLKE, params.A_log_RKEN, params.states, alternating)
    return None if form is None else form.bimamba_ungated(x_BLKE, work, params, alternating)


def gated_output_(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, out_Td: Tensor, eps: float,
    residual_scale: float | None = None, normed: bool = False,
) -> None:  # fmt: skip
    """Gate and output product of what ``bimamba_ungated`` returned, in inference: see ``naive.gated_output_``."""
    tensors = y_TX, stream_Td, weight_Xd, bias_X, out_proj_dX, out_Td
    dispatch.prefer("gated_output_", *tensors, eps, residual_scale, normed)


def gated_output_to_input_(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, next_weight_Xd: Tensor,
    next_bias_X: Tensor, x_TX: Tensor, eps: float, residual_scale: float,
) -> bool:  # fmt: skip
    """``gated_output_`` that also makes the next pair's x, in inference: see ``naive.gated_output_to_input_``.

    False, and nothing done, where there is no such form, as while a graph is traced: use ``gated_output_``.
    """
    if torch.compiler.is_compiling():
        return False
    tensors = y_TX, stream_Td, weight_Xd, bias_X, out_proj_dX, next_weight_Xd, next_bias_X, x_TX
    form = dispatch.find("gated_output_to_input_", *tensors)
    if form is not None:
        form.gated_output_to_input_(*tensors, eps, residual_scale)
    return form is not None


def output_to_stream_(
    y_TX: Tensor, out_proj_dX: Tensor, stream_Td: Tensor, out_Td: Tensor, eps: float, residual_scale: float
) -> None:
    """Output product, residual addition and the norm of the sum, in inference: see ``naive.output_to_stream_``."""
    dispatch.prefer("output_to_stream_", y_TX, out_proj_dX, stream_Td, out_Td, eps, residual_scale)


def add_layer_norm(
    x_BLd: Tensor, residual_BLd: Tensor | None = None, weight_d: Tensor | None = None, bias_d: Tensor | None = None, *,
    eps: float = 1e-5, residual_scale: float = 1.0, x_scale_B: Tensor | None = None,
    out_dtype: torch.dtype | None = None, reuse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Residual addition and layer normalisation in one pass: see ``layer_norm.naive.add_layer_norm``.

    Only GPUs have a form of their own for it; elsewhere torch's own operators are the fast ones. ``reuse`` allows that
    form to write the stream over the residual and the norm over x, when no gradient is asked for; without a residual,
    x itself becomes the stream.
    """
    return dispatch.prefer(
        "add_layer_norm", x_BLd, residual_BLd, weight_d, bias_d, eps=eps, residual_scale=residual_scale,
        x_scale_B=x_scale_B, out_dtype=out_dtype, inplace=reuse,
    )  # fmt: skip


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, as ``torch.nn.functional.linear``, by the faster library on a CPU that has two.

    Large float32 products on a GPU are three TF32 products with float32's error where that gains
    (``linear_layer.gpu_limits``). x (..., n), weight (m, n), bias (m,) -> (..., m).
    """
    if torch.compiler.is_compiling():  # the compiler chooses the product
        return naive_linear.linear(x, weight, bias)
    return dispatch.prefer("linear", x, weight, bias)


def batched_linear(x_GTn: Tensor, weight_Gmn: Tensor, bias_Gm: Tensor | None = None) -> Tensor:
    """``linear`` of each x with its own weight and bias: (G, T, n), (G, m, n), (G, m) -> (G, T, m)."""
    if torch.compiler.is_compiling():
        return naive_linear.batched_linear(x_GTn, weight_Gmn, bias_Gm)
    return dispatch.prefer("batched_linear", x_GTn, weight_Gmn, bias_Gm)
