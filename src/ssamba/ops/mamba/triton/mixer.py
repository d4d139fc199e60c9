"""The mixer from the portable Triton kernels: u and dt lie in memory between the convolution and the scan.

A backend's mixer is a module of these three functions (row "mixer" of ``dispatch.TABLE``); ``ssamba.ops.mamba.gpu``
makes torch operators of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssamba.ops.mamba.params import MixerParams
from ssamba.ops.mamba.triton import conv, scan
from ssamba.ops.mamba.triton.conv_backward import backward


def forward(
    x_BLKE: Tensor, z_BLKE: Tensor, params: MixerParams, alternating: bool = False, keep_states: bool = False,
    work: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """``y_BLKE`` and the projection ``p_GBLP``, which the backward starts from. ``params`` are contiguous.

    With ``keep_states`` also states of the scan that ``scan_backward`` would otherwise compute again, or None, where
    the scan does not save them on the way, as this one. ``work`` is memory that other forms put the projection in; here
    that has its own.
    """
    params = params.expanded()
    p_GBLP = conv.conv_proj(x_BLKE, params.conv_weight_RKEW, params.conv_bias_RKE, params.x_proj_RKPE, alternating)
    u_GBLE, dt_GBLE = _expand(x_BLKE, p_GBLP, params, alternating)
    inputs = u_GBLE, dt_GBLE, p_GBLP, z_BLKE, params.A_log_RKEN, params.D_RKE, params.dt_bias_RKE
    return scan.forward(*inputs, alternating=alternating)[0], p_GBLP, None


def scan_backward(
    dy_BLKE: Tensor,
    x_BLKE: Tensor,
    z_BLKE: Tensor,
    y_BLKE: Tensor,
    p_GBLP: Tensor,
    params: MixerParams,
    dz_BLKE: Tensor,
    alternating: bool = False,
    token_sums: bool = False,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Writes ``dz``; returns ``du_GBLE``, ``ddt_GBLE`` of the raw dt, ``dBC_xGBL2N``, ``dA_log_xRKEN`` (of tied
    decays with one value a channel), (dD, ddt_bias) ``_xRK2E`` and, with ``token_sums``, those of ``dz`` over clips and
    tokens, ``_xKE``, added before they are rounded: these four in parts to be summed. ``y`` is what ``forward``
    returned, and so are ``states``, of which this form has none.
    """
    tied, params = params.tied, params.expanded()
    u_GBLE, dt_GBLE = _expand(x_BLKE, p_GBLP, params, alternating)
    inputs = u_GBLE, dt_GBLE, p_GBLP, z_BLKE, params.A_log_RKEN, params.D_RKE, params.dt_bias_RKE
    (batch, _, blocks, width), directions = x_BLKE.shape, params.directions
    dz_sums_BRKE = None
    if token_sums:
        dz_sums_BRKE = torch.empty(batch, directions, blocks, width, device=x_BLKE.device, dtype=torch.float32)
    _, checkpoints = scan.forward(*inputs, dy_BLKE, dz_BLKE, alternating, dz_sums_BRKE)
    assert checkpoints is not None
    du, ddt, dbc, da_log_xRKEN, dvec = scan.backward(*inputs, checkpoints, dy_BLKE, alternating)
    # log((n + 1) a) is the sum of log(n + 1) and log a, so the gradient of log a is that of all states together.
    da_log_xRKEN = da_log_xRKEN.sum(-1, keepdim=True) if tied else da_log_xRKEN
    return du, ddt, dbc, da_log_xRKEN, dvec, None if dz_sums_BRKE is None else dz_sums_BRKE.flatten(0, 1)


def conv_backward(
    x_BLKE: Tensor, params: MixerParams, du_GBLE: Tensor, dx_BLKE: Tensor, alternating: bool = False,
    token_sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Writes ``dx``; returns ``u_GBLE`` and the gradients of the taps and the bias. ``du`` is used up.

    The gradients are one tensor of parts to be summed, (x, R, K, W + 1, E), the bias after the taps. With
    ``token_sums`` the sums of ``dx`` over clips and tokens are another, (x, K, E), added before they are rounded.
    """
    weights = params.conv_weight_RKEW, params.conv_bias_RKE
    return backward(x_BLKE, *weights, du_GBLE, dx_BLKE, alternating, token_sums)


def _expand(x_BLKE: Tensor, p_GBLP: Tensor, params: MixerParams, alternating: bool) -> tuple[Tensor, Tensor]:
    """``u_GBLE`` and the raw ``dt_GBLE`` in memory, as the portable scan reads them."""
    u_GBLE = conv.conv_silu(x_BLKE, params.conv_weight_RKEW, params.conv_bias_RKE, alternating)
    dt_proj_GrE = params.dt_proj_RKEr.flatten(0, 1).to(x_BLKE.dtype).transpose(1, 2)
    dt_GTE = p_GBLP.flatten(1, 2)[..., : params.rank] @ dt_proj_GrE
    return u_GBLE, dt_GTE.view(u_GBLE.shape)
