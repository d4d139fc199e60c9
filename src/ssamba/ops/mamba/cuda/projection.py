"""Convolution, SiLU and the projection to (dt, B, C) in one pass, launched: kernels/conv_projection.cu."""

from __future__ import annotations

from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda.kernel_args import CONV_PROJECTION_ARGS
from ssamba.ops.mamba.cuda.sources import DTYPE_CODES, MMA_TYPES, defines, unit

_CHANNELS = 64
_MAX_OUTPUTS = 96


def usable(x_BLKE: Tensor, weight_RKEW: Tensor, x_proj_RKPE: Tensor) -> bool:
    """Whether this form takes these shapes: 8 channels of a token must lie in 16 aligned bytes."""
    outputs, width = x_proj_RKPE.shape[2:]
    if x_BLKE.dtype not in MMA_TYPES or width % 16 or weight_RKEW.shape[-1] != 4 or x_BLKE.numel() == 0:
        return False
    if outputs % 2 or outputs > _MAX_OUTPUTS or x_BLKE.shape[0] * x_BLKE.shape[2] >= 65536:
        return False
    if any(t.data_ptr() % 16 for t in (x_BLKE, weight_RKEW, x_proj_RKPE)) or any(
        stride % 8 for stride in x_BLKE.stride()[:3]
    ):
        return False
    if not x_BLKE.is_cuda:
        return False
    return nvrtc.multiplies_bfloat16(x_BLKE.device.index or 0)


def conv_proj(
    x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, proj_RKPE: Tensor, out: Tensor | None = None,
    alternating: bool = False,
) -> Tensor:  # fmt: skip
    """``p_GBLP = silu(conv(x)) proj^T``; the taps and the bias in float32. ``out`` takes it."""
    batch, length, blocks, width = x_BLKE.shape
    directions, outputs = weight_RKEW.shape[0], proj_RKPE.shape[2]
    p = x_BLKE.new_empty(directions * blocks, batch, length, outputs) if out is None else out
    weight, bias, proj = weight_RKEW.float(), bias_RKE.float(), proj_RKPE.to(x_BLKE.dtype)
    args = CONV_PROJECTION_ARGS.ctype(*(t.data_ptr() for t in (x_BLKE, proj, weight, bias, p)), *x_BLKE.stride()[:3])
    # Clips that lie one behind the other are one sequence: blocks of tokens then need not end with each.
    together = x_BLKE.stride(0) == length * x_BLKE.stride(1) and batch * length < 2**31
    sequences, tokens_each = (1, batch * length) if together else (batch, length)
    args.B, args.L, args.K, args.E, args.clip = sequences, tokens_each, blocks, width, length
    wide = (4, 3) if directions == 1 else (8, 1)
    warps, blocks_at_once = environment.projection_launch() or ((4, 4) if outputs <= 64 else wide)
    tiles, tokens = -(-outputs // 16) * 2, 32 * warps // directions
    shared = 4 * (_CHANNELS + 8) * (tokens + 6 + directions * tiles * 8) + 2 * 20 * _CHANNELS * directions
    macros = defines(
        DTYPE=DTYPE_CODES[x_BLKE.dtype], P=outputs, DIRS=directions, WARPS=warps, MIN_BLOCKS=blocks_at_once,
        ALTERNATING=int(alternating),
    )  # fmt: skip
    with nvrtc.on(x_BLKE):
        run = nvrtc.kernel(unit("conv_projection.cu"), "conv_proj", macros, x_BLKE.device.index or 0)
        run((-(-tokens_each // tokens), sequences * blocks, 1), 32 * warps, args, shared)
    return p
