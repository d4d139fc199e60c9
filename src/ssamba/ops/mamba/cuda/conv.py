"""Backward of the convolution and its SiLU, launched: kernels/conv_backward.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda.kernel_args import CONV_BACKWARD_ARGS
from ssamba.ops.mamba.cuda.sources import DTYPE_CODES, defines, unit

_THREADS = 64
_STEPS = {False: 4, True: 8}  # of an iteration: with one direction there are registers for more loads at once
_ENOUGH_THREADS = 256 * 1024  # more would be too many partial sums, fewer would have a long tail


def _pairs(*tensors: Tensor) -> bool:
    """Whether two neighbouring channels can be read at once."""
    return all(
        t.shape[-1] % 2 == 0 and all(s % 2 == 0 for s in t.stride()[:3]) and t.data_ptr() % (2 * t.element_size()) == 0
        for t in tensors
    )


def backward(
    x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, du_GBLE: Tensor, dx_BLKE: Tensor,
    alternating: bool = False, token_sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Writes ``dx``; returns ``u_GBLE`` and, in parts that are to be added, in float32, the gradients of taps and,
    behind them, bias, ``(parts, R, K, taps + 1, E)``, and with ``token_sums`` the sums of ``dx``, ``(parts, K, E)``.
    """
    batch, length, blocks, width = x_BLKE.shape
    directions, taps = weight_RKEW.shape[0], weight_RKEW.shape[-1]
    each = 2 if _pairs(x_BLKE, dx_BLKE, du_GBLE) else 1
    u = torch.empty_like(du_GBLE)
    parts = max(1, min(-(-length // 32), -(-_ENOUGH_THREADS * each // (2 * batch * blocks * width))))
    steps = -(-length // parts)
    parts = -(-length // steps)
    rows = taps + 1 + token_sums
    part = torch.empty(parts * batch, directions, blocks, rows, width, device=u.device, dtype=torch.float32)
    weight, bias = weight_RKEW.float(), bias_RKE.float()
    args = CONV_BACKWARD_ARGS.ctype(*(t.data_ptr() for t in (x_BLKE, du_GBLE, u, dx_BLKE, weight, bias, part)))
    for axis, stride, dstride in zip("btk", x_BLKE.stride(), dx_BLKE.stride(), strict=False):
        setattr(args, f"x{axis}", stride)
        setattr(args, f"dx{axis}", dstride)
    args.B, args.L, args.K, args.E, args.steps = batch, length, blocks, width, steps
    macros = defines(
        DTYPE=DTYPE_CODES[x_BLKE.dtype], W=taps, DIRS=directions, V=each, STEPS=_STEPS[alternating], THREADS=_THREADS,
        ALTERNATING=int(alternating), **({"TOKEN_SUMS": 1} if token_sums else {}),
    )  # fmt: skip
    with nvrtc.on(x_BLKE):
        run = nvrtc.kernel(unit("conv_backward.cu"), "conv_backward", macros, x_BLKE.device.index or 0)
        run((-(-width // (each * _THREADS)), parts, batch * blocks), _THREADS, args)
    return u, part[..., : taps + 1, :], part[:, 0, :, taps + 1] if token_sums else None
