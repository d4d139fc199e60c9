"""Float32 products by three TF32 products, in Triton's interpreter; test_fp32_products.py runs it."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
import torch
import triton_arrays  # noqa: F401  (makes the interpreter take NumPy's arrays)
from fp32_cases import CASES, SPECIAL, check_against_torch, check_special, draw, scaled_cases
from torch import Tensor
from triton.runtime import interpreter

from ssamba import ops
from ssamba.ops import dispatch
from ssamba.ops.linear_layer import gpu, gpu_limits
from ssamba.ops.linear_layer import naive as naive_linear
from ssamba.ops.linear_layer.module import LinearLayer
from ssamba.ops.linear_layer.triton import ProductTile, _parts, _tile
from ssamba.ops.mamba import gpu_input

torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is full of NaN
np.seterr(all="ignore")
SMALL = "rows=32,columns=32"
FORMS = (f"split,{SMALL}", f"fused,{SMALL}", f"split,{SMALL},parts=3", f"fused,{SMALL},parts=2", "")


def tensor_core_dot(_: object, a: Any, b: Any, sums: Any, *rest: object) -> interpreter.TensorHandle:
    """Products of TF32 as tensor cores of the A100 add them up: eight and the sum before at a time, none rounded.

    Each is cut off at one bit below the last place of the greatest of the nine, their sum at 24 bits (Fasi and others,
    2021). The interpreter itself multiplies in float32.
    """
    for x in (a.data, b.data):
        assert not (x.view(np.int32)[np.isfinite(x)] & 0x1FFF).any()  # the operands have 11 bits
    found = sums.data.astype(np.float64)
    for k in range(0, a.data.shape[1], 8):
        products = a.data[:, k : k + 8, None].astype(np.float64) * b.data[None, k : k + 8]
        terms = np.concatenate([products, found[:, None]], 1)
        greatest = np.abs(terms).max(1, keepdims=True)
        last = np.exp2(np.floor(np.log2(np.where(greatest > 0, greatest, 1))) - 24)
        total = (np.trunc(terms / last) * last).sum(1)
        narrow = total.astype(np.float32)
        found = np.where(np.abs(narrow) > np.abs(total), np.nextafter(narrow, np.float32(0)), narrow).astype(np.float64)
        found = np.where(np.isfinite(greatest[:, 0]), found, terms.sum(1))
    return interpreter.TensorHandle(found.astype(np.float32), sums.dtype.scalar)


def check_values() -> None:
    interpreter.InterpreterBuilder.create_dot = tensor_core_dot
    for form in FORMS:
        os.environ["SSAMBA_FP32"] = form
        for name, (a, b) in CASES.items():
            for bias in (None, draw(b.shape[0])):
                check_against_torch(f"{name}, {form!r}", gpu.linear, a, b, bias)
        for name, (a, b) in scaled_cases().items():
            check_against_torch(f"{name}, {form!r}", gpu.linear, a, b, None)
    for form in FORMS[:3]:
        os.environ["SSAMBA_FP32"] = form
        for name in SPECIAL:
            check_special(name, gpu.linear)
    os.environ["SSAMBA_FP32"] = f"split,{SMALL}"
    a, b = draw(70, 40), draw(50, 40)
    whole = gpu.linear(a, b)
    assert torch.equal(whole, gpu.linear(a, b))
    assert torch.equal(whole[33:], gpu.linear(a[33:], b))


def check_tiles() -> None:
    """The tiles and parts of the published sizes."""
    os.environ["SSAMBA_FP32"] = ""
    sizes = (1536, 192), (192, 768), (6144, 768), (768, 3072)
    assert [_tile(*columns_and_depth).columns for columns_and_depth in sizes] == [64, 64, 128, 128]
    narrow = _tile(768, 32768)
    assert narrow == ProductTile(columns=64)
    assert _parts(1, 32768, 1536, 192, ProductTile()) == 1
    assert _parts(1, 1536, 192, 32768, narrow) == 14
    assert _parts(1, 192, 768, 32768, narrow) == 22
    assert _parts(2, 768, 192, 32768, narrow) == 14
    assert _parts(1, 6144, 768, 32768, narrow) == 1
    assert _parts(1, 192, 192, 4096, narrow) == 4
    os.environ["SSAMBA_FP32"] = "split,columns=32,parts=2"
    assert _tile(1536, 192) == ProductTile(columns=32)
    assert _parts(1, 64, 64, 64, ProductTile()) == 2


def both(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Values, gradients, second derivatives and a batch of backwards: of the operator, and of torch in float64."""
    runs: list[list[Tensor]] = []
    name = "linear" if tensors[1].dim() == 2 else "batched_linear"
    for dtype, form in ((torch.float32, getattr(ops, name)), (torch.float64, getattr(naive_linear, name))):
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        y = form(*leaves)
        first = torch.autograd.grad((y**3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(torch.stack([(g**2).sum() for g in first]).sum(), leaves)
        y = form(*leaves)
        given = torch.stack([draw(*y.shape), draw(*y.shape, seed=1)]).to(dtype)
        batched = torch.autograd.grad(y, leaves, given, is_grads_batched=True)
        with torch.no_grad():
            alone = form(*leaves)
        runs.append([y.detach(), alone, *(g.detach() for g in first), *second, *batched])
    return runs


def check_gradients() -> None:
    gpu_limits.MIN_MULTIPLICATIONS = gpu_limits.MIN_RESULTS = 1
    os.environ["SSAMBA_FP32"] = SMALL.replace("rows", ",rows")
    with ops.use_backend("gpu"):
        for shape, count in (((3, 8, 40), 3), ((24, 40), 2)):
            tensors = [draw(*shape), draw(16, 40) / 6, draw(16)][:count]
            assert dispatch.find("linear", *tensors) is gpu_input
            for i, (found, truth) in enumerate(zip(*both(tensors), strict=True)):
                error = float((found.double() - truth).norm() / truth.norm())
                assert error < 3e-6, f"result {i} of {count} inputs is off by {error:.1e}"
        for count in (3, 2):
            tensors = [draw(2, 24, 40), draw(16, 2, 40).transpose(0, 1) / 6, draw(2, 16)][:count]
            assert dispatch.find("batched_linear", *tensors) is gpu
            for i, (found, truth) in enumerate(zip(*both(tensors), strict=True)):
                error = float((found.double() - truth).norm() / truth.norm())
                assert error < 3e-6, f"result {i} of {count} batched inputs is off by {error:.1e}"
    a, b, bias = (draw(*s).requires_grad_() for s in ((2, 9, 8), (2, 16, 8), (2, 16)))
    torch.library.opcheck(gpu.product, (a, b, bias))
    torch.library.opcheck(gpu.product, (a.mT.contiguous().mT, b, None))


def check_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's own product stays: the rule, and whatever traces or transforms."""
    made: list[int] = []
    product = gpu.product
    monkeypatch.setattr(gpu, "product", lambda *t: made.append(1) or product(*t))
    x, weight, bias = draw(24, 40), draw(16, 40), draw(16)
    os.environ["SSAMBA_FP32"] = ""
    with ops.use_backend("gpu"):
        assert gpu_limits.supports_product(x, weight) is not None  # it is small
        monkeypatch.setattr(gpu_limits, "MIN_MULTIPLICATIONS", 1)
        assert gpu_limits.supports_product(x, weight) is not None  # few programs
        monkeypatch.setattr(gpu_limits, "MIN_RESULTS", 1)
        assert gpu_limits.supports_product(x, weight, bias) is None
        ops.linear(x, weight, bias)
        assert len(made) == 1
        monkeypatch.setattr(gpu_limits, "MIN_LONG", 24)
        monkeypatch.setattr(
            gpu_limits, "MAX_LONG_VALUES", 24 * 40 - 1
        )  # the gradient of the weight is a sum over 24 rows
        torch.autograd.grad(ops.linear(x.requires_grad_(), weight.requires_grad_()).sum(), (x, weight))
        assert len(made) == 3, "forward and the gradient of x alone"
        x, weight = x.detach(), weight.detach()
        monkeypatch.setattr(gpu_limits, "MIN_LONG", 4096)
        made[:] = [1]
        for others in ((x.double(), weight.double()), (x.bfloat16(), weight.bfloat16()), (draw(24, 39), draw(16, 39))):
            assert gpu_limits.supports_product(*others) is not None
        with torch.autocast("cpu", torch.bfloat16):
            assert ops.linear(x, weight).dtype == torch.bfloat16
        truth = x.double() @ weight.double().t()
        with torch.no_grad():
            torch.func.jvp(lambda w: ops.linear(x, w), (weight,), (weight,))
            batch = torch.func.vmap(ops.linear, (None, 0))(x, weight.expand(3, 16, 40))
            assert torch.allclose(batch[2].double(), truth, atol=1e-5)
            graph = torch.export.export(LinearLayer(40, 16), (x,)).graph
            assert "ssamba" not in str(graph)
            built = torch.compile(lambda x: ops.linear(x, weight), fullgraph=True, backend="aot_eager")(x)
            assert torch.allclose(built.double(), truth, atol=1e-5)
        monkeypatch.setenv("SSAMBA_FP32", "torch")
        ops.linear(x, weight)
        monkeypatch.delenv("SSAMBA_FP32")
        torch.backends.cuda.matmul.allow_tf32 = True
        ops.linear(x, weight)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.set_float32_matmul_precision("high")
        ops.linear(x, weight)
        torch.set_float32_matmul_precision("highest")
    with ops.use_backend("reference"):
        ops.linear(x, weight)
    assert len(made) == 1
    with ops.use_backend("gpu"):
        ops.linear(x, weight)
    assert len(made) == 2


if __name__ == "__main__":
    if sys.argv[1] == "choice":
        with pytest.MonkeyPatch.context() as patch:
            check_choice(patch)
    else:
        {"values": check_values, "gradients": check_gradients, "tiles": check_tiles}[sys.argv[1]]()
