# mypy: disable-error-code="no-untyped-def"
"""The product that makes z, with the gate as its epilogue, at any width: z is never in memory.

A program owns some tokens and channels of y. It fetches them before its product, so that they arrive while that runs,
and multiplies them by silu of what came out. Operands come through tensor maps: compute capability 9.0 or later.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit.limits import dynamic_limit
from ssamba.ops.mamba.triton.gated_output import _silu

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None


class GateTile(NamedTuple):
    """What a program computes, and how."""

    tokens: int = 128
    channels: int = 128
    depth: int = 64
    """Values of the width that are multiplied at a time: 128 bytes, which tensor maps fetch without bank conflicts."""
    warps: int = 4
    stages: int = 4
    """Two programs of this size share a multiprocessor: the epilogue of one runs during the product of the other."""

    def shared(self) -> int:
        """Bytes of shared memory: 16-bit operands of every stage, and barriers."""
        return 2 * self.stages * self.depth * (self.tokens + self.channels) + 1024


@triton.jit
def _gate_product(
    n_map, w_map, y_ptr, bias_ptr, rows, channels, width,
    TANH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # Programs that run at once have all channels of a few tokens: the second-level cache holds what they read again.
    across = tl.cdiv(channels, BN)
    first_row = tl.program_id(0) // across * BM
    first_column = tl.program_id(0) % across * BN
    row, column = tl.arange(0, BM), first_column + tl.arange(0, BN)
    ok = (row < rows - first_row)[:, None] & (column < channels)[None, :]
    at = y_ptr + first_row.to(tl.int64) * channels + (row[:, None] * channels + column[None, :])
    y = tl.load(at, mask=ok, other=0.0)
    bias = tl.load(bias_ptr + column, mask=column < channels, other=0.0).to(tl.float32)
    z = tl.zeros((BM, BN), tl.float32)
    for k in range(0, width, BK):
        z = tl.dot(n_map.load([first_row, k]), w_map.load([first_column, k]).T, z)
    gate = _silu(z + bias[None, :], TANH)
    tl.store(at, (y.to(tl.float32) * gate).to(y_ptr.dtype.element_ty), mask=ok)


def _tile() -> GateTile:
    """``GateTile()``, or what ``SSAMBA_GATE`` says."""
    return GateTile(*(environment.gate_tile() or ()))


def usable(y_TX: Tensor, stream_Td: Tensor, out_Td: Tensor, *weights: Tensor) -> bool:
    """Whether the device has tensor maps and this form takes sizes, types and addresses.

    The normalised stream must fit in ``out_Td``: no other memory is taken.
    """
    half = y_TX.dtype in (torch.bfloat16, torch.float16) and out_Td.dtype == y_TX.dtype
    if TensorDescriptor is None or not half or environment.gate_tile() == () or y_TX.shape[0] == 0:
        return False
    if stream_Td.shape[1] % 8 or y_TX.shape[1] % 8 or any(t.data_ptr() % 16 for t in (y_TX, out_Td, *weights)):
        return False
    if not y_TX.is_cuda:
        return environment.interprets_triton()
    device = y_TX.device.index or 0
    maps = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
    return maps and _tile().shared() <= dynamic_limit(device)


def gate_product(y_TX: Tensor, normal_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor) -> None:
    """``y *= silu(normal weight^T + bias)``, in place; all contiguous and of one dtype, as ``usable`` says."""
    rows, width = normal_Td.shape
    channels, tile = y_TX.shape[1], _tile()
    assert all(t.is_contiguous() for t in (y_TX, normal_Td, weight_Xd, bias_X))
    maps = (
        TensorDescriptor.from_tensor(matrix, [height, tile.depth])
        for matrix, height in ((normal_Td, tile.tokens), (weight_Xd, tile.channels))
    )
    programs = triton.cdiv(rows, tile.tokens) * triton.cdiv(channels, tile.channels)
    tanh = y_TX.is_cuda and y_TX.dtype == torch.bfloat16  # right to 2^-11: less than rounding to bfloat16 takes
    if programs:
        _gate_product[(programs,)](
            *maps, y_TX, bias_X, rows, channels, width, TANH=tanh,
            BM=tile.tokens, BN=tile.channels, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
