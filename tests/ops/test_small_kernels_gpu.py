"""The norm and a pair's weights in CUDA C++ on a GPU: values and gradients against float64, and which kernels run."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from mixer_inputs import pair_weights, weights_of
from test_small_kernels_on_cpu import BF16, F16, F32, assert_rounded, check_ready_weights, draw, exact_norm
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.ops import dispatch
from ssamba.ops.jit import nvrtc
from ssamba.ops.layer_norm import cuda as layer_norm
from ssamba.ops.layer_norm import gpu as norm_gpu
from ssamba.ops.mamba import gpu_inference
from ssamba.ops.mamba.cuda import weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
SIZES = (
    (513, 192, False), (32832, 192, False), (1030, 768, False), (1, 1, False), (5, 7, False), (33, 1000, True),
    (9, 1028, False), (3, 1031, False), (2, 5000, False), (0, 192, False), (50, 192, True),
)  # fmt: skip
"""Rows, their width, and whether they lie at addresses that forbid loads of several values."""
TYPES = ((BF16, BF16), (F16, F16), (F32, F32), (BF16, F32), (F32, BF16))
EPS = 1e-5


def on_gpu(*shape: int, dtype: torch.dtype, shift: float = 0.0, unaligned: bool = False) -> Tensor:
    """``draw`` on the GPU."""
    values = draw(*shape, dtype=dtype, shift=shift).cuda()
    if not unaligned:
        return values
    memory = torch.empty(values.numel() + 1, dtype=dtype, device="cuda")
    memory[1:] = values.flatten()
    return memory[1:].view(shape)


@pytest.fixture(autouse=True)
def _where_they_run() -> None:
    if not nvrtc.multiplies_bfloat16(0):
        pytest.skip("needs a GPU of compute capability 8.0 or above, and NVRTC")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the CUDA C++ kernels that are launched."""
    names: list[str] = []
    kernel = nvrtc.kernel

    def watched(unit: nvrtc.Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
        names.append(name)
        return kernel(unit, name, defines, device)

    monkeypatch.setattr(nvrtc, "kernel", watched)
    return names


@pytest.mark.parametrize(("rows", "width", "unaligned"), SIZES)
@pytest.mark.parametrize(("of_x", "of_other"), TYPES)
@torch.no_grad()
def test_norm(rows: int, width: int, unaligned: bool, of_x: torch.dtype, of_other: torch.dtype) -> None:
    """Without a residual, and in place with one; the same bits twice."""
    x = on_gpu(rows, width, dtype=of_x, shift=0.5, unaligned=unaligned)
    where = f"{(rows, width, of_x, of_other)}"
    out = layer_norm.normalise(x, EPS, of_other)
    assert_rounded(out, exact_norm(x.double()), of_other, where)
    assert torch.equal(out, layer_norm.normalise(x, EPS, of_other))
    stream = on_gpu(rows, width, dtype=of_other, unaligned=unaligned)
    sums = 2 * stream.double() + x.double()
    given = x.clone(), stream.clone()
    norm_gpu.add_layer_norm_(x, stream, EPS, 2.0)
    assert_rounded(stream, sums, of_other, where)
    assert_rounded(x, exact_norm(sums), of_x, where)
    first = x.clone(), stream.clone()
    x.copy_(given[0])
    stream.copy_(given[1])
    norm_gpu.add_layer_norm_(x, stream, EPS, 2.0)
    assert torch.equal(x, first[0])
    assert torch.equal(stream, first[1])


@pytest.mark.parametrize("width", [7, 192, 768, 1028])
@pytest.mark.parametrize(("of_x", "of_stream"), TYPES)
@pytest.mark.parametrize(("affine", "factor"), [(False, False), (True, True), (True, False)])
def test_training(
    width: int, of_x: torch.dtype, of_stream: torch.dtype, affine: bool, factor: bool, launched: list[str]
) -> None:
    """Results and gradients: the forward is CUDA C++, the backward starts from what it saved."""
    tensors = [on_gpu(3, 37, width, dtype=of_x), on_gpu(3, 37, width, dtype=of_stream, shift=1.0)]
    if affine:
        tensors += [on_gpu(width, dtype=F32, shift=1.0), on_gpu(width, dtype=F32)]
    mine, exact = ([t.detach().to(d or t.dtype).requires_grad_() for t in tensors] for d in (None, torch.float64))
    scale = torch.tensor([0.0, 1.25, 0.5], device="cuda") if factor else None
    out, stream = ops.add_layer_norm(*mine, residual_scale=2.0, x_scale_B=scale)
    assert launched == ["add_layer_norm"]
    x, residual, *maps = exact
    sums = 2 * residual + (x if scale is None else x * scale.double()[:, None, None])
    normal = exact_norm(sums)
    expected = normal * maps[0] + maps[1] if affine else normal
    assert_rounded(stream, sums, of_stream, "stream")
    assert_rounded(out, expected, of_x, "norm")
    g = on_gpu(3, 37, width, dtype=F32)
    found = torch.autograd.grad((out * g).sum() + stream.float().sum(), mine)
    truth = torch.autograd.grad((expected * g).sum() + sums.sum(), exact)
    bound = 1e-4 if of_x == of_stream == F32 else 2e-2
    for i, (a, b) in enumerate(zip(found, truth, strict=True)):
        if b.norm() > 1e-6:
            assert float((a.double() - b).norm() / b.norm()) < bound, f"gradient {i}"


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("source", "dtype"), [(F32, BF16), (BF16, BF16), (F16, F16), (F32, F16), (BF16, F32), (F32, F32)]
)
@pytest.mark.parametrize(("d", "r"), [(192, 12), (768, 48), (24, 2), (5, 1), (1, 1)])
@torch.no_grad()
def test_ready_weights(
    d: int, r: int, source: torch.dtype, dtype: torch.dtype, apart: bool, launched: list[str]
) -> None:
    check_ready_weights([t.cuda() for t in pair_weights(d, r, 1, source, apart)], dtype)
    assert launched == ["prepare_weights"]


@pytest.mark.parametrize("dtype", [BF16, F16])
@torch.no_grad()
def test_portable_kernels_agree(dtype: torch.dtype, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``SSAMBA_GPU_SCAN=triton`` has Triton's kernels, which round the same float32 results."""
    x, stream = on_gpu(2, 37, 192, dtype=dtype), on_gpu(2, 37, 192, dtype=dtype, shift=1.0)
    maps = on_gpu(192, dtype=dtype, shift=1.0), on_gpu(192, dtype=dtype)
    runs = []
    for choice in ("nvrtc", "triton"):
        monkeypatch.setenv("SSAMBA_GPU_SCAN", choice)
        launched.clear()
        runs.append([*norm_gpu.add_layer_norm(x, stream, *maps), norm_gpu.layer_norm(x, EPS)])
        runs[-1] += weights_of(gpu_inference, [t.cuda() for t in pair_weights(192, 12, 1, F32)], dtype)
        assert bool(launched) == (choice == "nvrtc")
        assert dispatch.small_kernels("norm", x).__name__.endswith("cuda" if choice == "nvrtc" else "triton")
    for a, b in zip(*runs, strict=True):
        assert float((a.double() - b.double()).norm() / b.double().norm()) < 1e-3


@torch.no_grad()
def test_in_a_cuda_graph() -> None:
    x, stream = on_gpu(513, 192, dtype=BF16), on_gpu(513, 192, dtype=BF16)
    given = x.clone(), stream.clone()
    norm_gpu.add_layer_norm_(*given, EPS, 2.0)
    held = x.clone(), stream.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm_gpu.add_layer_norm_(*held, EPS, 2.0)
    for place, value in zip(held, (x, stream), strict=True):
        place.copy_(value)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(held, given, strict=True))


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(("batch", "plan"), [(1, {}), (3, {"defer_gate_min_tokens": 1})])
@torch.no_grad()
def test_a_model_is_as_near_to_float64_as_with_tritons(
    dtype: torch.dtype, batch: int, plan: dict[str, int], launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    model = SSAMBA(Config(frames=256, decay="tied", scan="alternating"), generator=generator).cuda().eval()
    features = torch.randn(batch, 256, 128, generator=generator).cuda()
    exact = copy.deepcopy(model).double().encode(features.double())
    model = model.to(dtype)
    model.plan = model.plan._replace(**plan)
    errors = []
    for on in (True, False):
        if not on:
            monkeypatch.setattr(layer_norm, "usable", lambda *_: False)
            monkeypatch.setattr(weights, "usable", lambda *_: False)
        launched.clear()
        found = model.encode(features)
        assert torch.equal(found, model.encode(features))
        assert ("add_layer_norm" in launched, "prepare_weights" in launched) == (on, on)
        errors.append(float((found.double() - exact).norm() / exact.norm()))
    assert errors[0] < 1.1 * errors[1], errors


FIRST_PASS = """
import sys
import numpy as np
import ssamba

model = ssamba.load("tiny", "cuda", dtype={dtype!r})
model.embed(np.random.default_rng(0).normal(0, 0.1, {samples}).astype("float32"), 16000)
print(*[name for name in ("triton", "torch._dynamo") if name in sys.modules])
"""


@pytest.mark.parametrize("samples", [160000, 16000 * 400])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_new_process_imports_no_triton(dtype: str, samples: int) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("elsewhere, steps of a long input are Triton's")
    code = FIRST_PASS.format(dtype=dtype, samples=samples)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == ""
