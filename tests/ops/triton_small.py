"""Small checks of the GPU kernels without a GPU, run in a process of their own by test_gpu_kernels_on_cpu.py.

``interpret``: the Triton kernels in Triton's interpreter. ``emulate``: the CUDA C++ built by g++ over cuda_shim;
``emulate-one``: one size of it.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
import torch.nn.functional as F
import triton_arrays  # noqa: F401  (makes the interpreter take NumPy's arrays)
from emulation import build
from mixer_inputs import mixer_inputs, pair_weights, weights_of
from torch import Tensor

from ssamba import ops
from ssamba.ops import dispatch
from ssamba.ops.jit import nvrtc
from ssamba.ops.layer_norm import gpu as norm_gpu
from ssamba.ops.mamba import gpu, gpu_inference, naive
from ssamba.ops.mamba.cuda import projection, scan
from ssamba.ops.mamba.params import MixerParams
from ssamba.ops.mamba.triton import conv, gate_product, gated_output
from ssamba.utils.errors import ConfigError

torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is full of NaN


def plain_proj(x: Tensor, weight: Tensor, bias: Tensor, proj: Tensor, alternating: bool = False) -> Tensor:
    u_BLRKE = naive.conv_silu(x.float(), weight, bias, alternating)
    return torch.einsum("blrke,rkpe->rkblp", u_BLRKE, proj).to(x.dtype).flatten(0, 1).contiguous()


def check(B: int, L: int, K: int, E: int, N: int, r: int, R: int, dtype: torch.dtype, bound: float) -> None:
    generator = torch.Generator().manual_seed(L)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    a_log = torch.log(torch.rand(R, K, E, N, generator=generator) * N + 0.5)
    tensors = [draw(B, L, 2, K, E).to(dtype), draw(R, K, E, 4) * 0.5, draw(R, K, E) * 0.1]
    tensors += [draw(R, K, r + 2 * N, E) / E**0.5, draw(R, K, E, r) / r**0.5, draw(R, K, E) - 3, a_log, draw(R, K, E)]
    tensors[0][:, ::5, 1] = 0  # a closed gate
    exact = [t.double().requires_grad_() for t in tensors]
    expected = naive.bimamba_inner(exact[0][:, :, 0], exact[0][:, :, 1], MixerParams(*exact[1:]))
    mine = [t.clone().requires_grad_() for t in tensors]
    packed = L % 2 == 0
    params = MixerParams(*mine[1:])
    halves = mine[0].unbind(2)
    y = gpu.bimamba_inner_packed(mine[0], params) if packed else gpu.bimamba_inner(*halves, params)
    weight = draw(*y.shape).double()
    found = [y, *torch.autograd.grad((y * weight.to(dtype)).sum(), mine)]
    truth = [expected, *torch.autograd.grad((expected * weight).sum(), exact)]
    for i, (f, t) in enumerate(zip(found, truth, strict=True)):
        error = float((f.detach().double() - t.detach()).norm() / t.detach().norm().clamp_min(1e-9))
        assert error < bound, f"{(B, L, K, E, N, r, R, dtype)}: result {i} is off by {error:.1e}"


def check_norm() -> None:
    wide = torch.randn(3, 5, 20)
    assert torch.allclose(norm_gpu.layer_norm(wide, 1e-5), F.layer_norm(wide, (20,)), atol=1e-5)
    x, residual = (torch.randn(3, 5, 20, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(20, requires_grad=True) for _ in range(2))
    for maps in ((), (weight, bias)):
        out, new = norm_gpu.add_layer_norm(x, residual, *maps, residual_scale=2.0)
        truth = F.layer_norm(2 * residual + x, (20,), *maps)
        wanted = (x, residual, *maps)
        g = torch.randn_like(truth)
        a, b = (torch.autograd.grad((o * g + 2 * n).sum(), wanted) for o, n in ((out, new), (truth, 2 * residual + x)))
        assert all(torch.allclose(p, q, atol=1e-4) for p, q in zip((out, *a), (truth, *b), strict=True))


def check_fragments() -> None:
    """The tensor-core forward scan in all its tilings, forward alone, and the projection before it."""
    for i, (split, stages, chunks) in enumerate(((1, 3, 1), (1, 4, 3), (2, 4, 1), (2, 3, 3))):
        os.environ["SSAMBA_SKEWED"] = str(1 + i % 4)  # warps apart and copies late: nothing may rely on luck
        os.environ["SSAMBA_CUT"] = f"split={split},warps=4,stages={stages},blocks=1,chunks={chunks}"
        for sizes in ((2, 71, 1, 48, 12, 2), (1, 6, 2, 16, 20, 1)):
            check_output(*sizes)
        for length in (1, 15, 16, 17, 32):  # where directions meet, and what their first and last batches hold
            check_output(1, length, 1, 16, 4, 2)
        if chunks == 1:
            check_ungated(2, 37, 2, 32, 4, 2 if split == 1 else 1)
    del os.environ["SSAMBA_CUT"]
    for B, L, K, E, P, R in ((1, 70, 2, 48, 44, 2), (2, 5, 1, 80, 80, 1), (40, 3, 1, 16, 44, 2)):
        generator = torch.Generator().manual_seed(L)
        x = torch.randn(B, L + (B - 1), 2, K, E, generator=generator).bfloat16()[:, :L, 0]  # clips apart, if several
        weight, bias = torch.randn(R, K, E, 4, generator=generator), torch.randn(R, K, E, generator=generator)
        proj = torch.randn(R, K, P, E, generator=generator).bfloat16()
        found = projection.conv_proj(x, weight, bias, proj).float()
        expected = plain_proj(x.float(), weight, bias, proj.float())
        assert (found - expected).norm() < 5e-3 * expected.norm(), f"projection {(B, L, K, E, P, R)}"


def check_ungated(B: int, L: int, K: int, E: int, r: int, R: int) -> None:
    """Without the gate, the projection in memory that is there; it sees u in 16 bits, so the bound is wider."""
    tensors = mixer_inputs(B, L, K, E, r, R)
    x, params = tensors[0][:, :, 0].contiguous(), tensors[1:]
    params[2] = params[2].bfloat16()
    work = torch.full((B, L, 2 * K * R * E), float("nan")).bfloat16()
    expected = naive.bimamba_ungated(x.double(), work, MixerParams(*params).to(torch.float64))
    usable, projection.usable = projection.usable, lambda *_: True  # type: ignore[assignment]
    found = gpu_inference.inner_with_work(x, None, work, *params, "cuda", False)
    projection.usable = usable
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < 8e-3, f"without a gate {(B, L, K, E, r, R)}: off by {error:.1e}"
    assert not work.isnan().all()


def check_gated_output() -> None:
    """By pieces, and in one pass for widths of one and of two parts; the last tile is not full.

    The interpreter multiplies no bfloat16, so the one pass gets float16.
    """
    for width, channels, rows, dtype, bound in (
        (24, 40, 150, torch.float32, 1e-5), (16, 64, 150, torch.float16, 2e-3), (48, 128, 65, torch.float16, 2e-3),
        (192, 768, 1, torch.float16, 2e-3),
    ):  # fmt: skip
        draws = [torch.randn(s) for s in ((rows, channels), (rows, width), (channels, width), (channels,))]
        draws[2] /= width**0.5
        pieces = dtype == torch.float32
        for scale, normed in ((None, False), (2.0, False), (1.0, False), (2.0, pieces), (None, pieces)):
            y, stream, *weights = (t.to(dtype) for t in (*draws, torch.randn(width, channels) / channels**0.5))
            out, wide = torch.full((rows, width), float("nan"), dtype=dtype), torch.empty(rows, width).double()
            if normed:
                out = torch.randn(rows, width).to(dtype)
                wide = out.double()
            wide_stream = stream.double()
            naive.gated_output_(y.double(), wide_stream, *(t.double() for t in weights), wide, 1e-5, scale, normed)
            if pieces:
                gpu_inference.gated_output_(y, stream, *weights, out, 1e-5, scale, normed, 2000)
            else:
                gated_output.gated_output(y, stream, *weights, out, 1e-5, scale)
            for found, expected in ((out, wide), (stream, wide_stream)):
                error = float((found.double() - expected).norm() / expected.norm())
                assert error < bound, f"gate and output {(width, channels, rows, dtype, scale)}: off by {error:.1e}"
    assert [gated_output.parts_of(w) for w in (16, 192, 384, 8, 40, 200)] == [(16, 0), (128, 64), (256, 128)] + [
        None
    ] * 3


def check_gate_product() -> None:
    """The product with the gate, chosen by the table: tiles that are not full in every direction, and whole ones."""
    for width, channels, rows, tile in (
        (24, 40, 37, "16,32,16,4,3"), (384, 1536, 3, "16,64,64,4,3"), (768, 128, 17, "16,64,64,4,3"),
        (208, 416, 129, ""), (272, 48, 1, ""),
    ):  # fmt: skip
        os.environ["SSAMBA_GATE"] = tile
        draws = [torch.randn(s) for s in ((rows, channels), (rows, width), (channels, width), (channels,))]
        draws[1] += 3  # a mean, which the norm takes away
        draws[2] /= width**0.5
        draws.append(torch.randn(width, channels) / channels**0.5)
        for scale, stream_dtype, normed in (
            (None, torch.float16, False), (2.0, torch.float16, False), (2.0, torch.float16, True),
            (1.0, torch.float32, False), (1.0, torch.float32, True),
        ):  # fmt: skip
            y, stream, *weights = (t.half() for t in draws)
            stream = stream.to(stream_dtype)
            out, wide = torch.full((rows, width), float("nan"), dtype=y.dtype), torch.empty(rows, width).double()
            if normed:  # not the stream's norm, so that a second norm would be seen
                out = torch.randn(rows, width).half()
                wide = out.double()
            wide_y, wide_stream = y.double(), stream.double()
            naive.gated_output_(wide_y, wide_stream, *(t.double() for t in weights), wide, 1e-5, scale, normed)
            arguments = y, stream, *weights, out
            found = dispatch.find_kernels("gate_product", *arguments)
            assert found is gate_product
            gpu_inference.gated_output_(*arguments, 1e-5, scale, normed)
            where = width, channels, rows, tile, scale, normed
            for mine, expected in ((y, wide_y), (out, wide), (stream, wide_stream)):
                error = float((mine.double() - expected).norm() / expected.norm())
                assert error < 2e-3, f"product with the gate {where}: off by {error:.1e}"
    os.environ["SSAMBA_GATE"] = "pieces"
    assert not gate_product.usable(y, stream, out)
    del os.environ["SSAMBA_GATE"]
    assert gate_product.usable(y, stream, out)
    narrow, row = (torch.zeros(4, n, dtype=torch.float16) for n in (12, 16))
    refused = [(narrow, row, row), (row, narrow, narrow), (row, row, row.float()), (row[:0], row[:0], row[:0])]
    refused += [(row.float(), row.float(), row.float()), (row, row, row, row.flatten()[1:])]
    assert not any(gate_product.usable(*tensors) for tensors in refused)


def check_output_to_stream() -> None:
    """The product that adds to the stream, and the norm of the sum in place of the input."""
    for width, channels, rows, scale in ((24, 40, 37, 2.0), (200, 16, 1, 1.0)):
        y, stream, out_proj = torch.randn(rows, channels), torch.randn(rows, width) + 3, torch.randn(width, channels)
        out, wide_stream, wide = (
            torch.full_like(stream, float("nan")),
            stream.double(),
            torch.empty(rows, width).double(),
        )
        naive.output_to_stream_(y.double(), out_proj.double(), wide_stream, wide, 1e-5, scale)
        gpu_inference.output_to_stream_(y, out_proj, stream, out, 1e-5, scale)
        for found, expected in ((out, wide), (stream, wide_stream)):
            error = float((found.double() - expected).norm() / expected.norm())
            assert error < 1e-6, f"output and stream {(width, channels, rows, scale)}: off by {error:.1e}"


def check_ready_weights() -> None:
    """Folded and converted weights, of widths that are and are not a power of two, rounded once.

    The interpreter cuts bfloat16 off instead of rounding to it, so products have float16.
    """
    for d, r, R, source, dtype in (
        (16, 3, 2, torch.bfloat16, torch.float16), (24, 2, 1, torch.float32, torch.float16),
        (192, 12, 2, torch.float16, torch.float16), (5, 1, 2, torch.float16, torch.float32),
    ):  # fmt: skip
        for apart in (False, True):
            tensors = pair_weights(d, r, R, source, apart)
            if d == 24:  # nothing is left to convert but what is folded
                tensors[3], tensors[6] = tensors[3].to(dtype), tensors[6].to(dtype)
            wide = [t.double() for t in tensors]
            found, plain = (weights_of(form, tensors, dtype) for form in (gpu_inference, naive))
            exact = weights_of(naive, wide, torch.float64)
            for i, (f, e, p) in enumerate(zip(found, exact, plain, strict=True)):
                where = f"weight {i} of {(d, r, R, source, dtype, apart)}"
                assert (f.shape, f.dtype, f.is_contiguous()) == (p.shape, p.dtype, True), where
                if i != 1:
                    assert torch.equal(f, p), where
                assert float((f.double() - e).norm() / e.norm()) < (3e-4 if dtype == torch.float16 else 1e-6), where
            assert all(f is t for f, t in zip(found[2:], tensors[3:], strict=True) if t.dtype == f.dtype) or apart


def check_ops() -> None:
    """What the custom ops declare, to be traced by, is what they do."""
    shapes = [(70, 40), (70, 24), (40, 24), (40,), (24, 40), (70, 24)]
    tests = ("test_schema", "test_faketensor")
    for scale in (None, 2.0):
        arguments = (*(torch.randn(s) for s in shapes), 1e-5, scale, scale is None, "cuda,triton", 2**24)
        torch.library.opcheck(gpu_inference.write_gated_output, arguments, test_utils=tests)
    arguments = (*(torch.randn(s) for s in ((70, 40), (24, 40), (70, 24), (70, 24))), 1e-5, 2.0)
    torch.library.opcheck(gpu_inference.write_stream, arguments, test_utils=tests)
    for apart in (False, True):
        product, scale, shift, *others = pair_weights(24, 2, 2, torch.bfloat16, apart)
        weights = ([product] * 2, [scale] * 2, [shift] * 2, others * 2, torch.bfloat16)
        torch.library.opcheck(gpu_inference.prepare_weights, weights, test_utils=tests)
    xz, *params = (t.float() for t in mixer_inputs(1, 5, 2, 6, 2, 2))
    x, z = xz.unbind(2)
    inner, inner_packed = torch.ops.ssamba.gpu_inner.default, torch.ops.ssamba.gpu_inner_packed.default
    backward = torch.ops.ssamba.gpu_inner_backward.default
    backward_packed = torch.ops.ssamba.gpu_inner_packed_backward.default
    y, p, states = inner(x, z, *params, "triton", False, False)
    torch.library.opcheck(inner, (x, z, *params, "triton", False, False), test_utils=tests)
    with_work = torch.ops.ssamba.gpu_inner_with_work_.default
    work = torch.full_like(xz, float("nan"))
    torch.library.opcheck(with_work, (x, z, work, *params, "triton", False), test_utils=tests)
    assert torch.equal(with_work(x, z, work, *params, "triton", False), y)
    assert work.isnan().all()  # the portable projection has memory of its own
    for bias in (None, torch.zeros(2, 2, 6)):
        torch.library.opcheck(inner_packed, (xz, bias, *params, "triton", False, False), test_utils=tests)
        torch.library.opcheck(backward_packed, (y, xz, bias, y, p, states, *params, "triton", False), test_utils=tests)
    torch.library.opcheck(backward, (y, x, z, y, p, states, *params, "triton", False), test_utils=tests)


def check_traced() -> None:
    """The operators of inference in a graph: what they write to is declared, what stays as it is comes back."""
    y, stream, *weights = (torch.randn(s) for s in ((70, 40), (70, 24), (40, 24), (40,), (24, 40)))

    def gate(y: Tensor, stream: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        y, stream, out = y + 1, stream * 2, torch.zeros_like(stream)
        gpu_inference.gated_output_(y, stream, *weights, out, 1e-5, 2.0)
        return stream + 0, out + 0

    def prepare(*tensors: Tensor) -> list[Tensor]:
        return [w * 2 for w in weights_of(gpu_inference, list(tensors), torch.float16)]

    for run, tensors in ((gate, (y, stream, *weights)), (prepare, pair_weights(24, 2, 2, torch.float32))):
        plain, built = run(*tensors), torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
        assert all(torch.equal(a, b) for a, b in zip(plain, built, strict=True))


def check_choice() -> None:
    """The public operators with the GPU's form asked for: run, traced into one graph, and refused."""
    tensors = [t.float().requires_grad_() for t in mixer_inputs(1, 6, 2, 5, 2, 2)]
    exact = [t.detach().double() for t in tensors]
    expected = naive.bimamba_inner(exact[0][:, :, 0], exact[0][:, :, 1], MixerParams(*exact[1:]))

    def run(*tensors: Tensor) -> Tensor:
        return ops.bimamba_inner_packed(tensors[0] * 1.0, *tensors[1:])

    for name in ("gpu", "triton", "portable"):
        with ops.use_backend(name):
            y = run(*tensors)
            found = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
            assert torch.equal(y, found)
            assert float((y.detach().double() - expected).norm() / expected.norm()) < 1e-4
            grads = (torch.autograd.grad(out.square().sum(), tensors) for out in (y, found))
            assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    check_traced()
    with ops.use_backend("cuda"), pytest.raises(ConfigError, match="mixer cannot run with backend 'cuda'"):
        run(*tensors)


def check_output(B: int, L: int, K: int, E: int, r: int, R: int) -> None:
    tensors = mixer_inputs(B, L, K, E, r, R)
    exact = [t.double() for t in tensors]
    expected = naive.bimamba_inner(exact[0][:, :, 0], exact[0][:, :, 1], MixerParams(*exact[1:]))
    if L % 2:  # parameters that are views into other memory lie anywhere
        tensors[1:] = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in tensors[1:]]
    found = gpu.bimamba_inner_packed(tensors[0], MixerParams(*tensors[1:])).double()
    error = float((found - expected).norm() / expected.norm())
    assert error < 5e-3, f"{(B, L, K, E, r, R)}, {os.environ.get('SSAMBA_CUT')}: off by {error:.1e}"


def main(form: str) -> None:
    if form == "interpret":
        check(1, 1, 1, 1, 1, 1, 2, torch.float32, 1e-4)
        check(2, 7, 2, 5, 3, 2, 2, torch.float32, 1e-4)
        check(1, 18, 2, 9, 16, 2, 1, torch.float16, 4e-3)
        check_norm()
        check_gated_output()
        check_gate_product()
        check_output_to_stream()
        check_ready_weights()
        check_ops()
        check_choice()
        return
    nvrtc.kernel, scan.usable, conv.conv_proj = build, lambda *_: True, plain_proj  # type: ignore[assignment]
    check(1, 1, 1, 1, 1, 1, 2, torch.float32, 1e-4)
    if form == "emulate-one":
        return
    check(1, 37, 2, 9, 64, 5, 1, torch.float32, 1e-4)
    check(1, 45, 2, 20, 16, 12, 2, torch.bfloat16, 2e-2)
    check_fragments()
    os.environ["SSAMBA_LPC"] = "1"
    check(1, 46, 1, 40, 16, 12, 2, torch.bfloat16, 2e-2)


if __name__ == "__main__":
    main(sys.argv[1])
