"""Gate and output on a GPU that go on to the next pair's x (Hopper): values, and whole passes with and without."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close, case_id
from test_gpu import BOUND, HALVES
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import naive

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]


def drawn(rows: int, width: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    """y, stream, z's weight and bias, the output's weight, the next x's weight and bias."""
    draw = torch.Generator("cuda").manual_seed(rows)
    of_z = (channels, width), (channels,)
    shapes = [(rows, channels), (rows, width), *of_z, (width, channels), *of_z]
    tensors = [torch.randn(s, generator=draw, device="cuda").to(dtype) for s in shapes]
    for i, size in ((2, width), (4, channels), (5, width)):
        tensors[i] /= size**0.5
    return tensors


@pytest.mark.parametrize("rows", [1, 127, 257, 4099, 40001])
@pytest.mark.parametrize(("width", "channels"), [(192, 768), (128, 256), (64, 256)])
@pytest.mark.parametrize("dtype", list(HALVES), ids=case_id)
@torch.no_grad()
def test_the_next_input(rows: int, width: int, channels: int, dtype: torch.dtype) -> None:
    """Against float64 and against the norm's own product; the same bits twice and from a graph."""
    y, given, *weights, next_weight, next_bias = drawn(rows, width, channels, dtype)
    for stream_dtype, scale in ((dtype, 2.0), (torch.float32, 1.0)):  # the second under autocast
        stream = given.to(stream_dtype)
        wide = [t.double() for t in (y, stream, *weights, next_weight, next_bias)]
        expected = torch.empty_like(wide[0])
        naive.gated_output_to_input_(*wide, expected, 1e-5, scale)
        apart, norm = stream.clone(), torch.empty_like(given)
        ops.gated_output_(y, apart, *weights, norm, 1e-5, scale)
        product = torch.nn.functional.linear(norm, next_weight, next_bias)

        x, mine = torch.full_like(y, float("nan")), stream.clone()
        arguments = y, mine, *weights, next_weight, next_bias, x, 1e-5, scale
        assert ops.gated_output_to_input_(*arguments)
        assert_close("x", x, expected, 6e-3 * HALVES[dtype])
        assert_close("stream", mine, wide[1], 3e-3 * HALVES[dtype])
        assert torch.equal(mine, apart)
        assert (x != product).float().mean() < 0.02  # sums in another order, seldom between two values
        assert_close("x and the norm's product", x, product, 1e-3)
        first = x.clone(), mine.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            assert ops.gated_output_to_input_(*arguments)
        mine.copy_(stream)
        x.fill_(float("nan"))
        graph.replay()
        assert torch.equal(x, first[0])
        assert torch.equal(mine, first[1])


@torch.no_grad()
def test_what_has_no_such_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written then."""
    y, stream, *rest = drawn(70, 192, 768, torch.bfloat16)
    kept = stream.clone()

    def refused(y: Tensor, stream: Tensor, *rest: Tensor, **how: Tensor) -> bool:
        x = how.get("x", torch.empty_like(y))
        return not ops.gated_output_to_input_(y, stream, *rest, x, 1e-5, 2.0)

    assert refused(*drawn(70, 128, 192, torch.bfloat16))  # x by 128 channels
    assert refused(*drawn(70, 256, 1024, torch.bfloat16))  # a stream that registers do not hold
    assert refused(*drawn(70, 192, 768, torch.float32))
    assert refused(y, stream, *rest, x=torch.empty(y.numel() + 1, device="cuda", dtype=y.dtype)[1:].view(y.shape))
    with ops.use_backend("portable"):
        assert refused(y, stream, *rest)
    monkeypatch.setenv("SSAMBA_GATE", "apart")
    assert refused(y, stream, *rest)
    assert torch.equal(stream, kept)


@pytest.mark.parametrize("half", list(HALVES), ids=case_id)
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_a_pass_with_and_without(half: torch.dtype, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's width: tokens, launches, and memory, of which the pass must not take more."""
    model = SSAMBA(Config(depth=8)).eval()
    for i, pair in enumerate(model.pairs):
        pair.out_proj_dKE.mul_(30 * 2**i)  # else fresh pairs hardly count next to the stream
    model = model.to("cuda", torch.float32 if autocast else half)
    tokens = torch.randn(64, 513, 192, generator=torch.Generator().manual_seed(1)).to("cuda", model.positions.dtype)

    def run() -> Tensor:
        with torch.autocast("cuda", half, enabled=autocast):
            return model.encode_tokens(tokens.clone(), own=True)

    found, launches, peaks = [], [], []
    for gate in ("", "apart"):
        monkeypatch.setenv("SSAMBA_GATE", gate)
        run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found.append(run())
        peaks.append(torch.cuda.max_memory_allocated() - before)
        launches.append(sum("NEXT=1" in name for name in nvrtc.compile_for(run)[0]))
    assert launches[0] > 0 == launches[1]
    assert_close("tokens", found[0], found[1], BOUND[torch.bfloat16] * HALVES[half])
    assert peaks[0] <= peaks[1] + 2**21  # the next pair's weights
