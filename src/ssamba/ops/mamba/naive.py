"""The plain torch form of the mixer's operators: slow, short, and the truth that the fast forms are tested against.

Shape letters of the whole package. A tensor's suffix lists its axes in order: ``x_BLKE`` is (B, L, K, E).

====  ==========================================================================
B     batch: clips
L     tokens of a clip (time steps of the scan)
R     directions of the scan: 0 runs left to right, 1 runs right to left
K     blocks that read the same input (2 in a reference pair)
E     inner channels of one block (2 x width)
N     states of one channel (16); 1 in the rates of tied decays, see ``MixerParams``
W     taps of the depthwise convolution (4)
P     outputs of the input-dependent projection: r + 2 N
r     rank: of dt, of a regression's features
d     width of the model
h     the two inputs of a mixer that one product makes: 0 is x, 1 is the gate z
T     tokens of all clips in one axis: B L
X     channels of all blocks in one axis: K E
G     pairs of direction and block in one axis: R K, at ``rk = r K + k``
====  ==========================================================================

Outside of ``ssamba.ops`` there are further axes, and T is a step along time: the operators know no patch grid.

====  ==========================================================================
Q     patches of a clip, which are its tokens without the prefix: F T
F, T  the patch grid, or features: rows (mel bins) and columns (frames)
M, V  masked patches, visible patches; i and j: masked patches against each other
p     values of a raw patch
C     clips before each is repeated with several masks: B is C times their number
Y     layers of an encoder
S     seconds
H, D  attention heads, width of a head
O     classes
====  ==========================================================================

A digit is an axis of that length; x, m and n are axes of any length.

In kernels a *lane* is one of the threads of a GPU's warp, or one of the numbers of a CPU's vector register; a *tile* is
what one step of a program works on. ``A``, ``B``, ``C``, ``D`` and ``dt`` as names (not as suffixes) are the state
space model's, as in Mamba (arXiv 2312.00752).

Everything is computed in float32, or in float64 when the input is float64; the result has the input's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.mamba.alternating import Block, by_block
from ssamba.ops.mamba.params import MixerParams, expanded_rates


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def conv_silu(x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, alternating: bool = False) -> Tensor:
    """Depthwise causal convolution and SiLU, once for each direction.

    Direction 0 reads positions ``t-W+1 .. t``, direction 1 (anti-causal) ``t .. t+W-1`` with the taps mirrored, which
    is what the causal convolution does on the reversed sequence (docs/reference.md, "Encoder"). With ``alternating`` R
    is 1, and block k has the direction ``k % 2``. Returns ``u_BLRKE``.
    """
    if alternating:
        return by_block(
            lambda k: conv_silu(k.steps(x_BLKE, 2), k.weight(weight_RKEW), k.weight(bias_RKE)), x_BLKE.shape[2], 3
        )
    dtype = _compute_dtype(x_BLKE)
    batch, length, blocks, channels = x_BLKE.shape
    directions, width = weight_RKEW.shape[0], weight_RKEW.shape[-1]
    x_BXL = x_BLKE.to(dtype).permute(0, 2, 3, 1).reshape(batch, blocks * channels, length)
    outputs = []
    for r in range(directions):
        weight_X1W = weight_RKEW[r].to(dtype).reshape(blocks * channels, 1, width)
        bias_X = bias_RKE[r].to(dtype).reshape(blocks * channels)
        pad = (width - 1, 0) if r == 0 else (0, width - 1)
        taps = weight_X1W if r == 0 else weight_X1W.flip(-1)
        u_BXL = F.silu(F.conv1d(F.pad(x_BXL, pad), taps, bias_X, groups=blocks * channels))
        outputs.append(u_BXL.reshape(batch, blocks, channels, length).permute(0, 3, 1, 2))
    return torch.stack(outputs, dim=2).to(x_BLKE.dtype)


def selective_scan(
    u_BLRKE: Tensor,
    dt_BLRKE: Tensor,
    A_RKEN: Tensor,
    B_BLRKN: Tensor,
    C_BLRKN: Tensor,
    D_RKE: Tensor,
    dt_bias_RKE: Tensor,
    z_BLKE: Tensor | None = None,
    alternating: bool = False,
) -> Tensor:
    """Selective scan in both directions, averaged over the directions and gated (Mamba, arXiv 2312.00752, eq. 2 and 4).

    ``delta = softplus(dt + dt_bias)``; ``h[t] = exp(delta A) h[t-1] + delta B u``; ``y[t] = C . h[t] + D u``; then
    ``silu(z) * mean over R of y``. ``A`` is negative; with a last axis of 1 its decays are tied: state n of 1 .. N has
    the rate ``n A``. Without ``z`` there is no gate. With ``alternating`` R is 1, and block k has the direction
    ``k % 2``. Returns ``y_BLKE``.
    """
    if alternating:

        def one_block(k: Block) -> Tensor:
            u, dt, B, C = (k.steps(x, 3) for x in (u_BLRKE, dt_BLRKE, B_BLRKN, C_BLRKN))
            z = None if z_BLKE is None else k.steps(z_BLKE, 2)
            return selective_scan(u, dt, k.weight(A_RKEN), B, C, k.weight(D_RKE), k.weight(dt_bias_RKE), z)

        return by_block(one_block, u_BLRKE.shape[3], 2)
    dtype = _compute_dtype(u_BLRKE)
    u, A, B, C = (x.to(dtype) for x in (u_BLRKE, A_RKEN, B_BLRKN, C_BLRKN))
    A = expanded_rates(A, B.shape[-1])
    delta_BLRKE = F.softplus(dt_BLRKE.to(dtype) + dt_bias_RKE.to(dtype))
    batch, length, directions, blocks, channels = u.shape
    total: Tensor | None = None
    for r in range(directions):
        # A view for each step, of all E channels and N states: what the loop does is then products and sums alone.
        delta_BKE1 = delta_BLRKE[:, :, r].unsqueeze(-1).unbind(1)
        drive_BKE1 = (delta_BLRKE[:, :, r] * u[:, :, r]).unsqueeze(-1).unbind(1)
        B_BK1N = B[:, :, r].unsqueeze(-2).unbind(1)
        C_BKN1 = C[:, :, r].unsqueeze(-1).unbind(1)
        h_BKEN = u.new_zeros(batch, blocks, channels, A.shape[-1])
        steps: list[Tensor] = []
        for t in range(length) if r == 0 else range(length - 1, -1, -1):
            decay_BKEN = torch.exp(delta_BKE1[t] * A[r])
            h_BKEN = torch.addcmul(drive_BKE1[t] * B_BK1N[t], decay_BKEN, h_BKEN)
            steps.append(h_BKEN @ C_BKN1[t])
        y_BLKE = torch.stack(steps if r == 0 else steps[::-1], dim=1).squeeze(-1) + D_RKE[r].to(dtype) * u[:, :, r]
        total = y_BLKE if total is None else total + y_BLKE
    assert total is not None
    out = total / directions
    if z_BLKE is not None:
        out = out * F.silu(z_BLKE.to(dtype))
    return out.to(u_BLRKE.dtype)


def bimamba_inner(x_BLKE: Tensor, z_BLKE: Tensor | None, params: MixerParams, alternating: bool = False) -> Tensor:
    """Everything of the bidirectional mixer between its input and its output projection. Returns ``y_BLKE``.

    convolution + SiLU, the input-dependent projection to (dt, B, C), dt's low-rank expansion, both scans, skip, mean of
    the directions and gate (Vision Mamba, arXiv 2401.09417, algorithm 1; docs/reference.md, "Encoder"). Without ``z``
    there is no gate. With ``alternating`` R is 1, and block k has the direction ``k % 2``.
    """
    u_BLRKE = conv_silu(x_BLKE, params.conv_weight_RKEW, params.conv_bias_RKE, alternating)
    p_BLRKP = torch.einsum("blrke,rkpe->blrkp", u_BLRKE, params.x_proj_RKPE.to(u_BLRKE.dtype))
    dt_BLRKr, B_BLRKN, C_BLRKN = p_BLRKP.split([params.rank, params.states, params.states], dim=-1)
    dt_BLRKE = torch.einsum("blrkp,rkep->blrke", dt_BLRKr, params.dt_proj_RKEr.to(dt_BLRKr.dtype))
    A_RKEN = -torch.exp(params.A_log_RKEN.to(_compute_dtype(params.A_log_RKEN)))
    of_channel = params.D_RKE, params.dt_bias_RKE
    return selective_scan(u_BLRKE, dt_BLRKE, A_RKEN, B_BLRKN, C_BLRKN, *of_channel, z_BLKE, alternating)


def bimamba_inner_packed(
    xz_BLhKE: Tensor, params: MixerParams, alternating: bool = False, bias_hKE: Tensor | None = None,
    keep_states: bool = False,
) -> Tensor:  # fmt: skip
    """``bimamba_inner`` of the two inputs in one tensor.

    ``bias_hKE`` changes no value: xz already has it, added without a gradient (``bias.detach()``), which it gets here.
    ``keep_states`` changes nothing here.
    """
    x_BLKE, z_BLKE = with_bias_gradient(xz_BLhKE, bias_hKE).unbind(2)
    return bimamba_inner(x_BLKE, z_BLKE, params, alternating)


def bimamba_inner_with_work(xz_BLhKE: Tensor, work: Tensor, params: MixerParams, alternating: bool = False) -> Tensor:
    """``bimamba_inner_packed``. ``work`` is memory for the fast forms: this one does not touch it."""
    return bimamba_inner_packed(xz_BLhKE, params, alternating)


def with_bias_gradient(xz_BLhKE: Tensor, bias_hKE: Tensor | None) -> Tensor:
    """xz as it is, differentiable as if ``bias_hKE``, of which xz has the value, were added here."""
    return xz_BLhKE if bias_hKE is None else xz_BLhKE + (bias_hKE - bias_hKE.detach()).to(xz_BLhKE.dtype)


def fold_norm(in_proj_hKEd: Tensor, norm_weight_Kd: Tensor, norm_bias_Kd: Tensor) -> tuple[Tensor, Tensor]:
    """The input product's ``weight_hKEd`` and ``bias_hKE`` with each block's LayerNorm scale and shift folded in."""
    return in_proj_hKEd * norm_weight_Kd[:, None], (in_proj_hKEd * norm_bias_Kd[:, None]).sum(-1)


def ready_weights(
    in_proj_hKEd: Tensor, norm_weight_Kd: Tensor, norm_bias_Kd: Tensor, out_proj_dKE: Tensor, params: MixerParams,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, MixerParams]:  # fmt: skip
    """A pair's weights as ``bimamba_ungated`` and ``gated_output_`` read them in inference with products in ``dtype``.

    What ``fold_norm`` makes, then ``out_proj`` and the mixer's parameters. Those of products are in ``dtype``, the rest
    in float32.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    folded = fold_norm(in_proj_hKEd.to(wide), norm_weight_Kd.to(wide), norm_bias_Kd.to(wide))
    weight, bias, out_proj = (w.to(dtype) for w in (*folded, out_proj_dKE))
    return weight, bias, out_proj, params.to(wide)._replace(x_proj_RKPE=params.x_proj_RKPE.to(dtype))


def ready_weights_of_pairs(
    like: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, MixerParams]], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor, Tensor, MixerParams]]:
    """``ready_weights`` of each of ``pairs``, its arguments. ``like``: a tensor on their device."""
    return [ready_weights(*pair, dtype) for pair in pairs]


def bimamba_ungated(x_BLKE: Tensor, work: Tensor, params: MixerParams, alternating: bool = False) -> Tensor:
    """``bimamba_inner`` without its gate. ``work`` is memory for the fast forms: this one does not touch it."""
    return bimamba_inner(x_BLKE, None, params, alternating)


def gated_output_(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, out_Td: Tensor,
    eps: float, residual_scale: float | None = None, normed: bool = False,
) -> None:  # fmt: skip
    """``out = (y silu(z)) out_proj^T`` with ``z = LayerNorm(stream) weight^T + bias``, made here. Overwrites y.

    ``normed``: out holds ``LayerNorm(stream)`` at the beginning, so that it need not be computed again.

    With a ``residual_scale`` the product joins the stream, and out is what the next step reads:
    ``stream = residual_scale stream + (y silu(z)) out_proj^T``, then ``out = LayerNorm(stream)``.
    """
    normal_Td = out_Td if normed else F.layer_norm(stream_Td, stream_Td.shape[-1:], eps=eps)
    z_TX = F.linear(normal_Td.to(weight_Xd.dtype), weight_Xd, bias_X)
    y_TX.mul_(F.silu(z_TX.to(_compute_dtype(z_TX))))
    if residual_scale is not None:
        return output_to_stream_(y_TX, out_proj_dX, stream_Td, out_Td, eps, residual_scale)
    out_Td.copy_(F.linear(y_TX, out_proj_dX))


def gated_output_to_input_(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, next_weight_Xd: Tensor,
    next_bias_X: Tensor, x_TX: Tensor, eps: float, residual_scale: float,
) -> None:  # fmt: skip
    """``gated_output_`` that joins the stream, and the next pair's x in place of the norm. Overwrites y.

    ``stream = residual_scale stream + (y silu(z)) out_proj^T``, then ``x = LayerNorm(stream) next_weight^T +
    next_bias``. x may be any memory but that of the other tensors.
    """
    normal_Td = y_TX.new_empty(stream_Td.shape)
    tensors = y_TX, stream_Td, weight_Xd, bias_X, out_proj_dX, normal_Td
    gated_output_(*tensors, eps, residual_scale)
    x_TX.copy_(F.linear(normal_Td.to(next_weight_Xd.dtype), next_weight_Xd, next_bias_X))


def output_to_stream_(
    y_TX: Tensor, out_proj_dX: Tensor, stream_Td: Tensor, out_Td: Tensor, eps: float, residual_scale: float
) -> None:
    """``stream = residual_scale stream + y out_proj^T``, then ``out = LayerNorm(stream)``, both in place."""
    product_Td = F.linear(y_TX, out_proj_dX)
    stream_Td.copy_(torch.add(product_Td.to(stream_Td.dtype), stream_Td, alpha=residual_scale))
    out_Td.copy_(F.layer_norm(stream_Td, stream_Td.shape[-1:], eps=eps))


# ---- small steps of a backward pass on a GPU


def add_parts(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """``total = parts.sum(0)`` for each pair of ``parts`` (S, O, H, W) and ``total`` (O, H, W), added in float32."""
    for parts, total in sums:
        total.copy_(parts.sum(0, dtype=_compute_dtype(parts)))


def spread_states(p_GBLP: Tensor, wide_GBLP: Tensor, rank: int) -> None:
    """Copies dt, B and C (2 N columns after ``rank``) to where they lie with more states, which are zero."""
    wide_GBLP[..., :rank] = p_GBLP[..., :rank]
    of_states_GBL2N, to = (p[..., rank:].unflatten(-1, (2, -1)) for p in (p_GBLP, wide_GBLP))
    to.zero_()
    to[..., : of_states_GBL2N.shape[-1]] = of_states_GBL2N


def copy_padded(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copies each (G, m, n) into the beginning of another's rows and columns; what is left of those is zero."""
    for source, target in pairs:
        target.zero_()
        target[:, : source.shape[1], : source.shape[2]] = source
