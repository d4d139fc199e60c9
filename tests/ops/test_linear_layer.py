"""Linear layers through oneDNN: values and gradients against float64, and where torch's own product stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap

from ssamba import SSAMBA, Config, ops
from ssamba.models.ssast import SSAST
from ssamba.ops.linear_layer import cpu
from ssamba.ops.linear_layer.module import LinearLayer

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """This form everywhere, whatever the processor; the list gets the shape of each product."""
    shapes: list[tuple[int, ...]] = []
    product = cpu._product

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append((*x.shape, *weight.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(cpu, "_pays_here", lambda: True)
    monkeypatch.setattr(cpu, "_product", counted)
    return shapes


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm().clamp_min(1e-30))


def strided(*shape: int) -> Tensor:
    """Rows with a gap between them, and columns that are not neighbours."""
    return torch.randn(*shape[:-1], 2 * shape[-1] + 3)[..., 1 : 2 * shape[-1] : 2]


CASES = {
    "rows": (lambda: torch.randn(515, 192), lambda: torch.randn(77, 192)),
    "clips": (lambda: torch.randn(3, 171, 192), lambda: torch.randn(65, 192)),
    "one row": (lambda: torch.randn(1, 1031), lambda: torch.randn(1033, 1031)),
    "one output": (lambda: torch.randn(4099, 257), lambda: torch.randn(1, 257)),
    "one input": (lambda: torch.randn(1021, 1), lambda: torch.randn(1033, 1)),
    "strided": (lambda: strided(2, 300, 192), lambda: strided(65, 192)),
    "transposed": (lambda: torch.randn(192, 515).t(), lambda: torch.randn(192, 77).t()),
    "expanded": (lambda: torch.randn(1, 1, 192).expand(2, 300, 192), lambda: torch.randn(1, 192).expand(65, 192)),
    "nothing": (lambda: torch.randn(0, 192), lambda: torch.randn(77, 192)),
}


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(
    case: str, with_bias: bool, calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cpu, "MIN_MULTIPLICATIONS", 1)
    x, weight = (make() for make in CASES[case])
    inputs = [x, weight, *([torch.randn(weight.shape[0])] if with_bias else [])]
    with torch.no_grad():
        y = ops.linear(*inputs)
    leaves = [t.detach().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    dy = torch.randn_like(y)
    found = torch.autograd.grad(ops.linear(*leaves), leaves, dy)
    assert len(calls) == (0 if case == "nothing" else 4)  # the value twice, and two gradients
    truth = torch.autograd.grad(F.linear(*exact), exact, dy.double())
    for a, b in zip((y, *found), (F.linear(*exact), *truth), strict=True):
        assert (a.shape, a.dtype) == (b.shape, torch.float32)
        assert error(a, b.detach()) < 2e-6


@needs_onednn
def test_the_same_bits_again_and_in_inference_mode(calls: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(700, 192), torch.randn(300, 192)
    first = ops.linear(x, weight)
    with torch.inference_mode():
        assert torch.equal(ops.linear(x, weight), first)
    assert torch.equal(ops.linear(x, weight), first)
    assert len(calls) == 3


@needs_onednn
def test_gradients_of_gradients(calls: list[tuple[int, ...]]) -> None:
    def second(dtype: torch.dtype) -> list[Tensor]:
        g = torch.Generator().manual_seed(1)
        x, weight, bias = (torch.randn(s, generator=g).to(dtype).requires_grad_() for s in ((600, 64), (64, 64), (64,)))
        (dx,) = torch.autograd.grad(ops.linear(x, weight, bias).sin().sum(), x, create_graph=True)
        return list(torch.autograd.grad(dx.square().sum(), (x, weight, bias)))

    for a, b in zip(second(torch.float32), second(torch.float64), strict=True):
        assert error(a, b) < 1e-5
    assert calls


@needs_onednn
def test_transforms_and_other_precisions_stay_with_torch(calls: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(600, 64), torch.randn(64, 64)
    truth = F.linear(x.double(), weight.double())
    assert error(jvp(lambda w: ops.linear(x, w), (weight,), (weight,))[1], truth) < 1e-6
    assert error(vmap(ops.linear, (None, 0))(x, weight.expand(3, 64, 64))[2], truth) < 1e-6
    assert error(grad(lambda w: (ops.linear(x, w) * x).sum())(weight), x.double().t() @ x.double()) < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.linear(x, weight).dtype == torch.bfloat16
    assert ops.linear(x.double(), weight.double()).dtype == torch.float64
    assert ops.linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with ops.use_backend("reference"):
        ops.linear(x, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        ops.linear(x, weight)
    ops.linear(x[:2], weight)
    assert not calls


@needs_onednn
def test_a_gradient_under_vmap(calls: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(600, 64), torch.randn(64, 64, requires_grad=True)
    y = ops.linear(x, weight)
    cotangents = torch.randn(3, *y.shape)
    (found,) = torch.autograd.grad(y, weight, cotangents, is_grads_batched=True)
    assert error(found, cotangents.double().transpose(1, 2) @ x.double()) < 1e-6
    assert calls[0] == (600, 64, 64, 64)


@needs_onednn
def test_exported_programs_hold_torch_s_own_product(calls: list[tuple[int, ...]]) -> None:
    layer = LinearLayer(64, 64)
    program = torch.export.export(layer, (torch.randn(600, 64),))
    assert "mkldnn" not in str(program.graph)
    assert not calls


@needs_onednn
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_batches_of_layers(blocks: int, with_bias: bool, calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(blocks, 600, 64), torch.randn(blocks, 77, 64)]
    inputs += [torch.randn(blocks, 77)] if with_bias else []
    leaves = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    y, truth = ops.batched_linear(*leaves), ops.batched_linear(*exact)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, dy)
    expected = torch.autograd.grad(truth, exact, dy.double())
    assert len(calls) == 3 * blocks
    for a, b in zip((y, *found), (truth, *expected), strict=True):
        assert error(a, b.detach()) < 2e-6
    out = torch.empty_like(y)
    cpu.batched_linear(inputs[0], inputs[1], inputs[2] if with_bias else None, out)
    assert torch.equal(out, y)


@needs_onednn
@pytest.mark.parametrize("kind", ["free", "tied", "ssast", "drop path"])
def test_models(kind: str, calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and gradients as with torch's own products."""
    torch.manual_seed(0)
    options = {"frames": 416, "depth": 4, "width": 64}
    if kind == "ssast":
        model = SSAST(Config(**options, encoder="ssast", attention_heads=2))
    else:
        drop = 0.5 if kind == "drop path" else 0.0
        decay = "tied" if kind == "tied" else "free"
        model = SSAMBA(Config(**options, encoder="ssamba", decay=decay, drop_path=drop))
    features = torch.randn(3, 416, 128)

    def run() -> tuple[list[Tensor], int]:
        model.train(kind == "drop path")
        torch.manual_seed(3)
        before = len(calls)
        tokens = model.encode(features)
        loss = (tokens * torch.randn_like(tokens)).sum()
        gradients = torch.autograd.grad(loss, [p for n, p in model.named_parameters() if n.startswith(model.chain)])
        model.eval()
        with torch.no_grad():
            alone = model.encode(features)
        return [tokens.detach(), alone, *gradients], len(calls) - before

    found, made = run()
    assert made > 10
    monkeypatch.setattr(cpu, "_pays_here", lambda: False)
    truth, made = run()
    assert made == 0
    for a, b in zip(found, truth, strict=True):
        assert error(a, b.double()) < 1e-4


@needs_onednn
def test_only_where_the_other_library_leaves_avx_512_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(600, 64), torch.randn(64, 64)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for vendor, expected in (
        ("AuthenticAMD", True),
        ("GenuineIntel", False),
        ("Intel64 Family 6, GenuineIntel", False),
    ):
        cpu._pays_here.cache_clear()
        monkeypatch.setattr(cpu, "_vendor", lambda vendor=vendor: vendor)
        assert (cpu.supports(x, weight) is None) == expected
    for level in ("AVX2", "DEFAULT"):
        cpu._pays_here.cache_clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda level=level: level)
        monkeypatch.setattr(cpu, "_vendor", lambda: "AuthenticAMD")
        assert cpu.supports(x, weight) is not None
    cpu._pays_here.cache_clear()


def test_a_torch_without_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(cpu, "_product", missing)
    cpu._pays_here.cache_clear()
    x, weight = torch.randn(600, 64), torch.randn(64, 64)
    assert cpu.supports(x, weight) is not None
    assert torch.equal(ops.linear(x, weight), F.linear(x, weight))
    cpu._pays_here.cache_clear()


def test_the_vendor_of_this_processor() -> None:
    assert cpu._vendor() == "" or any(name in cpu._vendor() for name in ("Intel", "AMD", "ARM", "Zhaoxin", "Hygon"))
