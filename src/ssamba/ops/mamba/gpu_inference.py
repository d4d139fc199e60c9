"""The mixer's inside without its gate, in inference: z need not be in memory while the scan is.

x, z and y together are the most that a pass over long input holds. A caller that makes z later, a part at a time, has
room for all clips at once, and with them the GPU is full.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.jit import nvrtc
from ssamba.ops.layer_norm import triton
from ssamba.ops.mamba.cuda import gated_output as nvrtc_gated_output
from ssamba.ops.mamba.cuda import projection, scan, scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.triton import gate, gated_output, weights

PIECE_VALUES = 2**24
"""Values of z that exist at once: they stay in a GPU's second-level cache, or nearly."""


def runs_ungated(like: Tensor, A_log_RKEN: Tensor) -> bool:
    """Whether products of ``like`` are bfloat16, and the GPU and the sizes such as the scan by fragments takes."""
    mixed = torch.is_autocast_enabled(like.device.type)
    dtype = torch.get_autocast_dtype(like.device.type) if mixed else like.dtype
    width, states = A_log_RKEN.shape[-2:]
    if dtype != torch.bfloat16 or states != 16 or width % 16 or not like.is_cuda:
        return False
    return nvrtc.multiplies_bfloat16(like.device.index or 0)


def _stays(weight: Tensor, dtype: torch.dtype) -> bool:
    return weight.dtype == dtype and weight.is_contiguous()


def _kinds(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """What the kernels read out_proj and the mixer's parameters as: products in ``dtype``, the rest in float32."""
    wide = torch.float32
    return dtype, wide, wide, dtype, wide, wide, wide, wide


def _new_weights(in_proj: Tensor, others: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Memory for the folded input product's weight and bias, and for those of the others that do not stay."""
    pairs = zip(others, _kinds(dtype), strict=True)
    converted = [w.new_empty(w.shape, dtype=kind) for w, kind in pairs if not _stays(w, kind)]
    return [in_proj.new_empty(shape, dtype=dtype) for shape in (in_proj.shape, in_proj.shape[:-1])] + converted


@torch.library.custom_op("ssamba::gpu_ready_weights", mutates_args=())
def _ready_weights(
    in_proj: Tensor, norm_weight: Tensor, norm_bias: Tensor, out_proj: Tensor, conv_weight: Tensor, conv_bias: Tensor,
    x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor, dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    others = (out_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D)
    made = _new_weights(in_proj, others, dtype)
    sources = [w.contiguous() for w, kind in zip(others, _kinds(dtype), strict=True) if not _stays(w, kind)]
    in_proj, scale, shift = (w.contiguous() for w in (in_proj, norm_weight, norm_bias))
    weights.prepare(in_proj, scale, shift, made[0], made[1], sources, made[2:])
    return made


@_ready_weights.register_fake
def _(in_proj: Tensor, norm_weight: Tensor, norm_bias: Tensor, *rest: Any) -> list[Tensor]:
    return _new_weights(in_proj, rest[:-1], rest[-1])


def ready_weights(
    in_proj_hKEd: Tensor, norm_weight_Kd: Tensor, norm_bias_Kd: Tensor, *others: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """``reference.ready_weights`` in one launch. What has its dtype already comes back as it is."""
    made = iter(_ready_weights(in_proj_hKEd, norm_weight_Kd, norm_bias_Kd, *others, dtype))
    folded = next(made), next(made)
    return *folded, *(w if _stays(w, kind) else next(made) for w, kind in zip(others, _kinds(dtype), strict=True))


def bimamba_ungated(
    x_BLKE: Tensor,
    work: Tensor,
    conv_weight_RKEW: Tensor,
    conv_bias_RKE: Tensor,
    x_proj_RKPE: Tensor,
    dt_proj_RKEr: Tensor,
    dt_bias_RKE: Tensor,
    A_log_RKEN: Tensor,
    D_RKE: Tensor,
) -> Tensor | None:
    """``reference.bimamba_ungated``, or None where only the gated form serves (it needs the scan by fragments).

    ``work`` is memory that the caller no longer needs: the projection is written there when it fits.
    """
    if x_BLKE.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return None
    taps, outputs = conv_weight_RKEW.shape[-1], x_proj_RKPE.shape[2]
    if not scan.usable(x_BLKE, A_log_RKEN, taps, outputs):
        return None
    proj = x_proj_RKPE.to(x_BLKE.dtype)
    shape = Shape(x_BLKE, A_log_RKEN, taps, outputs)
    if not projection.usable(x_BLKE, conv_weight_RKEW, proj):
        return None
    if not scan_mma.usable(shape, {"x": x_BLKE, "p": work}):
        return None
    return _ungated(x_BLKE, work, conv_weight_RKEW, conv_bias_RKE, proj, dt_proj_RKEr, dt_bias_RKE, A_log_RKEN, D_RKE)


@torch.library.custom_op("ssamba::gpu_inner_ungated_", mutates_args=("work",))
def _ungated(
    x: Tensor, work: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor,
    A_log: Tensor, D: Tensor,
) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        small = (w.contiguous() for w in (conv_weight, conv_bias, dt_proj, dt_bias, A_log, D))
        conv_w, conv_b, *rest = scan.in_float32(*small)
        sizes = (x_proj.shape[0] * x_proj.shape[1], *x.shape[:2], x_proj.shape[2])
        count = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        fits = work.dtype == x.dtype and work.is_contiguous() and work.numel() >= count
        out = work.view(-1)[:count].view(sizes) if fits else None
        p_GBLP = projection.conv_proj(x, conv_w, conv_b, x_proj.contiguous(), out)
        return scan.forward(x, None, p_GBLP, conv_w, conv_b, *rest)


@_ungated.register_fake
def _(x: Tensor, work: Tensor, *params: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("ssamba::gpu_gated_output_", mutates_args=("y", "stream", "out"))
def gated_output_(
    y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, out: Tensor, eps: float,
    residual_scale: float | None = None,
) -> None:  # fmt: skip
    """``reference.gated_output_``: in one pass where that serves, else by pieces whose z stays in the cache."""
    with torch.autocast(y.device.type, enabled=False):
        weight, bias, out_proj = (w.to(y.dtype).contiguous() for w in (weight, bias, out_proj))
        if nvrtc_gated_output.usable(y, stream, out, weight, bias, out_proj):
            nvrtc_gated_output.gated_output(y, stream, weight, bias, out_proj, out, eps, residual_scale)
            return
        if gated_output.usable(y, stream):
            gated_output.gated_output(y, stream, weight, bias, out_proj, out, eps, residual_scale)
            return
        pieces = max(1, round(y.numel() / PIECE_VALUES))
        for y_TX, stream_Td, out_Td in zip(*(t.tensor_split(pieces) for t in (y, stream, out)), strict=True):
            gate.gate(y_TX, F.linear(triton.normalise(stream_Td, eps, y.dtype), weight, bias))
            if out.dtype == y.dtype:
                torch.mm(y_TX, out_proj.t(), out=out_Td)
            else:
                out_Td.copy_(y_TX @ out_proj.t())
        if residual_scale is not None:
            triton.forward(out, stream, None, None, None, eps, residual_scale, out.dtype, in_place=True)


@gated_output_.register_fake
def _(
    y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, out: Tensor, eps: float,
    residual_scale: float | None = None,
) -> None:  # fmt: skip
    return None
