"""Numbers of states that tensor cores do not have, on a GPU: values and gradients against float64, kernels, memory."""

from __future__ import annotations

import pytest
import torch
from compare import Shape, assert_close, case_id
from decay_inputs import Form
from test_gpu import BOUND, HALVES, NAMES
from test_gpu_forms import FORMS, compare_training, drawn, expected_output, packed
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ALL_FORMS = [*FORMS, Form(False, "both")]
SWITCHES = ["", "given", "forward", "backward"]
"""Values of SSAMBA_STATES."""


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: s or "default")
@pytest.mark.parametrize("form", ALL_FORMS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(2, 33, 1, 2, 48, 8, r=12), Shape(2, 1, 1, 2, 16, 8, r=4), Shape(4, 513, 1, 2, 384, 8, r=12),
        Shape(1, 40, 1, 2, 80, 5, r=12), Shape(2, 25, 1, 3, 112, 12, r=48), Shape(1, 18, 1, 2, 32, 4, r=8),
    ],
    ids=case_id,
)  # fmt: skip
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
def test_training(form: Form, shape: Shape, dtype: torch.dtype, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lane a channel, as where there are many of them: values and every gradient, the same bits twice."""
    monkeypatch.setenv("SSAMBA_STATES", switch)
    monkeypatch.setattr("ssamba.ops.mamba.cuda.scan_shape.Shape.lanes_per_channel", lambda self: 1)
    tensors = drawn(form, shape, dtype)
    tensors[0][:, 0, 1] = 0.5
    kernels = compare_training(form, tensors)
    if form.tied:
        rounds = switch in ("", "backward") or (shape.N > 8 and switch == "forward")
        assert any(call.startswith("scan_backward_mma") for call in kernels) == rounds


@pytest.mark.parametrize("states", [1, 3, 4, 7, 9, 12])
@pytest.mark.parametrize("form", ALL_FORMS, ids=str)
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@torch.no_grad()
def test_inference(form: Form, states: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gate in the scan and without one; in chunks of time, too."""
    for batch, length in ((2, 41), (1, 4109)):
        tensors = drawn(form, Shape(batch, length, 1, 2, 80, states, r=12), dtype)
        monkeypatch.setenv("SSAMBA_STATES", "")
        called = nvrtc.compile_for(lambda tensors=tensors: packed(form, tensors))[0]
        assert any(f"N={8 if states < 8 else 16}" in call.split() for call in called if call.startswith("scan_frag"))
        found = [packed(form, tensors) for _ in range(2)]
        expected = expected_output(form, [t.double() for t in tensors])
        assert_close("output", found[0], expected, BOUND[dtype] / 2)
        assert torch.equal(*found)
        x = tensors[0][:, :, 0].contiguous()
        assert ops.runs_ungated(x, tensors[6], states, form.alternating)
        y = ops.bimamba_ungated(x, torch.full_like(x, float("nan")), *tensors[1:], alternating=form.alternating)
        assert y is not None
        truth = expected_output(form, [t.double() for t in tensors], gated=False)
        assert_close("output without a gate", y, truth, BOUND[dtype])
        monkeypatch.setenv("SSAMBA_STATES", "given")
        assert not ops.runs_ungated(x, tensors[6], states, form.alternating)
        assert_close("output in lanes", packed(form, tensors), expected, BOUND[dtype] / 2)


@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@pytest.mark.parametrize("sizes", [(2, 64, 512, 12, 8), (4, 3, 101, 12, 6), (2, 1, 1, 5, 5), (2, 5, 333, 48, 12)])
def test_small_kernels(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """The projection with more states, by one, two and four numbers at once, and its gradient without them."""
    from ssamba.ops.mamba.triton import gradients

    pairs, batch, length, rank, states = sizes
    generator = torch.Generator("cuda").manual_seed(length)
    p = torch.randn(pairs, batch, length, rank + 2 * states, device="cuda", generator=generator).to(dtype)
    found, expected = (p.new_full((*p.shape[:3], rank + 32), float("nan")) for _ in range(2))
    gradients.spread_states(p, found, rank)
    naive.spread_states(p, expected, rank)
    assert torch.equal(found, expected)
    tokens, pad = batch * length, -p.shape[-1] % 8
    dbc = torch.randn(3, pairs, tokens, 32, device="cuda", generator=generator).to(dtype)
    cropped = dbc.unflatten(-1, (2, 16))[..., :states].flatten(-2).contiguous()
    ddt = torch.randn(pairs, tokens, 384, device="cuda", generator=generator).to(dtype)
    low = torch.randn(pairs, 384, rank + -rank % 8, device="cuda", generator=generator).to(dtype)
    forms = [lambda parts: gradients.join(ddt @ low, parts, p.flatten(1, 2), rank, pad)]
    if gradients.supports_products(ddt, rank) is None:
        forms.append(lambda parts: gradients.join_products(ddt, parts, p.flatten(1, 2), low, rank, pad))
    for form in forms:
        assert all(torch.equal(a, b) for a, b in zip(form(dbc), form(cropped), strict=True))


def test_memory_of_training() -> None:
    """A step with 8 states takes no more than one with 16, but for how the allocator cuts its blocks."""
    taken = {}
    for states in (8, 16):
        config = Config(width=192, depth=24, state_size=states, decay="tied", scan="alternating")
        model = SSAMBA(config).cuda()
        tokens = torch.randn(64, 257, 192, generator=torch.Generator().manual_seed(1)).cuda()
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                y = model.encode_tokens(tokens)
            torch.autograd.grad(y.float().square().sum(), list(model.pairs.parameters()))
            del y
            taken[states] = torch.cuda.max_memory_allocated() - before
        del model, tokens
    assert taken[8] <= 1.005 * taken[16], taken


def test_a_model_in_training_and_in_a_graph() -> None:
    """12 states, rounded up in a model: gradients beside the reference form, and inference replayed as a graph."""
    model = SSAMBA(Config(width=192, depth=4, state_size=12, decay="tied", scan="alternating")).eval()
    with torch.no_grad():
        for i, pair in enumerate(model.pairs):
            pair.out_proj_dKE.mul_(30 * 2**i)  # else fresh pairs hardly count next to the stream
    tokens = torch.randn(65, 257, 192, generator=torch.Generator().manual_seed(1))
    expected = model.encode_tokens(tokens[:2])
    weight = torch.randn(2, 257, 192, generator=torch.Generator().manual_seed(4))  # squares of a norm's output add up
    wanted = torch.autograd.grad((expected * weight).sum(), list(model.pairs.parameters()))
    model, given = model.cuda(), tokens.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        found = model.encode_tokens(given[:2])
    grads = torch.autograd.grad((found.float() * weight.cuda()).sum(), list(model.pairs.parameters()))
    assert_close("training output", found, expected.cuda(), BOUND[torch.bfloat16])
    for (name, _), grad, truth in zip(model.pairs.named_parameters(), grads, wanted, strict=True):
        assert_close(name, grad, truth.cuda(), 6e-2)
    model, given = model.bfloat16(), given.bfloat16()
    with torch.no_grad():
        assert_close("inference", model.encode_tokens(given)[:2], expected.cuda(), BOUND[torch.bfloat16])
        graph, work = torch.cuda.CUDAGraph(), given.clone()
        with torch.cuda.graph(graph):
            out = model.encode_tokens(work.clone(), own=True)
        out.fill_(float("nan"))
        graph.replay()
        assert_close("replay", out[:2], expected.cuda(), BOUND[torch.bfloat16])


def test_compiled() -> None:
    """Rounding up is part of a graph: the same values and gradients as without one."""
    tensors = drawn(FORMS[1], Shape(2, 40, 1, 2, 64, 12, r=12), torch.bfloat16)
    assert MixerParams(*tensors[1:]).states == 12

    def run(*tensors: Tensor) -> Tensor:
        return ops.bimamba_inner_packed(*tensors, True)

    results = []
    for form in (run, torch.compile(run, fullgraph=True)):
        mine = [t.clone().requires_grad_() for t in tensors]
        y = form(*mine)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), mine)])
    for name, a, b in zip(("output", *NAMES), *results, strict=True):
        assert_close(name, a, b, BOUND[torch.bfloat16])
