"""Gate and output projection for Hopper, launched: kernels/gated_output_sm90.cu. As ``triton.gated_output`` otherwise.

How often weights are loaded bounds the portable form, whose programs have 64 tokens; this one loads them for 256.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda.kernel_args import GATED_OUTPUT_ARGS, GATED_OUTPUT_NEXT_ARGS
from ssamba.ops.mamba.cuda.sources import DTYPE_CODES, MMA_TYPES, defines, unit

_MAX_WIDTH = 192  # of the residual stream, which is held in registers
_TOKENS, _CHANNELS, _STAGES = 128, 64, 3
_THREADS = 384
_CONSUMER_WARPS = 8
_NEXT_CHANNELS = 128  # of the next input, at a time; two turns follow each other


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


def makes_next_input(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, next_weight_Xd: Tensor,
    next_bias_X: Tensor, x_TX: Tensor,
) -> bool:  # fmt: skip
    """Whether ``gated_output_to_input`` takes these: as ``usable``, and ``SSAMBA_GATE`` allows it."""
    if not environment.makes_next_input() or y_TX.shape[1] % (2 * _NEXT_CHANNELS):
        return False
    if x_TX.shape != y_TX.shape or next_weight_Xd.shape != weight_Xd.shape:
        return False
    return usable(y_TX, stream_Td, x_TX, weight_Xd, bias_X, out_proj_dX, next_weight_Xd, next_bias_X)


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
    maps = _maps(y_TX, stream_Td, weight_Xd, out_proj_dX)
    addresses = (t.data_ptr() for t in (bias_X, stream_Td, out_Td))
    scale = 0.0 if residual_scale is None else residual_scale
    args = GATED_OUTPUT_ARGS.ctype(*maps, *addresses, stream_Td.shape[0], eps, scale)
    _launch(args, y_TX, stream_Td, 128 + 2 * y_TX.shape[1], residual_scale is not None)


def gated_output_to_input(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, next_weight_Xd: Tensor,
    next_bias_X: Tensor, x_TX: Tensor, eps: float, residual_scale: float,
) -> None:  # fmt: skip
    """``naive.gated_output_to_input_``, y as it is; weights and biases in y's dtype, all aligned to 16 bytes."""
    maps = _maps(y_TX, stream_Td, weight_Xd, out_proj_dX)
    of_next = nvrtc.make_tensor_map_2d(next_weight_Xd, _NEXT_CHANNELS // 2, _CHANNELS)
    addresses = (t.data_ptr() for t in (bias_X, next_bias_X, stream_Td, x_TX))
    args = GATED_OUTPUT_NEXT_ARGS.ctype(*maps, of_next, *addresses, stream_Td.shape[0], eps, residual_scale)
    _launch(args, y_TX, stream_Td, 128 + 4 * y_TX.shape[1] + 2048 * _CONSUMER_WARPS, True, NEXT=1)


def _maps(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, out_proj_dX: Tensor
) -> list[ctypes.Array[ctypes.c_uint64]]:
    # A float32 stream is not copied by a tensor map: any matrix of 16-bit values stands for it.
    narrow = stream_Td if stream_Td.dtype == y_TX.dtype else weight_Xd
    boxes = ((y_TX, _TOKENS), (narrow, _TOKENS), (weight_Xd, _CHANNELS // 2), (out_proj_dX, stream_Td.shape[1] // 2))
    return [nvrtc.make_tensor_map_2d(matrix, height, _CHANNELS) for matrix, height in boxes]


def _launch(args: ctypes.Structure, y_TX: Tensor, stream_Td: Tensor, more_shared: int, join: bool, **more: int) -> None:
    """``more_shared``: bytes of shared memory behind the stages; ``more``: macros."""
    rows, width = stream_Td.shape
    macros = defines(
        DTYPE=DTYPE_CODES[y_TX.dtype], D=width, X=y_TX.shape[1], STAGES=_STAGES, THREADS=_THREADS, JOIN=int(join),
        WIDE=int(stream_Td.dtype == torch.float32), **more,
    )  # fmt: skip
    device = y_TX.device.index or 0
    with nvrtc.on(y_TX):
        run = nvrtc.kernel(unit("gated_output_sm90.cu"), "gated_output", macros, device)
        shared = _STAGES * 2 * _CHANNELS * (2 * width + _TOKENS) + more_shared
        pairs = min(-(-rows // (2 * _TOKENS)), torch.cuda.get_device_properties(device).multi_processor_count // 2)
        run((2 * pairs, 1, 1), _THREADS, args, shared, True)
