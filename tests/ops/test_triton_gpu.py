"""Values and every gradient of the GPU kernels against the reference form in float64, on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from fast_truth import bimamba_inner as true_inner
from mixer_inputs import pair_weights
from torch import Tensor

from ssamba.inference.model import SSAMBA
from ssamba.models import bimamba
from ssamba.models.config import Config
from ssamba.ops.mamba import naive

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
BOUND = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
NAMES = ["xz", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D"]


def inputs(B: int, L: int, K: int, E: int, N: int, r: int, R: int, dtype: torch.dtype, trained: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * L + E + N)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    xz = draw(B, L, 2, K, E).to(dtype)
    xz[:, 3::5, 1] = 0  # a closed gate, of which the backward must not divide by nothing
    a_log = torch.log(torch.arange(1.0, N + 1)).repeat(R, K, E, 1)
    if trained:  # spread decays, negative skips, some channels with large steps
        a_log = a_log + 0.7 * draw(R, K, E, N)
    dt_bias = torch.exp(torch.rand(R, K, E, generator=generator) * 4.6 - 6.9).log() + (draw(R, K, E) if trained else 0)
    weights = [draw(R, K, E, 4) * 0.5, draw(R, K, E) * 0.1, draw(R, K, r + 2 * N, E) / E**0.5]
    weights += [draw(R, K, E, r) / r**0.5, dt_bias, a_log, draw(R, K, E) if trained else torch.ones(R, K, E)]
    # The reference sees exactly the rounded values that the kernels use.
    if dtype != torch.float32:
        weights[2:4] = [w.to(dtype).float() for w in weights[2:4]]
    return [t.cuda() for t in [xz, *weights]]


def error(found: Tensor, expected: Tensor) -> float:
    assert torch.isfinite(found).all()
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-12))


def poison(B: int, L: int, K: int, E: int, dtype: torch.dtype) -> None:
    """Leaves NaN in the memory that the allocator hands out next."""
    held = [torch.full((B, L, K, E), float("nan"), device="cuda", dtype=dtype) for _ in range(12)]
    held += [torch.full((B, L, K, E), float("nan"), device="cuda") for _ in range(6)]
    del held


def compare(B: int, L: int, K: int, E: int, N: int, r: int, R: int, dtype: torch.dtype, trained: bool = True) -> None:
    from ssamba.ops.mamba.gpu import bimamba_inner, bimamba_inner_packed

    tensors = inputs(B, L, K, E, N, r, R, dtype, trained)
    exact = [t.double().requires_grad_() for t in tensors]
    expected = true_inner(exact[0][:, :, 0], exact[0][:, :, 1], *exact[1:])
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).cuda().to(dtype)
    expected_grads = torch.autograd.grad((expected * weight.double()).sum(), exact)
    poison(B, L, K, E, dtype)
    mine = [t.clone().requires_grad_() for t in tensors]
    packed = L % 2 == 0
    y = bimamba_inner_packed(*mine) if packed else bimamba_inner(mine[0][:, :, 0], mine[0][:, :, 1], *mine[1:])
    assert y.dtype == dtype
    # One channel has nothing to average the rounding of the 16-bit projection over.
    bound = BOUND[dtype] * (3 if E == 1 and dtype != torch.float32 else 1)
    assert error(y, expected) < bound
    for name, grad, truth in zip(NAMES, torch.autograd.grad((y * weight).sum(), mine), expected_grads, strict=True):
        if truth.norm() > 1e-9:
            assert error(grad, truth) < bound, name


@pytest.fixture(params=["nvrtc", "portable"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SSAMBA_GPU_SCAN", "triton" if request.param == "portable" else "nvrtc")
    return request.param


SHAPES = [
    # B, L, K, E, N, r, R
    (1, 1, 2, 3, 16, 2, 2), (2, 7, 2, 1, 16, 1, 2), (1, 513, 2, 48, 16, 12, 2), (2, 1212, 2, 20, 5, 3, 2),
    (1, 65, 1, 1536, 16, 48, 2), (3, 130, 2, 70, 1, 5, 2), (1, 100, 2, 33, 64, 8, 2), (2, 40, 3, 17, 33, 4, 2),
    (1, 50, 2, 24, 16, 4, 1), (2, 64, 2, 384, 16, 12, 2),
    # widths that the forward by tensor-core fragments takes, also a block's last group of channels alone
    (2, 1, 2, 16, 16, 4, 2), (2, 7, 1, 80, 16, 8, 2), (2, 1212, 2, 96, 16, 12, 2), (1, 130, 2, 64, 16, 20, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, form: str) -> None:
    compare(*shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long(dtype: torch.dtype, form: str) -> None:
    compare(1, 22016, 1, 8, 16, 2, 2, dtype=dtype, trained=False)
    if form == "nvrtc":  # in chunks of time
        compare(1, 22016, 1, 16, 16, 4, 2, dtype=dtype, trained=False)


@pytest.mark.parametrize(
    "cut",
    [
        "split=1,warps=4,stages=3,chunks=1", "split=1,warps=4,stages=4,chunks=8", "split=1,warps=8,stages=3,chunks=1",
        "split=1,warps=1,stages=3,chunks=1", "split=2,warps=2,stages=3,chunks=1", "split=2,warps=4,stages=4,chunks=5",
        "split=1,warps=4,stages=3,chunks=16",
    ],
)  # fmt: skip
def test_every_cut_of_the_forward(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssamba.ops.mamba.gpu import bimamba_inner_packed

    monkeypatch.setenv("SSAMBA_CUT", f"blocks=2,{cut}")
    tensors = inputs(2, 4109, 2, 80, 16, 12, 2, torch.bfloat16, True)
    exact = [t.double() for t in tensors]
    expected = true_inner(exact[0][:, :, 0], exact[0][:, :, 1], *exact[1:])
    poison(2, 4109, 2, 80, torch.bfloat16)
    found = [bimamba_inner_packed(*tensors) for _ in range(2)]
    assert error(found[0], expected) < 5e-3
    assert torch.equal(*found)


@pytest.mark.parametrize("cut", ["split=1,warps=4", "split=2,warps=2"])
@pytest.mark.parametrize("directions", [1, 2])
@torch.no_grad()
def test_a_scan_without_its_gate(cut: str, directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssamba.ops.mamba.gpu import bimamba_ungated

    monkeypatch.setenv("SSAMBA_CUT", cut)
    xz, *params = inputs(2, 517, 2, 96, 16, 8, directions, torch.bfloat16, True)
    x = xz[:, :, 0].contiguous()
    work = torch.full_like(x, float("nan"))
    y = bimamba_ungated(x, work, *params)
    assert y is not None
    expected = naive.bimamba_ungated(x.double(), work, *(t.double() for t in params))
    assert expected is not None
    assert error(y, expected) < BOUND[torch.bfloat16]
    assert torch.isfinite(work).any()  # the projection lies there


@pytest.mark.parametrize("rows", [1, 127, 257, 4099, 40001])
@pytest.mark.parametrize(
    ("width", "channels", "pieces"),
    [(192, 768, 1), (384, 1536, 1), (64, 256, 1), (128, 192, 1), (768, 3072, 3), (40, 72, 2), (48, 192, 1)],
)
@pytest.mark.parametrize("scale", [None, 1.0, 2.0])
@torch.no_grad()
def test_gate_and_output(
    rows: int, width: int, channels: int, pieces: int, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssamba.ops.mamba import gpu_inference
    from ssamba.ops.mamba.gpu import gated_output_

    monkeypatch.setattr(gpu_inference, "PIECE_VALUES", rows * channels // pieces)
    draw = torch.Generator("cuda").manual_seed(rows)
    shapes = [(rows, channels), (rows, width), (channels, width), (channels,), (width, channels)]
    drawn = [torch.randn(s, generator=draw, device="cuda").bfloat16() for s in shapes]
    drawn[2] /= width**0.5
    if scale is not None:
        drawn[4] /= channels**0.5  # beside what joins it, the stream counts
    for stream_dtype in (torch.bfloat16, torch.float32):  # the latter under autocast
        y, stream, *weights = (t.clone() for t in drawn)
        out, stream = torch.full_like(stream, float("nan")), stream.to(stream_dtype)
        expected, wide_stream = stream.double(), stream.double()
        naive.gated_output_(y.double(), wide_stream, *(t.double() for t in weights), expected, 1e-5, scale)
        gated_output_(y, stream, *weights, out, 1e-5, scale)
        assert error(out, expected) < 6e-3
        assert error(stream, wide_stream) < 3e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_a_model_whose_gate_is_late(dtype: torch.dtype, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as the tiny one, in bfloat16 or under autocast: the tokens that leave each pair, and a graph of it."""
    model = SSAMBA(Config(width=192, depth=8, residual_scale=scale)).eval()
    for i, pair in enumerate(model.pairs):
        pair.out_proj_dKE.mul_(30 * scale**i)  # else fresh pairs hardly count beside the stream
    tokens = torch.randn(65, 257, 192, generator=torch.Generator().manual_seed(1))
    expected: list[Tensor] = []
    model.encode_tokens(tokens[:2], layers=expected)
    model, given = model.to("cuda", dtype), tokens.to("cuda", dtype)
    assert given.shape[0] * given.shape[1] >= bimamba.LATE_FROM
    late: list[bool] = []
    step = bimamba.BlockPair._step_gated_late

    def seen(*args: Any) -> bool:
        late.append(step(*args))
        return late[-1]

    monkeypatch.setattr(bimamba.BlockPair, "_step_gated_late", seen)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.float32):
        layers: list[Tensor] = []
        model.encode_tokens(given, layers=layers)
        assert late == [True] * 4
        assert torch.equal(given, tokens.to("cuda", dtype))
        for found, wanted in zip(layers, expected, strict=True):
            assert error(found[:2], wanted.cuda().double()) < BOUND[torch.bfloat16]
        # As an own stream, in a graph, and with the gate in the scan.
        whole = model.encode_tokens(given.clone(), own=True)
        assert error(whole, layers[-1].double()) < BOUND[torch.bfloat16]  # torch normalises for the first pair
        graph, work = torch.cuda.CUDAGraph(), given.clone()
        with torch.cuda.graph(graph):
            out = model.encode_tokens(work.clone(), own=True)
        out.fill_(float("nan"))
        graph.replay()
        assert error(out, whole.double()) < 1e-2
        for parameter in model.parameters():
            parameter.mul_(1.03)  # in place: the replay reads the weights anew
        graph.replay()
        assert error(out, model.encode_tokens(given.clone(), own=True).double()) < 1e-2
        assert error(out, whole.double()) > 2e-2
        monkeypatch.setattr(bimamba, "LATE_FROM", 2**40)
        assert error(out, model.encode_tokens(given).double()) < BOUND[torch.bfloat16]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("width", "rank", "directions"), [(192, 12, 2), (768, 48, 2), (40, 3, 1), (24, 1, 2)])
@torch.no_grad()
def test_ready_weights(width: int, rank: int, directions: int, source: torch.dtype, apart: bool) -> None:
    from ssamba.ops.mamba.gpu import ready_weights

    tensors = [t.cuda() for t in pair_weights(width, rank, directions, source, apart)]
    poison(1, 1, 1, 4 * width * width, torch.bfloat16)
    found = ready_weights(*tensors, dtype=torch.bfloat16)
    plain = naive.ready_weights(*tensors, dtype=torch.bfloat16)
    exact = naive.ready_weights(*(t.double() for t in tensors), dtype=torch.float64)
    for i, (one, other, truth) in enumerate(zip(found, plain, exact, strict=True)):
        assert (one.shape, one.dtype, one.is_contiguous()) == (other.shape, other.dtype, True)
        assert one.data_ptr() % 16 == 0
        # The bias is a sum, whose order may decide how it is rounded.
        assert torch.equal(one, other) if i != 1 else error(one, truth) < 3e-3
    for one, given in zip(found[2:], tensors[3:], strict=True):
        assert one is given or one.dtype != given.dtype or apart


@torch.no_grad()
def test_late_gate_ops_compile() -> None:
    """What they write to is declared: a traced function sees it, and its arguments' other names too."""
    from ssamba.ops.mamba.gpu import gated_output_, ready_weights

    draw = torch.Generator("cuda").manual_seed(3)
    shapes = [(70, 128), (70, 48), (128, 48), (128,), (48, 128)]
    y, stream, *weights = (torch.randn(s, generator=draw, device="cuda").bfloat16() for s in shapes)

    def run(y: Tensor, stream: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        y, stream, out = y + 1, stream * 2, torch.zeros_like(stream)
        gated_output_(y, stream, *weights, out, 1e-5, 2.0)
        return stream + 0, out + 0

    plain, built = run(y, stream, *weights), torch.compile(run, fullgraph=True)(y, stream, *weights)
    assert all(torch.equal(a, b) for a, b in zip(plain, built, strict=True))

    def prepare(*weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(w * 2 for w in ready_weights(*weights, dtype=torch.bfloat16))

    tensors = [t.cuda() for t in pair_weights(48, 3, 2, torch.bfloat16)]
    plain, built = prepare(*tensors), torch.compile(prepare, fullgraph=True)(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(plain, built, strict=True))


def test_channels_that_are_not_aligned() -> None:
    from ssamba.ops.mamba.gpu import bimamba_inner

    tensors = inputs(2, 77, 2, 48, 16, 4, 2, torch.bfloat16, True)
    plain = bimamba_inner(tensors[0][:, :, 0], tensors[0][:, :, 1], *tensors[1:])
    shifted = torch.empty(tensors[0].numel() + 1, device="cuda", dtype=torch.bfloat16)[1:].view(tensors[0].shape)
    shifted.copy_(tensors[0])
    found = bimamba_inner(shifted[:, :, 0], shifted[:, :, 1], *tensors[1:])
    assert error(found, plain.double()) < BOUND[torch.bfloat16]


def test_two_runs_give_the_same_bits(form: str) -> None:
    from ssamba.ops.mamba.gpu import bimamba_inner_packed

    tensors = inputs(2, 300, 2, 96, 16, 6, 2, torch.bfloat16, True)
    runs = []
    for _ in range(2):
        mine = [t.clone().requires_grad_() for t in tensors]
        y = bimamba_inner_packed(*mine)
        runs.append([y, *torch.autograd.grad(y.float().square().sum(), mine)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_graph_compile_and_checkpoint() -> None:
    from ssamba.ops.mamba.gpu import bimamba_inner_packed

    tensors = inputs(2, 40, 2, 32, 16, 4, 2, torch.float32, True)

    def run(*t: Tensor) -> Tensor:
        return bimamba_inner_packed(t[0] * 1.5, *t[1:]).square()

    def grads(call) -> list[Tensor]:  # type: ignore[no-untyped-def]
        mine = [t.clone().requires_grad_() for t in tensors]
        return list(torch.autograd.grad(call(*mine).sum(), mine))

    plain = grads(run)
    kept = grads(lambda *t: torch.utils.checkpoint.checkpoint(run, *t, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    built = grads(torch.compile(run, fullgraph=True))
    assert all(error(a, b.double()) < 1e-5 for a, b in zip(built, plain, strict=True))
    with torch.no_grad():
        expected = run(*tensors)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(*tensors)
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("width", [1, 192, 500, 768])
def test_add_layer_norm(affine: bool, width: int) -> None:
    from ssamba.ops.mamba.gpu import add_layer_norm

    x, residual = (torch.randn(3, 37, width, device="cuda", requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(width, device="cuda", requires_grad=True) for _ in range(2)) if affine else (None, None)
    scale = torch.rand(3, device="cuda")
    out, new = add_layer_norm(x, residual, weight, bias, residual_scale=2.0, x_scale_B=scale)
    expected_new = 2 * residual.double() + scale.double()[:, None, None] * x.double()
    maps = (weight.double(), bias.double()) if weight is not None and bias is not None else ()
    expected = F.layer_norm(expected_new, (width,), *maps)
    a, b = torch.randn(2, 3, 37, width, device="cuda")
    wanted = [t for t in (x, residual, weight, bias) if t is not None]
    found = torch.autograd.grad((out * a + new * b).sum(), wanted)
    truth = torch.autograd.grad((expected * a + expected_new * b).sum(), wanted)
    assert error(new, expected_new) < 1e-5
    if width > 1:
        assert error(out, expected) < 1e-5
    for f, t in zip(found, truth, strict=True):
        assert error(f, t.double()) < 1e-4 or t.norm() < 1e-6


@pytest.mark.parametrize("width", [1, 192, 768])
def test_add_layer_norm_in_place(width: int) -> None:
    from ssamba.ops.mamba.gpu import add_layer_norm_, layer_norm

    x, residual = (torch.randn(3, 37, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    new = (2 * residual.double() + x.double()).to(torch.bfloat16)
    expected = F.layer_norm(2 * residual.double() + x.double(), (width,))
    add_layer_norm_(x, residual, 1e-5, 2.0)
    assert torch.equal(residual, new)
    assert width == 1 or error(x, expected) < 4e-3
    assert width == 1 or error(layer_norm(new, 1e-5), F.layer_norm(new.double(), (width,))) < 4e-3


def test_under_autocast() -> None:
    from ssamba.ops.mamba.gpu import bimamba_inner

    tensors = inputs(2, 33, 2, 32, 16, 4, 2, torch.float32, True)
    plain = bimamba_inner(tensors[0][:, :, 0], tensors[0][:, :, 1], *tensors[1:])
    with torch.autocast("cuda", torch.bfloat16):
        cast = bimamba_inner(tensors[0][:, :, 0], tensors[0][:, :, 1], *tensors[1:])
    assert torch.equal(plain, cast)
