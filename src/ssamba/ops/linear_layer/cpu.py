"""The product of a linear layer in float32 through oneDNN, on processors with AVX-512 that are not Intel's.

PyTorch's wheels for x86-64 compute float32 products with MKL, which uses AVX-512 on Intel's processors alone. oneDNN,
which these wheels contain too (they use it for bfloat16), uses it wherever it is: on an AMD EPYC of family 26 it takes
half the time, forward and backward (docs/cpu-scan.md, "Matrix products"). Both compute in float32.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssamba.ops import derivatives
from ssamba.ops.linear_layer import naive

MIN_MULTIPLICATIONS = 1 << 20
"""Multiplications below which the longer way to oneDNN costs as much as it saves."""


def supports(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """None, or why this form is not for these tensors, of one layer or of a batch of them."""
    if torch.compiler.is_compiling():
        return "a graph is traced, whose compiler chooses the product"
    for t in (x, weight, bias):
        if t is not None and (type(t) not in (Tensor, nn.Parameter) or t.dtype != torch.float32 or not t.is_cpu):
            return "only plain float32 tensors on the CPU are taken"
    if x.numel() * weight.shape[-2] < MIN_MULTIPLICATIONS:
        return "the product is small"
    if not (_pays_here() and torch.backends.mkldnn.enabled) or torch.is_autocast_enabled("cpu"):
        return "another library computes the product"
    return None


@functools.cache
def _pays_here() -> bool:
    """Whether this is a processor with AVX-512 on which MKL does not use it, and torch contains oneDNN."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        _product(*torch.zeros(2, 1, 1, dtype=torch.float32, device="cpu"))
    except (AttributeError, RuntimeError, TypeError):
        # The operator is not a public one of torch: a version may lack it, or give it other arguments.
        return False
    return "Intel" not in _vendor()


def _vendor() -> str:
    """``GenuineIntel``, ``AuthenticAMD`` or the like, as the system names the processor; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """The gradients are such products, too, so that they have gradients in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        dy_Tm, x_Tn = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = _where_it_pays(dy, weight.t()) if wants_x else None
        dweight = _where_it_pays(dy_Tm.t(), x_Tn.t()) if wants_weight else None
        return dx, dweight, dy_Tm.sum(0) if wants_bias else None


def _where_it_pays(x: Tensor, weight: Tensor) -> Tensor:
    if derivatives.beyond_backward() or supports(x, weight) is not None:
        return naive.linear(x, weight)
    return linear(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``naive.linear``."""
    if derivatives.wants_gradient(x, weight, bias):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def batched_linear(
    x_GTn: Tensor, weight_Gmn: Tensor, bias_Gm: Tensor | None = None, out_GTm: Tensor | None = None
) -> Tensor:
    """``naive.batched_linear``, one after another; that where a product of them is not taken here."""
    if derivatives.beyond_backward() or supports(x_GTn[0], weight_Gmn[0]) is not None:
        return naive.batched_linear(x_GTn, weight_Gmn, bias_Gm, out_GTm)
    biases = (None,) * len(x_GTn) if bias_Gm is None else bias_Gm
    products = (linear(*each) for each in zip(x_GTn, weight_Gmn, biases, strict=True))
    if out_GTm is None:
        return torch.stack(list(products))
    for out, product in zip(out_GTm, products, strict=True):
        out.copy_(product)
    return out_GTm
