"""What a training pass does beside the scans, on a GPU: values and gradients against float64, the same bits twice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.bimamba import MambaPair
from ssamba.models.block_pair import ResidualState
from ssamba.models.config import Config
from ssamba.ops import dispatch
from ssamba.ops.mamba import naive

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BOUND = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).cuda()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(32768, 1536), (26624, 1536), (4099, 6144), (1, 7), (300, 130)], ids=str)
def test_column_sums(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    from ssamba.ops.mamba import gpu_input

    x = draw(*sizes).to(dtype)
    found = [gpu_input.column_sums(x) for _ in range(2)]
    assert_close("columns", found[0], x.double().sum(0), BOUND[dtype])
    assert torch.equal(*found)
    wide = draw(sizes[0], sizes[1] + 3).to(dtype)[:, :-3]
    assert_close("strided columns", gpu_input.column_sums(wide), wide.double().sum(0), BOUND[dtype])


@pytest.mark.parametrize("batch", [1, 63, 64, 256])
@pytest.mark.parametrize(("E", "rank"), [(384, 12), (1536, 48), (5, 1)])
def test_parts(batch: int, E: int, rank: int) -> None:
    """All the sums of one pair's backward, and the copies of its weights."""
    from ssamba.ops.mamba.triton import partial_sums, weights

    P = rank + 32
    conv, vec, low = draw(3 * batch, 2, 5, E), draw(batch, 2, 2, E), draw(2, 16, E, rank + 4).bfloat16()
    wide = draw(2, 16, P + 4, E).bfloat16()
    sums = [
        (conv[:, :, :4], torch.empty(2, E, 4).cuda().transpose(1, 2)), (conv[:, :, 4:], torch.empty(2, 1, E).cuda()),
        (vec.transpose(1, 2)[:, :1], torch.empty(1, 2, E).cuda()),
        (vec.view(batch, 1, 1, -1), torch.empty(1, 1, 4 * E).cuda()),
        (wide.transpose(0, 1)[:, :, :P], torch.empty(2, P, E).cuda()),
        (low.transpose(0, 1)[..., :rank], torch.empty(2, E, rank).cuda()),
    ]  # fmt: skip
    totals = []
    for _ in range(2):
        partial_sums.add_parts(sums)
        totals.append([total.clone() for _, total in sums])
    for (parts, _), once, again in zip(sums, *totals, strict=True):
        assert_close("sum", once, parts.double().sum(0), 1e-5)
        assert torch.equal(once, again)
    pairs = [(draw(2, E, rank), torch.empty(2, E, rank + 5).cuda().bfloat16()) for _ in range(2)]
    expected = [F.pad(source.bfloat16(), (0, 5)) for source, _ in pairs]
    weights.copy_padded(pairs)
    assert all(torch.equal(target, wanted) for (_, target), wanted in zip(pairs, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("sizes", [(2, 32768, 384, 12, 3), (4, 4099, 384, 12, 2), (2, 65, 512, 16, 1), (1, 1, 5, 1, 2)])
def test_join_products(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    from ssamba.ops.mamba.triton import gradients

    G, T, E, rank, parts = sizes
    pad = -(rank + 32) % 8
    ddt, dt_proj = draw(G, T, E).to(dtype), F.pad(draw(G, E, rank), (0, -rank % 8)).to(dtype)
    dbc, p = draw(parts, G, T, 32).to(dtype), draw(G, T, rank + 32).to(dtype)
    runs = [gradients.join_products(ddt, dbc, p, dt_proj, rank, pad) for _ in range(2)]
    of_dt = ddt.double() @ dt_proj[..., :rank].double()
    expected = torch.cat([of_dt, dbc.double().sum(0), torch.zeros(G, T, pad).cuda()], -1)
    assert_close("dp", runs[0][0], expected, BOUND[dtype])
    assert not runs[0][0][..., rank + 32 :].any()
    found = runs[0][1].double().sum(0)
    assert_close("dt_proj", found, ddt.double().transpose(1, 2) @ p[..., :rank].double(), 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("E", "d"), [(384, 192), (1536, 768), (7, 5)])
def test_fold(E: int, d: int, dtype: torch.dtype) -> None:
    mine = [t.requires_grad_() for t in (draw(2, 2, E, d), draw(2, d), draw(2, d, seed=1))]
    exact = [t.detach().double().requires_grad_() for t in mine]
    given = draw(d, 4 * E).to(dtype).t().unflatten(0, (2, 2, E)), draw(2, 2, E).to(dtype)
    runs = []
    for _ in range(2):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            made = ops.fold_norm(*mine)
        assert made[0].dtype == dtype
        runs.append([*made, *torch.autograd.grad(made, mine, given)])
    truth = naive.fold_norm(*exact)
    grads = torch.autograd.grad(truth, exact, [g.double() for g in given])
    for found, again, expected in zip(*runs, [*truth, *grads], strict=True):
        assert_close("fold", found.detach(), expected.detach(), BOUND[dtype])
        assert torch.equal(found, again)


@pytest.mark.parametrize("width", [192, 768])
def test_linear(width: int) -> None:
    tensors = [draw(64, 512, width).bfloat16(), draw(8 * width, width).bfloat16() / width**0.5]
    tensors = [t.requires_grad_() for t in (*tensors, draw(8 * width).bfloat16())]
    weight = draw(64, 512, 8 * width).bfloat16()
    with torch.autocast("cuda", torch.bfloat16):
        form = dispatch.find("linear", *tensors)
        assert form is not None
        assert form.__name__.endswith("gpu_input")
        found = ops.linear(*tensors)
        expected = F.linear(*tensors)
    assert torch.equal(found, expected)
    grads = (torch.autograd.grad(y, tensors, weight) for y in (found, expected))
    for name, mine, torchs in zip(("x", "weight", "bias"), *grads, strict=True):
        assert_close(name, mine, torchs.double(), 5e-3)
    (bias,) = torch.autograd.grad(ops.linear(*tensors), tensors[2:], weight)
    assert_close("bias", bias, weight.double().sum((0, 1)), 3e-3)


def gradients_of_a_step(model: SSAMBA, tokens: Tensor, keep: Tensor | None, compiled: bool) -> tuple[list[Tensor], str]:
    """Output and gradients of all pairs under autocast, and the names of the kernels that ran."""
    encode = torch.compile(model.encode_tokens, backend="aot_eager") if compiled else model.encode_tokens
    parameters = [p for name, p in model.named_parameters() if name.startswith("pairs")]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        with torch.autocast("cuda", torch.bfloat16):
            y = encode(tokens, keep)
        found = [y.detach(), *torch.autograd.grad((y.float() * draw(*y.shape, seed=2)).sum(), parameters)]
        torch.cuda.synchronize()
    return found, " ".join(event.key for event in seen.key_averages())


@pytest.mark.parametrize("way", ["plain", "stochastic depth", "compiled"])
@pytest.mark.parametrize("form", [("free", "both"), ("tied", "alternating")], ids=str)
def test_no_pass_for_the_gradient_of_the_bias(form: tuple[str, str], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixer gives it: no kernel adds columns up, and every gradient stays as it was. The same bits twice."""
    config = Config(width=192, depth=4, frames=128, decay=form[0], scan=form[1])
    model = SSAMBA(config, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        for pair in model.pairs:
            pair.norm_bias_Kd.copy_(draw(2, 192))
    tokens = draw(16, 257, 192).requires_grad_()
    keep = (
        2 * torch.rand(5, 16, generator=torch.Generator().manual_seed(3)).cuda() if way == "stochastic depth" else None
    )
    given = model, tokens, keep, way == "compiled"
    (found, kernels), (again, _) = gradients_of_a_step(*given), gradients_of_a_step(*given)
    monkeypatch.setenv("SSAMBA_BIAS", "product")
    torch.compiler.reset()
    before, others = gradients_of_a_step(*given)
    assert "_columns" not in kernels
    assert ("_columns" in others) == (way != "compiled")
    names = ["output", *(name for name, _ in model.named_parameters() if name.startswith("pairs"))]
    for name, one, same, other in zip(names, found, again, before, strict=True):
        assert torch.equal(one, same), name
        assert_close(name, one, other, 5e-3)


@pytest.mark.parametrize("form", [("free", "both"), ("tied", "alternating")], ids=str)
@pytest.mark.parametrize("length", [257, 1])
def test_pair(form: tuple[str, str], length: int) -> None:
    """A pair under autocast, beside the reference form in float32; and twice the same bits."""
    pair = MambaPair(Config(width=192, depth=2, decay=form[0], scan=form[1]))
    pair.reset_parameters(torch.Generator().manual_seed(1))
    pair = pair.cuda()
    with torch.no_grad():
        pair.norm_bias_Kd.copy_(draw(2, 192))
    tokens, stream = (draw(16, length, 192, seed=s).requires_grad_() for s in (0, 1))
    weight, results = draw(16, length, 192, seed=2), []
    for backend in ("auto", "auto", "reference"):
        with ops.use_backend(backend), torch.autocast("cuda", torch.bfloat16, enabled=backend == "auto"):
            x, residual, *_ = pair(ResidualState(tokens, stream))
        value = (x.float() * weight).sum() + residual.square().sum()
        results.append([x, residual, *torch.autograd.grad(value, [tokens, stream, *pair.parameters()])])
    names = ["x", "stream", "dx", "dstream", *(name for name, _ in pair.named_parameters())]
    for name, found, again, expected in zip(names, *results, strict=True):
        assert torch.equal(found, again), name
        if expected.norm() > 1e-9:  # a single step has no decay
            assert_close(name, found.detach(), expected.detach(), 4e-2)
