"""Tied decays, alternating directions and 8 states on a GPU: values and every gradient against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from compare import Shape, assert_close, assert_sum_of_tokens, case_id, relative_error
from decay_inputs import Form
from parallel_scan import bimamba_inner as expected_inner
from test_gpu import BOUND, HALVES, NAMES, inputs
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.params import MixerParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
FORMS = [Form(True, "both"), Form(True, "alternating"), Form(False, "alternating")]
FAST = FORMS[1]
SHAPES = [
    Shape(1, 1, 1, 2, 3, 16, r=2), Shape(2, 7, 1, 2, 1, 16, r=1), Shape(1, 513, 1, 2, 48, 16, r=12),
    Shape(2, 40, 1, 3, 17, 33, r=4), Shape(2, 64, 1, 2, 384, 16, r=12), Shape(2, 1, 1, 2, 16, 16, r=4),
    Shape(2, 1212, 1, 2, 96, 8, r=12),
]  # fmt: skip


def drawn(form: Form, shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """xz and the mixer's parameters."""
    tensors = inputs(shape._replace(R=form.directions), dtype)
    if form.tied and shape.N > 1:
        tensors[6] = tensors[6][..., :1].contiguous()
    return tensors


def packed(form: Form, tensors: list[Tensor]) -> Tensor:
    return ops.bimamba_inner_packed(*tensors, form.alternating)


def expected_output(form: Form, tensors: list[Tensor], gated: bool = True) -> Tensor:
    """In float64."""
    x, z = tensors[0].unbind(2)
    return expected_inner(x, z if gated else None, MixerParams(*tensors[1:]), form.alternating)


@pytest.fixture(params=["gpu", "portable"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """CUDA C++ where it runs, and the Triton kernels alone."""
    with ops.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("shape", SHAPES[::2], ids=case_id)
@pytest.mark.parametrize("form", [*FORMS, Form(False, "both")], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=case_id)
def test_the_bias_of_the_input_product(form: Form, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    """Its gradient is the sum of that of xz, and asking for it changes no other. The same bits twice."""
    tensors = [t.requires_grad_() for t in drawn(form, shape, dtype)]
    bias = torch.zeros_like(tensors[0][0, 0], dtype=torch.float32, requires_grad=True)
    weight = torch.randn(shape.B, shape.L, shape.K, shape.E, generator=torch.Generator().manual_seed(3))
    runs = []
    for _ in range(2):
        y = ops.bimamba_inner_packed(*tensors, form.alternating, bias)
        runs.append(torch.autograd.grad((y * weight.to(y)).sum(), [*tensors, bias]))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    *found, dbias = runs[0]
    assert_sum_of_tokens("gradient of the bias", dbias, found[0])
    plain = torch.autograd.grad((packed(form, tensors) * weight.to(y)).sum(), tensors)
    for name, with_bias, without in zip(NAMES, found, plain, strict=True):
        assert_close(f"gradient of {name}", with_bias, without, BOUND[dtype] / 10)


@pytest.mark.parametrize("shape", SHAPES, ids=case_id)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=case_id)
def test_values_and_gradients(form: Form, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    tensors = drawn(form, shape, dtype)
    exact = [t.double().requires_grad_() for t in tensors]
    expected = expected_output(form, exact)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).cuda().to(dtype)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), exact)
    runs = []
    for _ in range(2):
        mine = [t.clone().requires_grad_() for t in tensors]
        y = packed(form, mine) if shape.L % 2 == 0 else ops.bimamba_inner(
            *mine[0].unbind(2), *mine[1:], form.alternating
        )  # fmt: skip
        runs.append([y, *torch.autograd.grad((y * weight).sum(), mine)])
    bound = BOUND[dtype] * (3 if shape.E == 1 and dtype != torch.float32 else 1)
    assert_close("output", runs[0][0], expected, bound)
    for name, grad, truth in zip(NAMES, runs[0][1:], wanted, strict=True):
        assert torch.isfinite(grad).all(), name
        if truth.norm() > 1e-9:
            assert_close(f"gradient of {name}", grad, truth, bound)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


TIED_BACKWARDS = (
    "lanes", "mma", "mma,movm=1,windows=0", "mma,movm=2,clips=2", "mma,keep=0,warps=6,blocks=2,clips=3", "mma,clips=1",
)  # fmt: skip
BACKWARD_CASES = [
    (FORMS[0], Shape(2, 33, 1, 2, 48, 16, r=12)), (FAST, Shape(2, 1, 1, 2, 16, 16, r=4)),
    (FAST, Shape(1, 8, 1, 2, 80, 16, r=12)), (FAST, Shape(2, 25, 1, 3, 112, 16, r=48)),
    (FAST, Shape(4, 513, 1, 2, 384, 16, r=12)), (FAST, Shape(1, 4099, 1, 2, 64, 16, r=24)),
    (FAST, Shape(50, 33, 1, 2, 384, 16, r=12)),
]  # fmt: skip
"""Batches of steps that are whole or not, one step, warps without channels; of 50 clips a block takes several."""


@pytest.mark.parametrize("backward", TIED_BACKWARDS)
@pytest.mark.parametrize(("form", "shape"), BACKWARD_CASES, ids=case_id)
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
def test_every_form_of_the_backward(
    backward: str, form: Form, shape: Shape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lane a channel as where there are many: values and every gradient, the same bits twice."""
    check_backward(backward, form, shape, dtype, monkeypatch)


FREE_BACKWARDS = (
    "lanes", "mma", "mma,warps=12,blocks=1,keep=16,windows=0", "mma,clips=2,windows=0", "mma,keep=8,states=0",
    "mma,keep=0,warps=4,blocks=3,movm=1",
)  # fmt: skip
FREE = [(FORMS[2] if form == FAST else Form(False, "both"), sizes) for form, sizes in BACKWARD_CASES]


@pytest.mark.parametrize("backward", FREE_BACKWARDS)
@pytest.mark.parametrize(
    ("form", "shape"), [*FREE, (Form(False, "both"), Shape(2, 513, 1, 2, 384, 16, r=12))], ids=case_id
)
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
def test_every_form_of_the_backward_with_free_decays(
    backward: str, form: Form, shape: Shape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_backward(backward, form, shape, dtype, monkeypatch)


def check_backward(
    backward: str, form: Form, shape: Shape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSAMBA_BACKWARD", backward)
    monkeypatch.setattr("ssamba.ops.mamba.cuda.scan_shape.Shape.lanes_per_channel", lambda self: 1)
    kernels = compare_training(form, drawn(form, shape, dtype))
    assert any(call.startswith("scan_backward_mma") for call in kernels) == backward.startswith("mma")


@pytest.mark.parametrize("warps", [4, 8])
@pytest.mark.parametrize("form", [*FORMS, Form(False, "both")], ids=str)
@pytest.mark.parametrize(
    "shape",
    [*(sizes for _, sizes in BACKWARD_CASES[::2]), Shape(3, 46, 1, 2, 32, 16, r=12), Shape(2, 80, 1, 2, 64, 16, r=4)],
    ids=case_id,
)
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
def test_states_that_the_forward_keeps(
    warps: int, form: Form, shape: Shape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward starts from them as from those it computes again, which it then does not."""
    monkeypatch.setenv("SSAMBA_CUT", f"split=1,warps={warps},stages=3,blocks=2,chunks=1")
    monkeypatch.setattr("ssamba.ops.mamba.cuda.scan_shape.Shape.lanes_per_channel", lambda self: 1)
    tensors = drawn(form, shape, dtype)
    again, kept = (compare_training(form, tensors, keep) for keep in (False, True))
    assert any("PHASE=4" in call or call.startswith("scan_states") for call in again)
    assert not any("PHASE=4" in call or call.startswith("scan_states") for call in kept)


def compare_training(form: Form, tensors: list[Tensor], keep_states: bool = False) -> list[str]:
    """Values and every gradient against float64, that of the input product's bias too, and the same bits twice; the
    kernels that ran, each with its macros.
    """
    dtype, exact = tensors[0].dtype, [t.double().requires_grad_() for t in tensors]
    expected = expected_output(form, exact)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).cuda().to(dtype)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), exact)

    def gradients() -> list[Tensor]:
        mine = [t.clone().requires_grad_() for t in (*tensors, torch.zeros_like(tensors[0][0, 0]))]
        y = ops.bimamba_inner_packed(*mine[:-1], form.alternating, mine[-1], keep_states)
        return [y, *torch.autograd.grad((y * weight).sum(), mine)]

    kernels = nvrtc.compile_for(gradients)[0]
    runs = [gradients() for _ in range(2)]
    assert_close("output", runs[0][0], expected, BOUND[dtype])
    assert_sum_of_tokens("gradient of the bias", runs[0][-1], runs[0][1])
    terms = wanted[0].abs().sum((0, 1))  # which may cancel
    assert_close("gradient of the bias", runs[0][-1], wanted[0].sum((0, 1)), BOUND[dtype], terms)
    for name, grad, truth in zip(NAMES, runs[0][1:-1], wanted, strict=True):
        assert grad.shape == truth.shape, name
        assert_close(f"gradient of {name}", grad, truth, BOUND[dtype])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    return kernels


@pytest.mark.parametrize("states", [16, 8])
@pytest.mark.parametrize(
    "cut",
    [
        "", "split=1,warps=4,stages=3,chunks=1", "split=1,warps=4,stages=4,chunks=8",
        "split=1,warps=8,stages=3,chunks=1", "split=2,warps=4,stages=3,chunks=1", "split=2,warps=4,stages=4,chunks=5",
        "split=1,warps=8,stages=4,chunks=1", "split=1,warps=6,stages=3,chunks=1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@torch.no_grad()
def test_every_cut_of_the_forward(cut: str, states: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if states == 8 and "split=2" in cut:
        pytest.skip("8 states are not split")
    if cut:
        monkeypatch.setenv("SSAMBA_CUT", f"blocks=2,{cut}")
    form = FAST if states == 16 else Form(False, "both")
    tensors = drawn(form, Shape(2, 4109, 1, 2, 80, states, r=12), dtype)
    assert "scan_fragments" in " ".join(nvrtc.compile_for(lambda: packed(form, tensors))[0])
    found = [packed(form, tensors) for _ in range(2)]
    assert_close("output", found[0], expected_output(form, [t.double() for t in tensors]), 6e-3 * HALVES[dtype])
    assert torch.equal(*found)
    x = tensors[0][:, :, 0].contiguous()
    y = ops.bimamba_ungated(x, torch.full_like(x, float("nan")), *tensors[1:], alternating=form.alternating)
    truth = expected_output(form, [t.double() for t in tensors], gated=False)
    assert_close("output without a gate", y, truth, BOUND[dtype])


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@torch.no_grad()
def test_the_same_bits_where_batches_end(form: Form, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of eight warps, which run in any order, and of four."""
    for length in (1, 16, 17, 513):
        tensors = drawn(form, Shape(16, length, 1, 2, 144, 16, r=12), dtype)
        runs = []
        for warps in (8, 8, 4):
            monkeypatch.setenv("SSAMBA_CUT", f"split=1,warps={warps},stages=3,blocks=2,chunks=1")
            runs.append(packed(form, tensors))
        assert all(torch.equal(run, runs[0]) for run in runs), length


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@torch.no_grad()
def test_long(form: Form, dtype: torch.dtype) -> None:
    tensors = drawn(form, Shape(1, 22016, 1, 2, 16, 16, r=4), dtype)
    expected = expected_output(form, [t.double() for t in tensors])
    assert_close("output", packed(form, tensors), expected, 2e-2 * HALVES[dtype])


@torch.no_grad()
def test_powers_are_as_good_as_exponentials() -> None:
    """Tied decays by products of one power, and the same mixer with a decay for each state."""
    tensors = drawn(FAST, Shape(4, 1001, 1, 2, 96, 16, r=12), torch.bfloat16)
    expected = expected_output(FAST, [t.double() for t in tensors])
    tied = relative_error(packed(FAST, tensors), expected)
    free = relative_error(packed(FAST, [tensors[0], *MixerParams(*tensors[1:]).expanded()]), expected)
    assert tied < 1.01 * free


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_model(form: Form) -> None:
    """Inference with a deferred gate and in a graph, and training, beside the reference form in float32."""
    model = SSAMBA(Config(width=192, depth=8, decay="tied" if form.tied else "free", scan=form.scan)).eval()
    with torch.no_grad():
        for i, pair in enumerate(model.pairs):
            pair.out_proj_dKE.mul_(30 * 2**i)  # else fresh pairs hardly count next to the stream
    tokens = torch.randn(65, 257, 192, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(2, 257, 192, generator=torch.Generator().manual_seed(4))
    expected = model.encode_tokens(tokens[:2])
    wanted = torch.autograd.grad((expected * weight).sum(), list(model.pairs.parameters()))
    model = model.cuda()
    given = tokens.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        found = model.encode_tokens(given[:2])
    grads = torch.autograd.grad((found.float() * weight.cuda()).sum(), list(model.pairs.parameters()))
    assert_close("training output", found, expected.cuda(), BOUND[torch.bfloat16])
    for (name, _), grad, truth in zip(model.pairs.named_parameters(), grads, wanted, strict=True):
        assert_close(name, grad, truth.cuda(), 6e-2)
    model, given = model.bfloat16(), given.bfloat16()
    with torch.no_grad():
        assert model.pairs[0].prepares_weights(given)
        for name, tokens in (("inference", given), ("inference, the gate in the scan", given[:2])):
            assert_close(name, model.encode_tokens(tokens)[:2], expected.cuda(), BOUND[torch.bfloat16])
        graph, work = torch.cuda.CUDAGraph(), given.clone()
        with torch.cuda.graph(graph):
            out = model.encode_tokens(work.clone(), own=True)
        out.fill_(float("nan"))
        graph.replay()
        assert_close("replay", out[:2], expected.cuda(), BOUND[torch.bfloat16])
