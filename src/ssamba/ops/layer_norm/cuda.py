"""Residual addition and layer normalisation in CUDA C++, forward, launched: ops/cuda/kernels/layer_norm.cu.

The same functions as ``ssamba.ops.layer_norm.triton``, of which a process without gradients then needs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssamba.ops.cuda.kernel_args import LAYER_NORM_ARGS
from ssamba.ops.cuda.sources import TYPE_CODES, defines, unit, usable, values_at_once
from ssamba.ops.jit import nvrtc

__all__ = ["forward", "normalise", "usable"]

_WARPS = 4  # of a block: 513 rows are 129 blocks, no more than an H100 has multiprocessors
_HELD = 32  # values of a row that a lane keeps in registers at most


def forward(
    x_BLd: Tensor,
    residual_BLd: Tensor | None,
    x_scale_B: Tensor | None,
    weight_d: Tensor | None,
    bias_d: Tensor | None,
    eps: float,
    residual_scale: float,
    out_dtype: torch.dtype,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``ssamba.ops.layer_norm.triton.forward``. In place, the statistics are not written."""
    if in_place and (residual_BLd is None or not x_BLd.is_contiguous() or not residual_BLd.is_contiguous()):
        raise ValueError("in place, x and the residual must be contiguous")
    x, residual = x_BLd.contiguous(), None if residual_BLd is None else residual_BLd.contiguous()
    factor = None if x_scale_B is None else x_scale_B.float().contiguous()
    maps = _of_one_type(weight_d, bias_d)
    if in_place and residual is not None:
        out, total = x, residual
        mean = rstd = torch.empty(0, device=x.device, dtype=torch.float32)
        _launch(x, residual, factor, maps, eps, residual_scale, out, total, None)
    else:
        out = torch.empty_like(x, dtype=out_dtype)
        total = torch.empty_like(x if residual is None else residual)
        mean = torch.empty(x.shape[:-1], device=x.device, dtype=torch.float32)
        rstd = torch.empty_like(mean)
        _launch(x, residual, factor, maps, eps, residual_scale, out, total, (mean, rstd))
    return out, total, mean, rstd


def normalise(x_Td: Tensor, eps: float, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """LayerNorm(x) of contiguous tokens in ``dtype``, without weights or gradients; written to ``out`` if given."""
    out = torch.empty_like(x_Td, dtype=dtype) if out is None else out
    _launch(x_Td, None, None, None, eps, 1.0, out, None, None)
    return out


def _of_one_type(weight_d: Tensor | None, bias_d: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if weight_d is None or bias_d is None:
        return None
    if weight_d.dtype != bias_d.dtype:
        weight_d, bias_d = weight_d.float(), bias_d.float()
    return weight_d.contiguous(), bias_d.contiguous()


def _launch(
    x: Tensor, residual: Tensor | None, factor: Tensor | None, maps: tuple[Tensor, Tensor] | None, eps: float,
    residual_scale: float, out: Tensor, total: Tensor | None, statistics: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    width = x.shape[-1]
    rows = x.numel() // max(width, 1)
    if not rows:
        return
    weight, bias = maps or (None, None)
    values = values_at_once(width, x, residual, weight, bias, out, total)
    pieces = -(-width // (32 * values))
    stream = residual if residual is not None else total if total is not None else x
    macros = defines(
        X_DTYPE=TYPE_CODES[x.dtype], S_DTYPE=TYPE_CODES[stream.dtype], O_DTYPE=TYPE_CODES[out.dtype],
        A_DTYPE=0 if weight is None else TYPE_CODES[weight.dtype],
        RESIDUAL=int(residual is not None), FACTOR=int(factor is not None), AFFINE=int(weight is not None),
        SUM=int(total is not None), STATISTICS=int(statistics is not None), VALUES=values,
        PIECES=pieces if pieces * values <= _HELD else 0, WARPS=_WARPS,
    )  # fmt: skip
    mean, rstd = statistics or (None, None)
    tensors = x, residual, weight, bias, factor, out, total, mean, rstd
    addresses = (None if t is None else t.data_ptr() for t in tensors)
    length = x.shape[1] if x.dim() == 3 else 1
    args = LAYER_NORM_ARGS.ctype(*addresses, rows, length, width, eps, residual_scale)
    with nvrtc.on(x):
        run = nvrtc.kernel(unit("layer_norm.cu"), "add_layer_norm", macros, x.device.index or 0)
        run((-(-rows // _WARPS), 1, 1), 32 * _WARPS, args)
