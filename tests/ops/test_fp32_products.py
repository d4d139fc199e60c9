"""Float32 products by three TF32 products: in Triton's interpreter here, and on a GPU beside torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fp32_cases import CASES, SPECIAL, check_against_torch, check_special, draw, scaled_cases
from part_script import NEEDS_TRITON, run_script
from torch import Tensor

from ssamba import SSAMBA, Config, ops
from ssamba.ops import dispatch
from ssamba.ops.linear_layer import gpu_limits, naive

FORMS = ("", "split,columns=64", "split,columns=128", "fused", "fused,rows=64,columns=128,warps=4")
ODD_FORMS = ("", "fused,columns=64", "split,parts=3")
"""Fewer: every size that is not a multiple of 16 is compiled anew."""


@NEEDS_TRITON
@pytest.mark.parametrize("part", ["values", "gradients", "choice", "tiles"])
def test_without_a_gpu(part: str) -> None:
    run_script("fp32_small.py", part, seconds=300)


def test_tensors_of_a_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, weight = torch.zeros(8192, 192), torch.zeros(1536, 192)
    assert gpu_limits.supports_product(x, weight) == "the tensors are not on a GPU"


# ---- on a GPU


@pytest.fixture
def gpu_product() -> Callable[..., Tensor]:
    """The operator; tests of what a GPU is not for are skipped."""
    if torch.cuda.get_device_capability() not in gpu_limits.FAST_TF32:
        pytest.skip("three TF32 products gain nothing on this GPU")
    from ssamba.ops.linear_layer import gpu

    return gpu.linear


def on_gpu(t: Tensor) -> Tensor:
    """``t`` there with the strides that it has here."""
    storage = t.new_empty(0).set_(t.untyped_storage()).cuda()
    return storage.as_strided(t.shape, t.stride(), t.storage_offset())


@pytest.mark.gpu
@pytest.mark.parametrize("form", ODD_FORMS)
def test_odd_sizes_on_a_gpu(form: str, gpu_product: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAMBA_FP32", form)
    for name, (a, b) in CASES.items():
        bias = draw(b.shape[0]).cuda() if name in ("rows", "no inputs") else None
        check_against_torch(f"{name}, {form}", gpu_product, on_gpu(a), on_gpu(b), bias)
    for name, (a, b) in scaled_cases().items():
        check_against_torch(f"{name}, {form}", gpu_product, a.cuda(), b.cuda(), None)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_values_on_a_gpu(form: str, gpu_product: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The models' sizes, with a gradient of weights among them; and twice the same bits."""
    monkeypatch.setenv("SSAMBA_FP32", form)
    for rows, depth, columns in ((4112, 192, 1536), (4112, 768, 192), (1040, 1536, 768), (528, 256, 192)):
        a, b = draw(rows, depth).cuda(), draw(columns, depth, seed=1).cuda()
        check_against_torch(f"{(rows, depth, columns)}, {form}", gpu_product, a, b, None)
        assert torch.equal(gpu_product(a, b), gpu_product(a, b))
    dy, x = draw(32776, 768).cuda(), draw(32776, 192).cuda()
    check_against_torch(f"a weight's gradient, {form}", gpu_product, dy.t(), x.t(), None)
    assert torch.equal(gpu_product(dy.t(), x.t()), gpu_product(dy.t(), x.t()))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("form", ODD_FORMS)
def test_special_values_on_a_gpu(
    form: str, name: str, gpu_product: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSAMBA_FP32", form)
    check_special(name, lambda a, b, bias: gpu_product(a.cuda(), b.cuda()).cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [8192, 8193])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_on_a_gpu(tokens: int, with_bias: bool, gpu_product: Callable[..., Tensor]) -> None:
    """Each gradient at most twice as far from float64's as torch's own; and twice the same bits."""
    given = [draw(tokens, 192), draw(1536, 192) / 14, *([draw(1536)] if with_bias else [])]
    dy = draw(tokens, 1536).cuda()
    runs = []
    for form, dtype in ((ops.linear, None), (ops.linear, None), (F.linear, None), (F.linear, torch.float64)):
        leaves = [t.cuda().to(dtype or t.dtype).requires_grad_() for t in given]
        if form is ops.linear:
            found = dispatch.find("linear", *leaves)
            assert found is not None
            assert found.__name__.endswith("gpu_input")
            assert gpu_limits.supports_product(*leaves) is None
        y = form(*leaves)
        runs.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    for mine, again, torchs, truth in zip(*runs, strict=True):
        assert torch.equal(mine, again)
        errors = [float((t.double() - truth).norm() / truth.norm()) for t in (mine, torchs)]
        assert errors[0] <= 2 * max(errors[1], 6e-8)


@pytest.mark.gpu
def test_batches_on_a_gpu(gpu_product: Callable[..., Tensor]) -> None:
    """Values and gradients of two layers at once, as stochastic depth has them."""
    given = [draw(2, 8200, 192), draw(2, 768, 192) / 14, draw(2, 768)]
    dy = draw(2, 8200, 768).cuda()
    runs = []
    for form, dtype in ((ops.batched_linear, torch.float32), (naive.batched_linear, torch.float64)):
        leaves = [t.cuda().to(dtype).requires_grad_() for t in given]
        y = form(*leaves)
        runs.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
        if dtype == torch.float32:
            found = dispatch.find("batched_linear", *leaves)
            assert found is not None
            assert found.__name__.endswith("linear_layer.gpu")
    for mine, truth in zip(*runs, strict=True):
        assert float((mine.double() - truth).norm() / truth.norm()) < 5e-7


@pytest.mark.gpu
def test_in_a_cuda_graph(gpu_product: Callable[..., Tensor]) -> None:
    x, weight, bias = (draw(*s).cuda() for s in ((8192, 192), (1536, 192), (1536,)))
    with torch.no_grad():
        ops.linear(x, weight, bias)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ops.linear(x, weight, bias)
        x.copy_(draw(8192, 192, seed=5))
        graph.replay()
        assert torch.equal(y, ops.linear(x, weight, bias))


@pytest.mark.gpu
def test_who_asks_for_tf32_gets_it(gpu_product: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(8192, 192).cuda(), draw(1536, 192).cuda()
    assert not torch.equal(ops.linear(x, weight), F.linear(x, weight))
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert torch.equal(ops.linear(x, weight), F.linear(x, weight))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    monkeypatch.setenv("SSAMBA_FP32", "torch")
    assert torch.equal(ops.linear(x, weight), F.linear(x, weight))


@pytest.mark.gpu
def test_a_model_on_a_gpu(gpu_product: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and gradients of a chain of pairs as with torch's own products; and that they were not torch's own."""
    torch.manual_seed(0)
    model = SSAMBA(Config(width=192, depth=4, frames=1024)).cuda().eval()
    features = draw(24, 1024, 128).cuda()
    weight = draw(*model.encode(features[:1]).shape[1:]).cuda()  # squares of a norm's output add up to a constant
    runs = []
    for form in ("", "torch"):
        monkeypatch.setenv("SSAMBA_FP32", form)
        with torch.no_grad():
            alone = model.encode(features)
        tokens = model.encode(features)
        weights = [p for name, p in model.named_parameters() if name.startswith(model.chain)]
        runs.append([alone, tokens.detach(), *torch.autograd.grad((tokens * weight).sum(), weights)])
    assert not torch.equal(runs[0][0], runs[1][0])
    for found, expected in zip(*runs, strict=True):
        assert float((found - expected).double().norm() / expected.double().norm()) < 1e-4
