"""The norm and a pair's weights in CUDA C++, emulated on the CPU, beside float64; and what of them is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulation import build
from mixer_inputs import pair_weights, weights_of
from part_script import skip_without_compiler
from torch import Tensor

from ssamba.ops import dispatch
from ssamba.ops.cuda import sources
from ssamba.ops.jit import nvrtc
from ssamba.ops.layer_norm import cuda as layer_norm
from ssamba.ops.layer_norm import gpu as norm_gpu
from ssamba.ops.layer_norm import naive as naive_norm
from ssamba.ops.mamba import gpu_inference, gpu_input, naive
from ssamba.ops.mamba.cuda import weights
from ssamba.ops.mamba.params import MixerParams

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
HALF_STEP = {F32: 2.0**-24, BF16: 2.0**-8, F16: 2.0**-11}
"""The largest relative error of one rounding."""
EPS = 1e-5


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_compiler()
    monkeypatch.setattr(nvrtc, "kernel", build)
    for module in (layer_norm, weights):
        monkeypatch.setattr(module, "usable", lambda *_: True)


def draw(*shape: int, dtype: torch.dtype = F32, shift: float = 0.0, unaligned: bool = False) -> Tensor:
    """Normal numbers; ``unaligned``: one element behind an aligned address."""
    generator = torch.Generator().manual_seed(sum(shape))
    values = (torch.randn(*shape, generator=generator) + shift).to(dtype)
    if not unaligned:
        return values
    memory = torch.empty(values.numel() + 1, dtype=dtype)
    memory[1:] = values.flatten()
    return memory[1:].view(shape)


def assert_rounded(found: Tensor, exact: Tensor, dtype: torch.dtype, where: str, terms: Tensor | None = None) -> None:
    """``found`` is ``exact`` but for one rounding to its type and the errors of float32.

    ``terms``: the sum of magnitudes of what was added up, at least 1 without it.
    """
    assert (found.dtype, found.shape) == (dtype, exact.shape), where
    error = (found.double() - exact).abs()
    bound = 1.01 * HALF_STEP[dtype] * exact.abs() + 2e-6 * (exact.abs().clamp_min(1.0) if terms is None else terms)
    assert bool((error <= bound).all()), f"{where}: off by {float((error - bound).max()):.1e} more than a rounding"


def exact_norm(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


SIZES = (
    (9, 192, False), (1, 192, True), (3, 1, False), (5, 7, False), (2, 24, False), (7, 33, True), (6, 768, False),
    (2, 1028, False), (3, 1031, True), (2, 2056, False), (0, 192, False),
)  # fmt: skip
"""Rows, their width, and whether they lie at addresses that forbid loads of several values."""

OUTPUTS = ((BF16, BF16), (F32, BF16), (F16, F32), (F32, F16))
"""Types of x and of its norm."""
STREAMS = ((BF16, BF16), (BF16, F32), (F16, F16), (F32, F32), (F16, F32))
"""Types of x and of the residual."""


def cases(types: tuple[tuple[torch.dtype, torch.dtype], ...]) -> list[tuple[Any, ...]]:
    """Each size with one pair of types, and the first with all."""
    others = [(*size, *types[i % len(types)]) for i, size in enumerate(SIZES)]
    return [*others, *((*SIZES[0], *pair) for pair in types[1:])]


@pytest.mark.parametrize(("rows", "width", "unaligned", "of_x", "of_out"), cases(OUTPUTS))
def test_normalise(rows: int, width: int, unaligned: bool, of_x: torch.dtype, of_out: torch.dtype) -> None:
    x = draw(rows, width, dtype=of_x, shift=3.0, unaligned=unaligned)
    before = x.clone()
    out = layer_norm.normalise(x, EPS, of_out)
    assert_rounded(out, exact_norm(x.double()), of_out, f"{(rows, width, of_x, of_out)}")
    assert torch.equal(x, before)
    memory = torch.full((rows + 2, width), 7.0, dtype=of_out)
    assert layer_norm.normalise(x, EPS, of_out, memory[1:-1]) is not out
    assert torch.equal(memory[1:-1], out)
    assert bool((memory[0] == 7).all() and (memory[-1] == 7).all())
    if of_x == of_out:
        assert layer_norm.normalise(x, EPS, of_out, x) is x
        assert torch.equal(x, out)


@pytest.mark.parametrize(("rows", "width", "unaligned", "of_x", "of_stream"), cases(STREAMS))
def test_in_place(rows: int, width: int, unaligned: bool, of_x: torch.dtype, of_stream: torch.dtype) -> None:
    scale = 1.0 + rows % 2
    x = draw(rows, width, dtype=of_x, unaligned=unaligned)
    memory = draw(rows + 2, width, dtype=of_stream, shift=0.5)
    stream, around = memory[1:-1], memory[:: rows + 1].clone()
    sums = scale * stream.double() + x.double()
    norm_gpu.add_layer_norm_(x, stream, EPS, scale)
    assert_rounded(stream, sums, of_stream, f"stream {(rows, width, of_x, of_stream)}")
    assert_rounded(x, exact_norm(sums), of_x, f"norm {(rows, width, of_x, of_stream)}")
    assert torch.equal(memory[:: rows + 1], around)


@pytest.mark.parametrize(
    ("width", "affine", "residual", "factor"),
    [
        (1, None, None, True), (20, F32, F32, False), (20, BF16, None, True), (192, BF16, F32, False),
        (192, None, BF16, True), (192, F32, None, False), (1028, F32, BF16, True), (1028, None, F32, False),
    ],
)  # fmt: skip
def test_every_result(width: int, affine: torch.dtype | None, residual: torch.dtype | None, factor: bool) -> None:
    """With everything that the operator takes and returns, apart in memory, and x not contiguous."""
    x = draw(2, width, 5, dtype=BF16).transpose(1, 2)
    stream = None if residual is None else draw(2, 5, width, dtype=residual, shift=1.0)
    weight, bias = (None, None) if affine is None else (draw(width, dtype=affine), draw(width, dtype=affine) + 1)
    if bias is not None and width == 20:
        bias = bias.float()  # another type than the weight's
    scale_B = torch.tensor([0.0, 1.25], dtype=BF16) if factor else None
    given = [t.clone() for t in (x, stream) if t is not None]
    out, new, mean, rstd = layer_norm.forward(x, stream, scale_B, weight, bias, EPS, 2.0, F32)
    wide = [None if t is None else t.double() for t in (x, stream, weight, bias, scale_B)]
    sums = wide[0] if scale_B is None else wide[0] * wide[4][:, None, None]
    sums = sums if wide[1] is None else sums + 2 * wide[1]
    centred = sums - sums.mean(-1, keepdim=True)
    assert_rounded(mean, sums.mean(-1), F32, "mean")
    assert_rounded(rstd, (centred.square().mean(-1) + EPS).rsqrt(), F32, "1 / std")
    assert_rounded(new, sums, residual or BF16, "sum")
    normal = exact_norm(sums)
    expected = normal if affine is None else normal * wide[2] + wide[3]
    assert_rounded(out, expected, F32, "norm")
    assert all(torch.equal(a, b) for a, b in zip(given, (t for t in (x, stream) if t is not None), strict=True))
    assert len({t.data_ptr() for t in (x, out, new)}) == 3


def test_the_operator_has_the_kernels_and_float64s_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved by this forward leads the plain backward to the right gradients."""
    monkeypatch.setattr(norm_gpu, "_gpu_add_layer_norm_backward", norm_gpu._plain_norm_backward)
    tensors = [draw(2, 3, 20), draw(2, 3, 20) * 2, draw(20) + 1, draw(20)]
    mine, exact = ([t.to(d).requires_grad_() for t in tensors] for d in (F32, torch.float64))
    out, stream = norm_gpu.add_layer_norm(*mine, residual_scale=2.0)
    expected = naive_norm.add_layer_norm(*exact, residual_scale=2.0)
    g = draw(2, 3, 20)
    found = torch.autograd.grad((out * g + stream).sum(), mine)
    truth = torch.autograd.grad((expected[0] * g + expected[1]).sum(), exact)
    for a, b in zip((out, stream, *found), (*expected, *truth), strict=True):
        assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < 1e-6


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("d", "r", "R", "source", "dtype"),
    [
        (16, 3, 2, BF16, BF16), (24, 2, 1, F32, BF16), (192, 12, 1, F32, BF16), (192, 12, 2, F16, F16),
        (192, 12, 2, F32, F32), (5, 1, 2, F16, F32), (1, 1, 1, BF16, F16), (6, 2, 1, F32, F16),
    ],
)  # fmt: skip
def test_ready_weights(d: int, r: int, R: int, source: torch.dtype, dtype: torch.dtype, apart: bool) -> None:
    check_ready_weights(pair_weights(d, r, R, source, apart), dtype)


def check_ready_weights(tensors: list[Tensor], dtype: torch.dtype) -> None:
    """The plain form's bits, but for the bias, which is a sum."""
    found, plain = (weights_of(form, tensors, dtype) for form in (gpu_inference, naive))
    exact = weights_of(naive, [t.double() for t in tensors], torch.float64)
    for i, (f, p, e) in enumerate(zip(found, plain, exact, strict=True)):
        assert (f.shape, f.dtype, f.is_contiguous()) == (p.shape, p.dtype, True)
        if i == 1:
            terms = (tensors[0].double() * tensors[2].double()[:, None]).abs().sum(-1)
            assert_rounded(f, e, dtype, "bias", terms)
        else:
            assert torch.equal(f, p), f"weight {i}"


@pytest.mark.parametrize("count", [2, 12, 13])
def test_ready_weights_of_pairs(count: int) -> None:
    """Each as if it were alone: together as far as the argument holds, and apart where they differ."""
    pairs = [pair_weights(8, 2, 1, F32) for _ in range(count)]
    for i, pair in enumerate(pairs):
        pair[0] += i
    for given in (pairs, [*pairs[:1], pair_weights(16, 2, 1, F32)], [*pairs[:1], pair_weights(8, 2, 1, BF16)]):
        arguments = [(*pair[:4], MixerParams(*pair[4:])) for pair in given]
        found = gpu_inference.ready_weights_of_pairs(given[0][0], arguments, BF16)
        assert len(found) == len(given)
        for (*of_pair, params), pair in zip(found, given, strict=True):
            alone = weights_of(gpu_inference, pair, BF16)
            assert all(torch.equal(a, b) for a, b in zip((*of_pair, *params), alone, strict=True))


def test_prepare_folds_alone_and_writes_nothing_else() -> None:
    in_proj, scale, shift = draw(2, 2, 7, 12), draw(2, 12), draw(2, 12)
    weight, bias = gpu_input._fold(in_proj, scale, shift, BF16)
    plain = naive.fold_norm(in_proj, scale, shift)
    assert torch.equal(weight, plain[0].bfloat16())
    assert_rounded(bias, naive.fold_norm(*(t.double() for t in (in_proj, scale, shift)))[1], BF16, "bias")
    memory = torch.full((4097,), 7.0, dtype=BF16)
    source = draw(2049)
    weights.prepare(in_proj, scale, shift, weight, bias, [source, source[:0]], [memory[:2049], memory[:0]])
    assert torch.equal(memory[:2049], source.bfloat16())
    assert bool((memory[2049:] == 7).all())


def test_conversions_round_as_torch_does() -> None:
    """Ties, what is beyond the type, infinities and NaN."""
    ties = [0.0, -0.0, 1.00390625, 1.01171875, 65504.0, 65519.9, 65520.0, 3.4e38]
    edges = [*ties, float("inf"), -float("inf"), float("nan")]
    in_proj, scale = draw(1, 1, 1, 4), draw(1, 4)
    for source in (F32, BF16, F16):
        given = torch.tensor(edges).to(source)
        targets = [torch.empty(len(edges), dtype=t) for t in (F32, BF16, F16)]
        weights.prepare(in_proj, scale, scale, in_proj.clone(), in_proj[0, :, 0, :1].clone(), [given] * 3, targets)
        for target in targets:
            assert torch.allclose(target, given.float().to(target.dtype), rtol=0, atol=0, equal_nan=True)


def test_as_many_values_at_once_as_addresses_allow() -> None:
    row = torch.zeros(64, dtype=BF16)
    assert sources.values_at_once(192, row, None) == 8
    assert sources.values_at_once(192, row, torch.zeros(64)) == 4
    assert sources.values_at_once(12, row) == 4
    assert sources.values_at_once(6, row) == 2
    assert sources.values_at_once(192, row[1:]) == 1
    assert sources.values_at_once(192, row[4:]) == 4


def test_the_environment_forbids_cuda_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True), raising=False)
    monkeypatch.setattr(nvrtc, "multiplies_bfloat16", lambda _: True)
    x = torch.zeros(2, 4)
    assert sources.usable(x, None)
    assert not sources.usable(x, x.double())
    monkeypatch.setenv("SSAMBA_GPU_SCAN", "triton")
    assert not sources.usable(x)
    monkeypatch.delenv("SSAMBA_GPU_SCAN")
    monkeypatch.setattr(nvrtc, "multiplies_bfloat16", lambda _: False)
    assert not sources.usable(x)


def test_portable_kernels_when_asked_for() -> None:
    x = torch.zeros(2, 4)
    assert dispatch.small_kernels("norm", x) is layer_norm
    with dispatch.use_backend("cuda"):
        assert dispatch.small_kernels("norm", x) is layer_norm
    pytest.importorskip("triton")
    with dispatch.use_backend("portable"):
        assert dispatch.small_kernels("norm", x).__name__ == "ssamba.ops.layer_norm.triton"
