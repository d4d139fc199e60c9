"""Values and every gradient of the GPU kernels against the reference form in float64, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from compare import Shape, assert_close, case_id, relative_error
from mixer_inputs import pair_weights
from parallel_scan import bimamba_inner as expected_inner
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.block_pair import InferencePlan
from ssamba.models.config import Config
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
BOUND = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
NAMES = ("xz", *MixerParams._fields)
HALVES = {torch.bfloat16: 1.0, torch.float16: 0.25}
"""Types that tensor cores take, and the share of bfloat16's errors allowed to them: float16 has three more bits."""


def inputs(shape: Shape, dtype: torch.dtype, trained: bool = True) -> list[Tensor]:
    """xz (B, L, 2, K, E) and the mixer's parameters."""
    B, L, R, K, E, N, W, r = shape
    generator = torch.Generator().manual_seed(1000 * L + E + N)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    xz = draw(B, L, 2, K, E).to(dtype)
    xz[:, 3::5, 1] = 0  # a closed gate, of which the backward must not divide by nothing
    a_log = torch.log(torch.arange(1.0, N + 1)).repeat(R, K, E, 1)
    if trained:  # spread decays, negative skips, some channels with large steps
        a_log = a_log + 0.7 * draw(R, K, E, N)
    dt_bias = torch.exp(torch.rand(R, K, E, generator=generator) * 4.6 - 6.9).log() + (draw(R, K, E) if trained else 0)
    weights = [draw(R, K, E, W) * 0.5, draw(R, K, E) * 0.1, draw(R, K, r + 2 * N, E) / E**0.5]
    weights += [draw(R, K, E, r) / r**0.5, dt_bias, a_log, draw(R, K, E) if trained else torch.ones(R, K, E)]
    # The plain form sees exactly the rounded values that the kernels use.
    if dtype != torch.float32:
        weights[2:4] = [w.to(dtype).float() for w in weights[2:4]]
    return [t.cuda() for t in [xz, *weights]]


def packed(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The mixer of one tensor of x and z."""
    return ops.bimamba_inner_packed(*tensors)


def apart(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The mixer of x and z as two tensors, views into one."""
    return ops.bimamba_inner(*tensors[0].unbind(2), *tensors[1:])


def expected_output(tensors: list[Tensor], gated: bool = True) -> Tensor:
    """In float64."""
    x, z = tensors[0].unbind(2)
    return expected_inner(x, z if gated else None, MixerParams(*tensors[1:]))


def compare(shape: Shape, dtype: torch.dtype, trained: bool = True) -> None:
    tensors = inputs(shape, dtype, trained)
    exact = [t.double().requires_grad_() for t in tensors]
    expected = expected_output(exact)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).cuda().to(dtype)
    expected_grads = torch.autograd.grad((expected * weight.double()).sum(), exact)
    mine = [t.clone().requires_grad_() for t in tensors]
    y = packed(mine) if shape.L % 2 == 0 else apart(mine)
    assert y.dtype == dtype
    # One channel has nothing to average the rounding of the 16-bit projection over.
    bound = BOUND[dtype] * (3 if shape.E == 1 and dtype != torch.float32 else 1)
    assert_close("output", y, expected, bound)
    for name, grad, wanted in zip(NAMES, torch.autograd.grad((y * weight).sum(), mine), expected_grads, strict=True):
        if wanted.norm() > 1e-9:
            assert_close(f"gradient of {name}", grad, wanted, bound)
        assert torch.isfinite(grad).all()


@pytest.fixture(params=["gpu", "portable"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """CUDA C++ where it runs, and the Triton kernels alone."""
    with ops.use_backend(request.param):
        yield request.param


SHAPES = [
    Shape(1, 1, 2, 2, 3, 16, r=2), Shape(2, 7, 2, 2, 1, 16, r=1), Shape(1, 513, 2, 2, 48, 16, r=12),
    Shape(2, 1212, 2, 2, 20, 5, r=3), Shape(1, 65, 2, 1, 1536, 16, r=48), Shape(3, 130, 2, 2, 70, 1, r=5),
    Shape(1, 100, 2, 2, 33, 64, r=8), Shape(2, 40, 2, 3, 17, 33, r=4), Shape(1, 50, 1, 2, 24, 16, r=4),
    Shape(2, 64, 2, 2, 384, 16, r=12),
    # widths that the forward by tensor-core products takes, also a block's last group of channels alone
    Shape(2, 1, 2, 2, 16, 16, r=4), Shape(2, 7, 2, 1, 80, 16, r=8), Shape(2, 1212, 2, 2, 96, 16, r=12),
    Shape(1, 130, 1, 2, 64, 16, r=20),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=case_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=case_id)
def test_values_and_gradients(shape: Shape, dtype: torch.dtype, backend: str) -> None:
    compare(shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=case_id)
def test_long(dtype: torch.dtype, backend: str) -> None:
    compare(Shape(1, 22016, 2, 1, 8, 16, r=2), dtype, trained=False)
    if backend == "gpu":  # in chunks of time
        compare(Shape(1, 22016, 2, 1, 16, 16, r=4), dtype, trained=False)


def test_the_portable_kernels_are_others() -> None:
    """Else the comparisons above would compare one form twice."""
    tensors = inputs(Shape(2, 64, 2, 2, 96, 16, r=12), torch.bfloat16)
    with ops.use_backend("portable"):
        portable = packed(tensors)
    with ops.use_backend("cuda"):
        assert not torch.equal(packed(tensors), portable)


@pytest.mark.parametrize(
    "cut",
    [
        "split=1,warps=4,stages=3,chunks=1", "split=1,warps=4,stages=4,chunks=8", "split=1,warps=8,stages=3,chunks=1",
        "split=1,warps=1,stages=3,chunks=1", "split=2,warps=2,stages=3,chunks=1", "split=2,warps=4,stages=4,chunks=5",
        "split=1,warps=4,stages=3,chunks=16", "split=1,warps=8,stages=3,chunks=1,adds=0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
def test_every_cut_of_the_forward(cut: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAMBA_CUT", f"blocks=2,{cut}")
    tensors = inputs(Shape(2, 4109, 2, 2, 80, 16, r=12), dtype)
    assert "scan_fragments" in " ".join(nvrtc.compile_for(lambda: packed(tensors))[0])
    expected = expected_output([t.double() for t in tensors])
    found = [packed(tensors) for _ in range(2)]
    assert_close("output", found[0], expected, 5e-3 * HALVES[dtype])
    assert torch.equal(*found)


@pytest.mark.parametrize("cut", ["split=1,warps=4", "split=2,warps=2"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@torch.no_grad()
def test_a_scan_without_its_gate(
    cut: str, directions: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSAMBA_CUT", cut)
    tensors = inputs(Shape(2, 517, directions, 2, 96, 16, r=8), dtype)
    x = tensors[0][:, :, 0].contiguous()
    work = torch.full_like(x, float("nan"))
    y = ops.bimamba_ungated(x, work, *tensors[1:])
    assert_close("output", y, expected_output([t.double() for t in tensors], gated=False), BOUND[dtype])
    assert torch.isfinite(work).any()  # the projection lies there


@pytest.mark.parametrize("rows", [1, 127, 257, 4099, 40001])
@pytest.mark.parametrize(
    ("width", "channels", "pieces"),
    [(192, 768, 1), (384, 1536, 1), (64, 256, 1), (128, 192, 1), (768, 3072, 3), (40, 72, 2), (48, 192, 1)],
)
@pytest.mark.parametrize("scale", [None, 1.0, 2.0])
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@torch.no_grad()
def test_gate_and_output(
    rows: int, width: int, channels: int, pieces: int, scale: float | None, dtype: torch.dtype
) -> None:
    from ssamba.ops.mamba.gpu_inference import gated_output_

    draw = torch.Generator("cuda").manual_seed(rows)
    shapes = [(rows, channels), (rows, width), (channels, width), (channels,), (width, channels)]
    drawn = [torch.randn(s, generator=draw, device="cuda").to(dtype) for s in shapes]
    drawn[2] /= width**0.5
    if scale is not None:
        drawn[4] /= channels**0.5  # the stream counts, too
    options = {"eps": 1e-5, "residual_scale": scale}
    for stream_dtype, normed in ((dtype, False), (torch.float32, False), (dtype, True)):  # the second under autocast
        y, stream, *weights = (t.clone() for t in drawn)
        out, stream = torch.full_like(stream, float("nan")), stream.to(stream_dtype)
        if normed:
            out = torch.nn.functional.layer_norm(stream, stream.shape[-1:], eps=1e-5)
        expected, wide_stream = out.double(), stream.double()
        naive.gated_output_(y.double(), wide_stream, *(t.double() for t in weights), expected, **options, normed=normed)
        gated_output_(y, stream, *weights, out, **options, normed=normed, piece_values=rows * channels // pieces)
        assert_close("output", out, expected, 6e-3 * HALVES[dtype])
        assert_close("stream", stream, wide_stream, 3e-3 * HALVES[dtype])


@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@pytest.mark.parametrize(("rows", "width", "channels"), [(1, 40, 8), (515, 192, 768), (4099, 768, 3072)])
@torch.no_grad()
def test_output_to_stream(rows: int, width: int, channels: int, dtype: torch.dtype) -> None:
    draw = torch.Generator("cuda").manual_seed(rows)
    shapes = (rows, channels), (width, channels), (rows, width)
    y, out_proj, stream = (torch.randn(s, generator=draw, device="cuda").to(dtype) for s in shapes)
    out_proj /= channels**0.5
    out, wide_stream, wide = torch.full_like(stream, float("nan")), stream.double(), stream.double()
    naive.output_to_stream_(y.double(), out_proj.double(), wide_stream, wide, 1e-5, 2.0)
    ops.output_to_stream_(y, out_proj, stream, out, 1e-5, 2.0)
    assert_close("stream", stream, wide_stream, 3e-3 * HALVES[dtype])
    assert_close("norm", out, wide, 6e-3 * HALVES[dtype])


@pytest.mark.parametrize("tile", ["", "128,128,64,4,3", "256,128,64,8,3", "128,256,64,8,4", "64,128,32,4,2", "pieces"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=case_id)
@torch.no_grad()
def test_the_product_with_the_gate(tile: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every tile: sizes that fill no tile, and the published widths; the same bits twice, also from a graph."""
    from ssamba.ops import dispatch
    from ssamba.ops.mamba.gpu_inference import gated_output_
    from ssamba.ops.mamba.triton import gate_product

    monkeypatch.setenv("SSAMBA_GATE", tile)
    tensor_maps = torch.version.hip is None and torch.cuda.get_device_capability() == (9, 0)
    for rows, width, channels in ((1, 200, 40), (4099, 208, 808), (301, 384, 1536), (22017, 768, 3072)):
        draw = torch.Generator("cuda").manual_seed(rows)
        shapes = [(rows, channels), (rows, width), (channels, width), (channels,), (width, channels)]
        y, stream, weight, bias, out_proj = (torch.randn(s, generator=draw, device="cuda").to(dtype) for s in shapes)
        weight, out_proj, stream = weight / width**0.5, out_proj / channels**0.5, stream + 2
        rest, out = (weight, bias, out_proj), torch.full_like(stream, float("nan"))
        found = dispatch.find_kernels("gate_product", y, stream, *rest, out)
        if tensor_maps:
            assert found is (None if tile == "pieces" else gate_product)
        wide_y, wide_stream, expected = y.double(), stream.double(), out.double()
        naive.gated_output_(wide_y, wide_stream, *(t.double() for t in rest), expected, 1e-5, 2.0)
        given = y.clone(), stream.clone()
        gated_output_(y, stream, *rest, out, 1e-5, 2.0)
        for name, mine, wanted in (("y", y, wide_y), ("out", out, expected), ("stream", stream, wide_stream)):
            assert_close(f"{name} of {(rows, width, channels)}", mine, wanted, 6e-3)
        first = [t.clone() for t in (y, stream, out)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            gated_output_(y, stream, *rest, out, 1e-5, 2.0)
        y.copy_(given[0])
        stream.copy_(given[1])
        out.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip((y, stream, out), first, strict=True))


@pytest.mark.parametrize("half", list(HALVES), ids=case_id)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("width", [192, 256])
@torch.no_grad()
def test_a_model_whose_gate_is_deferred(half: torch.dtype, autocast: bool, scale: int, width: int) -> None:
    """As wide as the tiny one, or too wide for one pass; in 16 bits or under autocast.

    The tokens that leave each pair, and a graph of it.
    """
    model = SSAMBA(Config(width=width, depth=8, residual_scale=scale)).eval()
    model.plan = InferencePlan(defer_gate_min_tokens_wide=16384)
    dtype, bound = torch.float32 if autocast else half, BOUND[torch.bfloat16] * HALVES[half]
    for i, pair in enumerate(model.pairs):
        pair.out_proj_dKE.mul_(30 * scale**i)  # else fresh pairs hardly count next to the stream
    tokens = torch.randn(65, 257, width, generator=torch.Generator().manual_seed(1))
    expected: list[Tensor] = []
    model.encode_tokens(tokens[:2], layers=expected)
    model, given = model.to("cuda", dtype), tokens.to("cuda", dtype)
    assert model.plan.defers_gate(given.shape[0] * given.shape[1], width)
    normed: list[bool] = []
    hooks = [pair.register_forward_hook(lambda _pair, _, state: normed.append(state.normed)) for pair in model.pairs]
    with torch.autocast("cuda", half, enabled=autocast):
        layers: list[Tensor] = []
        model.encode_tokens(given, layers=layers)
        # Only a deferred gate does what the next pair begins with; the final norm is not the last pair's to do.
        assert normed == [True, True, True, False]
        for hook in hooks:
            hook.remove()
        assert torch.equal(given, tokens.to("cuda", dtype))
        for i, (found, wanted) in enumerate(zip(layers, expected, strict=True)):
            assert_close(f"layer {i}", found[:2], wanted.cuda(), bound)
        # In place, in a graph, and with the gate in the scan.
        whole = model.encode_tokens(given.clone(), own=True)
        assert_close("in place", whole, layers[-1], bound)  # torch normalises for the first pair
        graph, work = torch.cuda.CUDAGraph(), given.clone()
        with torch.cuda.graph(graph):
            out = model.encode_tokens(work.clone(), own=True)
        out.fill_(float("nan"))
        graph.replay()
        assert_close("replay", out, whole, 1e-2)
        for parameter in model.parameters():
            parameter.mul_(1.03)  # in place: the replay reads the weights anew
        graph.replay()
        assert_close("replay of new weights", out, model.encode_tokens(given.clone(), own=True), 1e-2)
        assert relative_error(out, whole) > 2e-2
        model.plan = InferencePlan(defer_gate_min_tokens=2**40, defer_gate_min_tokens_wide=2**40)
        assert_close("gate in the scan", model.encode_tokens(given), out, bound)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("width", "rank", "directions"), [(192, 12, 2), (768, 48, 2), (40, 3, 1), (24, 1, 2)])
@torch.no_grad()
def test_ready_weights(width: int, rank: int, directions: int, source: torch.dtype, apart: bool) -> None:
    tensors = [t.cuda() for t in pair_weights(width, rank, directions, source, apart)]
    found = ops.ready_weights_of_pairs([tuple(tensors)], torch.bfloat16)[0]
    with ops.use_backend("reference"):
        plain = ops.ready_weights_of_pairs([tuple(tensors)], torch.bfloat16)[0]
        exact = ops.ready_weights_of_pairs([tuple(t.double() for t in tensors)], torch.float64)[0]
    for i, (one, other, wanted) in enumerate(zip(found, plain, exact, strict=True)):
        assert (one.shape, one.dtype, one.is_contiguous()) == (other.shape, other.dtype, True)
        assert one.data_ptr() % 16 == 0
        if i == 1:  # the bias is a sum, whose order may decide how it is rounded
            assert_close("bias", one, wanted, 3e-3)
        else:
            assert torch.equal(one, other)
    for one, given in zip(found[2:], tensors[3:], strict=True):
        assert one is given or one.dtype != given.dtype or apart


@torch.no_grad()
def test_operators_of_a_deferred_gate_compile() -> None:
    """What they write to is declared: a traced function sees it, and its arguments' other names too."""
    draw = torch.Generator("cuda").manual_seed(3)
    shapes = [(70, 128), (70, 48), (128, 48), (128,), (48, 128)]
    y, stream, *weights = (torch.randn(s, generator=draw, device="cuda").bfloat16() for s in shapes)

    def run(y: Tensor, stream: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        y, stream, out = y + 1, stream * 2, torch.zeros_like(stream)
        ops.gated_output_(y, stream, *weights, out, 1e-5, 2.0)
        return stream + 0, out + 0

    plain, built = run(y, stream, *weights), torch.compile(run, fullgraph=True)(y, stream, *weights)
    assert all(torch.equal(a, b) for a, b in zip(plain, built, strict=True))

    def prepare(*weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(w * 2 for w in ops.ready_weights_of_pairs([tuple(weights)], torch.bfloat16)[0])

    tensors = [t.cuda() for t in pair_weights(48, 3, 2, torch.bfloat16)]
    plain, built = prepare(*tensors), torch.compile(prepare, fullgraph=True)(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(plain, built, strict=True))


def test_channels_that_are_not_aligned() -> None:
    tensors = inputs(Shape(2, 77, 2, 2, 48, 16, r=4), torch.bfloat16)
    shifted = torch.empty(tensors[0].numel() + 1, device="cuda", dtype=torch.bfloat16)[1:].view(tensors[0].shape)
    shifted.copy_(tensors[0])
    assert_close("output", apart([shifted, *tensors[1:]]), apart(tensors), BOUND[torch.bfloat16])


def test_two_runs_give_the_same_bits(backend: str) -> None:
    tensors = inputs(Shape(2, 300, 2, 2, 96, 16, r=6), torch.bfloat16)
    runs = []
    for _ in range(2):
        mine = [t.clone().requires_grad_() for t in tensors]
        y = packed(mine)
        runs.append([y, *torch.autograd.grad(y.float().square().sum(), mine)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_graph_compile_and_checkpoint() -> None:
    tensors = inputs(Shape(2, 40, 2, 2, 32, 16, r=4), torch.float32)

    def run(*t: Tensor) -> Tensor:
        return packed((t[0] * 1.5, *t[1:])).square()

    def grads(call) -> list[Tensor]:  # type: ignore[no-untyped-def]
        mine = [t.clone().requires_grad_() for t in tensors]
        return list(torch.autograd.grad(call(*mine).sum(), mine))

    plain = grads(run)
    kept = grads(lambda *t: torch.utils.checkpoint.checkpoint(run, *t, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    for name, a, b in zip(NAMES, grads(torch.compile(run, fullgraph=True)), plain, strict=True):
        assert_close(f"gradient of {name}", a, b, 1e-5)
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
    x, residual = (torch.randn(3, 37, width, device="cuda", requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(width, device="cuda", requires_grad=True) for _ in range(2)) if affine else (None, None)
    scale = torch.rand(3, device="cuda")
    out, stream = ops.add_layer_norm(x, residual, weight, bias, residual_scale=2.0, x_scale_B=scale)
    expected_stream = 2 * residual.double() + scale.double()[:, None, None] * x.double()
    maps = (weight.double(), bias.double()) if weight is not None and bias is not None else ()
    expected = F.layer_norm(expected_stream, (width,), *maps)
    a, b = torch.randn(2, 3, 37, width, device="cuda")
    wanted = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    leaves = [t for t in wanted.values() if t is not None]
    found = torch.autograd.grad((out * a + stream * b).sum(), leaves)
    exact = torch.autograd.grad((expected * a + expected_stream * b).sum(), leaves)
    assert_close("stream", stream, expected_stream, 1e-5)
    if width > 1:
        assert_close("norm", out, expected, 1e-5)
    for name, f, t in zip(wanted, found, exact, strict=False):
        if t.norm() >= 1e-6:
            assert_close(f"gradient of {name}", f, t, 1e-4)


@pytest.mark.parametrize("width", [1, 192, 768])
@torch.no_grad()
def test_add_layer_norm_in_place(width: int) -> None:
    x, residual = (torch.randn(3, 37, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    sums = 2 * residual.double() + x.double()
    norm, stream = ops.add_layer_norm(x, residual, residual_scale=2.0, reuse=True)
    assert norm is x
    assert stream is residual
    assert torch.equal(residual, sums.to(torch.bfloat16))
    first, same = ops.add_layer_norm(stream.clone(), None, reuse=True)
    assert torch.equal(same, stream)
    if width > 1:
        assert_close("norm", x, F.layer_norm(sums, (width,)), 4e-3)
        assert_close("norm of the stream", first, F.layer_norm(stream.double(), (width,)), 4e-3)


def test_under_autocast() -> None:
    tensors = inputs(Shape(2, 33, 2, 2, 32, 16, r=4), torch.float32)
    plain = apart(tensors)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(plain, apart(tensors))
