"""Mixers whose states are rounded up for tensor cores, emulated on the CPU: see test_few_states.py.

Values and every gradient against float64, and the same bits twice. ``backward``: numbers of states that the backward
by tensor cores lacks, ``backwards`` more of them, ``free`` with free decays; ``inference`` and ``inferences``: those
that the forward lacks, with and without a gate; ``training``: the same with gradients; ``choice``: what is rounded up,
and a traced graph.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from cuda_forms_small import a_lane_is_a_channel, check_training, draw, environment, error
from torch import Tensor
from triton_small import build, plain_proj

from ssamba import ops
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import gpu, gpu_inference, gpu_states, naive
from ssamba.ops.mamba.cuda import projection, scan, scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.cuda.sources import MMA_TYPES
from ssamba.ops.mamba.params import MixerParams
from ssamba.ops.mamba.triton import conv

BOUND = {torch.bfloat16: 2e-2, torch.float16: 4e-3}


@contextmanager
def launched() -> Iterator[list[tuple[str, str]]]:
    """Name and states of every kernel that is launched."""
    found: list[tuple[str, str]] = []

    def watched(unit: nvrtc.Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
        found.append((name, next((d for d in defines if d.startswith("N=")), "")))
        return build(unit, name, defines, device)

    nvrtc.kernel = watched
    yield found
    nvrtc.kernel = build


BACKWARDS = (
    (1, 33, 48, 12, 1, True, 8, torch.bfloat16), (2, 1, 16, 4, 1, True, 8, torch.float16),
    (1, 25, 32, 12, 2, False, 8, torch.float16), (2, 17, 16, 4, 1, True, 5, torch.bfloat16),
    (1, 9, 16, 4, 1, True, 3, torch.bfloat16), (1, 17, 16, 12, 2, False, 1, torch.float16),
)  # fmt: skip
"""B, L, E, r, R, whether directions alternate, states and type."""
INFERENCES = (
    (1, 17, 16, 1, False, True, 1, torch.bfloat16), (2, 1, 16, 2, False, False, 3, torch.float16),
    (1, 21, 32, 2, True, False, 12, torch.float16), (1, 33, 32, 1, True, True, 4, torch.bfloat16),
    (1, 15, 16, 2, False, False, 9, torch.bfloat16),
)  # fmt: skip
"""B, L, E, R, whether decays are tied and directions alternate, states and type."""


def backward(cases: slice) -> None:
    """Lengths of whole and of broken batches, one step, both directions and alternating ones."""
    for B, L, E, r, R, alternating, states, dtype in BACKWARDS[cases]:
        tensors = draw(B, L, 2, E, r, R, True, states=states, dtype=dtype)
        tensors[0][:, 0, 1] = 0.5  # a gate that is closed at every step would leave nothing to compare
        for switch in ("", "given"):
            with environment(SSAMBA_STATES=switch), a_lane_is_a_channel(), launched() as kernels:
                check_training(tensors, alternating, BOUND[dtype])
            rounded = kernels.count(("scan_backward_mma", "N=16"))
            assert rounded == (0 if switch else 3), (states, switch, kernels)
            assert (("scan_backward", f"N={states}") in kernels) == (switch == "given"), kernels


def free_decays() -> None:
    """Rates for the states that are zero."""
    for states, alternating, R in ((8, False, 2), (6, True, 1)):
        tensors = draw(1, 21, 2, 16, 4, R, False, states=states)
        with a_lane_is_a_channel(), launched() as kernels:
            check_training(tensors, alternating, BOUND[torch.bfloat16])
        assert {n for name, n in kernels if name.startswith("scan_backward")} == {"N=16"}, kernels


def inference(cases: slice) -> None:
    """One step and broken batches; a single state, whose rate is tied or not; parameters that ask for no gradient."""
    for B, L, E, R, tied, alternating, states, dtype in INFERENCES[cases]:
        xz, *tensors = draw(B, L, 2, E, 12, R, tied, states=states, dtype=dtype)
        xz[:, 0, 1] = 0.5
        params, where = MixerParams(*tensors), f"{(B, L, E, R, tied, alternating, states, dtype)}"
        expected = naive.bimamba_inner(*xz.double().unbind(2), params.to(torch.float64), alternating)
        wanted = "N=8" if states < 8 else "N=16"
        x = xz[:, :, 0].contiguous()
        with launched() as kernels, torch.no_grad():
            runs = [gpu.bimamba_inner_packed(xz, params, alternating) for _ in range(2)]
            apart = gpu.bimamba_inner(*xz.unbind(2), params, alternating)
            bare = gpu_inference.bimamba_ungated(x, torch.full_like(xz, float("nan")), params, alternating)
        assert torch.equal(*runs), where
        assert {n for name, n in kernels if name.startswith("scan")} == {wanted}, (where, kernels)
        bound = BOUND[dtype] / 2
        assert error(runs[0], expected) < bound, f"{where}: off by {error(runs[0], expected):.1e}"
        assert error(apart, expected) < bound, f"{where}: off by {error(apart, expected):.1e}"
        params = params._replace(x_proj_RKPE=params.x_proj_RKPE.to(dtype)).to(torch.float64)
        expected = naive.bimamba_ungated(x.double(), x, params, alternating)
        assert bare is not None
        assert error(bare, expected) < bound, f"{where}: without a gate off by {error(bare, expected):.1e}"
        with launched() as kernels, torch.no_grad(), environment(SSAMBA_STATES="given"):
            gpu.bimamba_inner_packed(xz, MixerParams(*tensors), alternating)
        assert {n for name, n in kernels if name.startswith("scan")} == {f"N={states}"}, kernels


def training() -> None:
    """Gradients through the rounding: of rows of zeros there are none."""
    for L, tied, alternating, R, states, wide, dtype in (
        (21, True, True, 1, 12, 16, torch.bfloat16), (17, False, False, 2, 6, 8, torch.float16),
        (9, False, True, 1, 9, 16, torch.bfloat16), (9, True, True, 1, 4, 8, torch.bfloat16),
    ):  # fmt: skip
        tensors = draw(1, L, 2, 16, 4, R, tied, states=states, dtype=dtype)
        with launched() as kernels:
            check_training(tensors, alternating, BOUND[dtype])
        assert {n for name, n in kernels if name.startswith("scan")} == {f"N={wide}"}, kernels


def choice() -> None:
    """The sizes that are rounded up are those that the forward by tensor cores takes; others stay as they are."""
    for states, dtype, width, rank, taps in itertools.product(
        (1, 4, 5, 8, 12, 16, 17), (torch.bfloat16, torch.float32), (16, 24), (4, 6, 68), (4, 6)
    ):
        xz, *tensors = draw(1, 5, 2, width, rank, 1, True, states=states, dtype=dtype)
        tensors[0], tensors[2] = torch.zeros(1, 2, width, taps), torch.zeros(1, 2, rank + 2 * states, width)
        x, params = xz[:, :, 0], MixerParams(*tensors)
        found = gpu_states.rounded(x, params)
        where = (states, dtype, width, rank, taps)
        wide = params._replace(x_proj_RKPE=torch.zeros(1, 2, rank + 32, width))
        takes = scan_mma.usable(Shape(x, wide), {"x": x.contiguous(), "p": x.new_zeros(8)})
        expected = (8 if states <= 8 else 16) if takes and states <= 16 else states
        assert found.states == expected, where
        assert (found is params) == (expected == states), where
        assert gpu_states.rounded(x.clone().requires_grad_(), params).states == expected, where
    xz, *tensors = draw(1, 5, 2, 16, 4, 1, True, states=12)
    x, params = xz[:, :, 0], MixerParams(*tensors)
    for name, value in (("SSAMBA_STATES", "backward"), ("SSAMBA_LPC", "1"), ("SSAMBA_GPU_SCAN", "triton")):
        with environment(**{name: value}):
            assert gpu_states.rounded(x, params) is params
    with ops.use_backend("portable"):
        assert gpu_states.rounded(x, params) is params

    def run(xz: Tensor, *tensors: Tensor) -> Tensor:
        return ops.bimamba_inner_packed(xz * 1.0, *tensors, True)

    inputs = [t.requires_grad_() for t in (xz, *tensors)]
    with ops.use_backend("gpu"):
        plain, built = run(*inputs), torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(plain, built)
    grads = [torch.autograd.grad(y.float().square().sum(), inputs) for y in (plain, built)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def main(part: str) -> None:
    nvrtc.kernel, scan.usable, conv.conv_proj = build, lambda *_: True, plain_proj  # type: ignore[assignment]
    projection.usable = lambda x, *_: x.dtype in MMA_TYPES and x.shape[-1] % 16 == 0  # type: ignore[assignment]
    gpu_states._has_cuda = lambda _: True
    gpu_inference.nvrtc.multiplies_bfloat16 = lambda _: True
    few, others = slice(2), slice(2, None)
    parts = {"training": training, "choice": choice, "free": free_decays}
    parts |= {"backward": lambda: backward(few), "backwards": lambda: backward(others)}
    parts |= {"inference": lambda: inference(few), "inferences": lambda: inference(others)}
    parts[part]()


if __name__ == "__main__":
    main(sys.argv[1])
