"""float16 on a GPU by tensor cores: that it runs there, and what is beyond its range. float32 in chunks of time."""

from __future__ import annotations

import pytest
import torch
from compare import Shape, assert_close
from mixer_inputs import go_beyond_float16
from parallel_scan import bimamba_inner as expected_inner
from test_gpu import inputs

from ssamba import ops
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.params import MixerParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@torch.no_grad()
def test_both_16_bit_types_run_the_same_kernels() -> None:
    """With the gate in the scan, and with one that comes later."""
    launched = []
    for dtype in (torch.bfloat16, torch.float16):
        tensors = inputs(Shape(2, 600, 1, 2, 192, 16, r=12), dtype)
        x = tensors[0][:, :, 0].contiguous()
        y, stream, *weights = (
            torch.zeros(s, device="cuda", dtype=dtype) for s in ((70, 384), (70, 192), (384, 192), (384,), (192, 384))
        )
        names = nvrtc.compile_for(
            lambda tensors=tensors: ops.bimamba_inner_packed(*tensors, True),
            lambda tensors=tensors, x=x: ops.bimamba_ungated(x, torch.empty_like(x), *tensors[1:], alternating=True),
            lambda y=y, stream=stream, w=weights: ops.gated_output_(y, stream, *w, torch.empty_like(stream), eps=1e-5),
        )
        launched.append([[name.replace("DTYPE=2", "DTYPE=1") for name in some] for some in names])
    assert launched[0] == launched[1]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("cut", ["split=1,chunks=1", "split=2,chunks=1", "split=1,chunks=5"])
@torch.no_grad()
def test_channels_beyond_the_range_stay_finite(cut: str, gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where delta u or a state is beyond float16; the other channels are as right as ever."""
    monkeypatch.setenv("SSAMBA_CUT", f"warps=4,stages=3,blocks=2,{cut}")
    xz, *rest = inputs(Shape(2, 1031, 1, 2, 96, 16, r=12), torch.float16)
    params = MixerParams(*rest)
    safe = go_beyond_float16(xz, params)
    z = xz[:, :, 1].double() if gated else None
    expected = expected_inner(xz[:, :, 0].double(), z, params.to(torch.float64), True)
    x = xz[:, :, 0].contiguous()
    given = torch.empty_like(x)
    found = (
        ops.bimamba_inner_packed(xz, *params, True)
        if gated
        else ops.bimamba_ungated(x, given, *params, alternating=True)
    )
    assert found is not None
    assert torch.isfinite(found).all()
    assert_close("other channels", found.flatten(2)[..., safe], expected.flatten(2)[..., safe], 5e-3)


@pytest.mark.parametrize("cut", ["", "chunks=1", "chunks=7"])
@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_float32_in_chunks_of_time(tied: bool, alternating: bool, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAMBA_CUT", cut)
    tensors = inputs(Shape(2, 4109, 1 if alternating else 2, 2, 80, 16, r=12), torch.float32)
    if tied:
        tensors[6] = tensors[6][..., :1].contiguous()
    names = " ".join(nvrtc.compile_for(lambda: ops.bimamba_inner_packed(*tensors, alternating))[0])
    assert ("CHUNKED=1" in names) == (cut != "chunks=1")
    exact = [t.double() for t in tensors]
    expected = expected_inner(*exact[0].unbind(2), MixerParams(*exact[1:]), alternating)
    found = [ops.bimamba_inner_packed(*tensors, alternating) for _ in range(2)]
    assert_close("output", found[0], expected, 1e-5)
    assert torch.equal(*found)
