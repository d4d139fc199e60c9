"""What a GPU's forms of an input product and its folded weights take; asking imports no kernels."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ssamba.ops import derivatives, environment

MIN_VALUES = 1 << 22
"""Values of the product below which torch's sum of columns is as fast."""
MIN_MULTIPLICATIONS = 1 << 30
"""Multiplications of a float32 product below which torch's own, 40 us on an H100, is as fast or nearly."""
MIN_RESULTS = 1 << 20
"""Values of a result below which too few programs share the work, unless each is a long sum."""
MIN_LONG = 4096
"""Values of a sum from which on it may be cut into parts."""
MAX_LONG_VALUES = 1 << 26
"""Values of the second operand of long sums above which torch's own is as fast: splitting it takes too much memory."""
FAST_TF32 = ((8, 0), (9, 0))
"""Compute capabilities whose tensor cores multiply TF32 at least eight times as fast as the others float32 (A100,
H100): three such products gain. Elsewhere TF32 is at most four times as fast (8.6, 8.9, 12.0), or this form has never
run (10.0)."""


def supports(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """None, or why ``ssamba.ops.mamba.gpu_input.linear`` is not for these tensors."""
    if supports_product(x, weight, bias) is None:
        return None
    # Also where the mixer gives the bias's gradient: that of the weight is the same product then.
    if bias is None or not derivatives.wants_gradient(weight, bias):
        return "only layers with a bias in training have a form of their own"
    if not x.is_cuda and not environment.interprets_triton():
        return "the tensors are not on a GPU"
    device = x.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if any(t.dtype != kind for t in (x, weight, bias)) or kind == torch.float64:
        return "torch converts the tensors"
    if x.numel() // max(1, x.shape[-1]) * weight.shape[0] < MIN_VALUES:
        return "the product is small"
    return None


def supports_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """None, or why ``ssamba.ops.linear_layer.gpu`` does not compute ``x @ weight.T + bias``: the rule for float32.

    Plain float32 tensors on a GPU of ``FAST_TF32``; ``MIN_MULTIPLICATIONS``; ``MIN_RESULTS`` or sums of ``MIN_LONG``;
    neighbours in memory (the last axis of what is not a transposed matrix) in multiples of eight. Not under autocast,
    and not where torch has been allowed to multiply float32 as TF32: who asked for that gets it.
    """
    for t in (x, weight, bias):
        if t is not None and (type(t) not in (Tensor, nn.Parameter) or t.dtype != torch.float32):
            return "only plain float32 tensors are taken"
    if not x.is_cuda and not environment.interprets_triton():
        return "the tensors are not on a GPU"
    if _small(x.numel() // max(1, x.shape[-1]), *weight.shape) or _neighbours(x) % 8 or _neighbours(weight) % 8:
        return "the product is small or a very long sum, or its rows do not begin at multiples of eight"
    if torch.is_autocast_enabled(x.device.type) or environment.fp32_products()[0] == "torch":
        return "torch's own product is asked for"
    if _multiplies_tf32():
        return "torch may multiply float32 as TF32"
    if x.is_cuda and not _gains(x.device.index or 0):
        return "three TF32 products gain nothing on this GPU"
    return None


def supports_batch(x_GTn: Tensor, weight_Gmn: Tensor, bias_Gm: Tensor | None = None) -> str | None:
    """The same of ``batched_linear``, where each layer's product must be of that kind."""
    return supports_product(x_GTn[0], weight_Gmn[0], None if bias_Gm is None else bias_Gm[0])


def _small(rows: int, columns: int, depth: int) -> bool:
    few = rows * columns < MIN_RESULTS and depth < MIN_LONG
    return few or too_long(columns, depth) or rows * columns * depth < MIN_MULTIPLICATIONS


def too_long(columns: int, depth: int) -> bool:
    """Whether a second operand of long sums has more than ``MAX_LONG_VALUES`` values."""
    return depth >= MIN_LONG and columns * depth > MAX_LONG_VALUES


def _neighbours(matrix: Tensor) -> int:
    """Values that lie next to each other."""
    transposed = matrix.dim() == 2 and matrix.stride(0) == 1 and matrix.stride(1) != 1
    return matrix.shape[0 if transposed else -1]


def _multiplies_tf32() -> bool:
    """Whether ``allow_tf32``, ``set_float32_matmul_precision`` or their successors let torch round to TF32."""
    settings = torch.backends.cuda.matmul
    precision = getattr(settings, "fp32_precision", None)  # torch 2.9
    return settings.allow_tf32 if precision is None else precision == "tf32"


@functools.cache
def _gains(device: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) in FAST_TF32


def supports_fold(in_proj: Tensor, *of_norm: Tensor) -> str | None:
    """None, or why ``ssamba.ops.mamba.gpu_input.fold_norm`` is not for these tensors."""
    if not in_proj.is_cuda and not environment.interprets_triton():
        return "the tensors are not on a GPU"
    if not derivatives.wants_gradient(in_proj, *of_norm):
        return "the GPU's form is for training"
    return "float64 is computed by the reference form only" if in_proj.dtype == torch.float64 else None
