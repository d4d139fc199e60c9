"""Gate and output projection for Hopper, launched: kernels/gated_output_sm90.cu. As ``triton.gated_output`` otherwise.

How often weights are loaded bounds the portable form, whose programs have 64 tokens; this one loads them for 256.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda.kernel_args import GATED_OUTPUT_ARGS
from ssamba.ops.mamba.cuda.sources import DTYPE_CODES, MMA_TYPES, defines, unit

_MAX_WIDTH = 192  # of the residual stream, which is held in registers
_TOKENS, _CHANNELS, _STAGES = 128, 64, 3
_THREADS = 384


def usable(y_TX: Tensor, stream_Td: Tensor, out_Td: Tensor, *weights: Tensor) -> bool:
    """Whether the device has ``wgmma`` (compute capability 9.0) and this form takes sizes, types and addresses."""
    width, channels = stream_Td.shape[1], y_TX.shape[1]
    if not y_TX.is_cuda or width > _MAX_WIDTH or width % 64 or channels % _CHANNELS or y_TX.shape[0] == 0:
        return False
    if y_TX.dtype not in MMA_TYPES or out_Td.dtype != y_TX.dtype:
        return False
    if stream_Td.dtype not in (y_TX.dtype, torch.float32):
        return False
    if any(t.data_ptr() % 16 for t in (y_TX, stream_Td, out_Td, *weights)):
        return False
    device = y_TX.device.index or 0
    return torch.cuda.get_device_capability(device) == (9, 0) and nvrtc.available(device)


def gated_output(
    y_TX: Tensor,
    stream_Td: Tensor,
    weight_Xd: Tensor,
    bias_X: Tensor,
    out_proj_dX: Tensor,
    out_Td: Tensor,
    eps: float,
    residual_scale: float | None = None,
) -> None:
    """As ``triton.gated_output.gated_output``; weights and bias in y's dtype, all aligned to 16 bytes."""
    rows, width = stream_Td.shape
    narrow = stream_Td if stream_Td.dtype == y_TX.dtype else out_Td  # a float32 stream is not copied by a tensor map
    boxes = ((y_TX, _TOKENS), (narrow, _TOKENS), (weight_Xd, _CHANNELS // 2), (out_proj_dX, width // 2))
    maps = (nvrtc.make_tensor_map_2d(matrix, height, _CHANNELS) for matrix, height in boxes)
    addresses = (t.data_ptr() for t in (bias_X, stream_Td, out_Td))
    args = GATED_OUTPUT_ARGS.ctype(*maps, *addresses, rows, eps, 0.0 if residual_scale is None else residual_scale)
    macros = defines(
        DTYPE=DTYPE_CODES[y_TX.dtype], D=width, X=y_TX.shape[1], STAGES=_STAGES, THREADS=_THREADS,
        JOIN=int(residual_scale is not None), WIDE=int(stream_Td.dtype == torch.float32),
    )  # fmt: skip
    device = y_TX.device.index or 0
    with nvrtc.on(y_TX):
        run = nvrtc.kernel(unit("gated_output_sm90.cu"), "gated_output", macros, device)
        shared = _STAGES * 2 * _CHANNELS * (2 * width + _TOKENS) + 128 + 2 * y_TX.shape[1]
        pairs = min(-(-rows // (2 * _TOKENS)), torch.cuda.get_device_properties(device).multi_processor_count // 2)
        run((2 * pairs, 1, 1), _THREADS, args, shared)
