"""Tied decays, alternating directions and 8 states in the CUDA C++, emulated on the CPU: see
test_gpu_kernels_on_cpu.py.

Values and every gradient against float64, and the same bits twice. ``forward``: the tensor-core scan in its tilings;
``states``: its saved states; ``training``: forward and backward in each tiling of the backward, in float32 and
bfloat16; ``work``: the projection in the caller's memory; ``half``: float16 in the forward, its saved states and
training; ``overflow``: what float16 does not hold; ``chunks``: float32 in chunks of time; ``backward`` and, with more
sizes, ``backwards``: the same where the backward is computed by tensor cores; ``free`` and ``frees``: that with free
decays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from compare import assert_close, assert_sum_of_tokens
from mixer_inputs import go_beyond_float16, mixer_inputs
from torch import Tensor
from triton_small import build, plain_proj

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import gpu, gpu_inference, naive
from ssamba.ops.mamba.cuda import projection, scan, scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.cuda.sources import MMA_TYPES
from ssamba.ops.mamba.params import MixerParams
from ssamba.ops.mamba.triton import conv

FORMS = [(True, False, 2), (True, True, 1), (False, True, 1), (True, False, 1)]
"""Tied decays, alternating directions, and their number."""
HALF_SCALE = 0.25
"""Share of the errors allowed to bfloat16 that float16 may have, with three more bits."""


@contextmanager
def environment(**values: object) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: str(value) for name, value in values.items()})
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def draw(
    B: int, L: int, K: int, E: int, r: int, R: int, tied: bool, states: int = 16, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """xz and a mixer's parameters; some gates are closed, and some channels forget at once or hardly at all."""
    xz, *params = mixer_inputs(B, L, K, E, r, R, dtype)
    params[2] = params[2][:, :, : r + 2 * states].clone()
    generator = torch.Generator().manual_seed(L)
    params[5] = 0.7 * torch.randn(R, K, E, 1, generator=generator) if tied else params[5][..., :states].clone()
    params[5][:, :, ::7] -= 3
    params[4][:, :, 1::5] += 5
    xz[:, ::5, 1] = 0
    return [xz, *params]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-9))


def check_forward(tensors: list[Tensor], alternating: bool) -> None:
    """Output with and without the gate. Powers of one decay must be no worse than an exponential for each state."""
    dtype, scale = tensors[0].dtype, 1.0 if tensors[0].dtype == torch.bfloat16 else HALF_SCALE
    exact = [t.double() for t in tensors]
    x, z = exact[0].unbind(2)
    where = f"{[tuple(t.shape) for t in tensors[:4]]}, {alternating}, {os.environ.get('SSAMBA_CUT')}"
    expected = naive.bimamba_inner(x, z, MixerParams(*exact[1:]), alternating)
    with torch.no_grad():
        runs = [gpu.bimamba_inner_packed(tensors[0], MixerParams(*tensors[1:]), alternating) for _ in range(2)]
        assert torch.equal(*runs), where
        found = error(runs[0], expected)
        assert found < 8e-3 * scale, f"{where}: off by {found:.1e}"
        free = error(gpu.bimamba_inner_packed(tensors[0], MixerParams(*tensors[1:]).expanded(), alternating), expected)
        assert abs(found - free) < 1e-3 / scale * free, f"{where}: off by {found:.4e}, with free decays by {free:.4e}"
        x16, params = tensors[0][:, :, 0].contiguous(), list(tensors[1:])
        params[2] = params[2].to(dtype)
        work = torch.full((*x16.shape[:2], 4 * x16.shape[2] * x16.shape[3]), float("nan"), dtype=dtype)
        expected = naive.bimamba_ungated(x, work, MixerParams(*(p.double() for p in params)), alternating)
        found = error(gpu_inference.inner_with_work(x16, None, work, *params, "cuda", alternating), expected)
        assert found < 1e-2 * scale, f"{where}: without a gate off by {found:.1e}"


def forward() -> None:
    for i, (split, stages, chunks, adds) in enumerate(
        ((1, 3, 1, 1), (2, 4, 1, 1), (1, 4, 3, 1), (2, 3, 3, 1), (1, 4, 1, 0))
    ):
        cut = f"split={split},warps=4,stages={stages},blocks=1,chunks={chunks},adds={adds}"
        with environment(SSAMBA_SKEWED=1 + i % 4, SSAMBA_CUT=cut):
            tied, alternating, R = FORMS[i % 4]
            check_forward(draw(2, 71, 2, 48, 12, R, tied), alternating)
            for length in (1, 16, 33):
                check_forward(draw(1, length, 2, 16, 4, 1, True), True)
            if split == 1:
                check_forward(draw(1, 33, 2, 16, 4, 2, False, states=8), False)
                check_forward(draw(1, 15, 2, 16, 4, 1, True, states=8), True)


@torch.no_grad()
def work() -> None:
    """The projection in memory that is there, with the gate and without it: the same bits, and no more is written.

    Where it does not fit, or has another dtype, or is made by kernels that take no memory, that memory stays as it is.
    """
    for (tied, alternating, R), dtype in (((False, False, 2), torch.bfloat16), ((True, True, 1), torch.float16)):
        xz, *rest = draw(2, 9, 2, 32, 4, R, tied, dtype=dtype)
        params = MixerParams(*rest)
        count, nan = 2 * R * 2 * 9 * params.outputs, float("nan")
        x, bare = xz[:, :, 0].contiguous(), params._replace(x_proj_RKPE=params.x_proj_RKPE.to(dtype))
        own = gpu.bimamba_inner_packed(xz, params, alternating)
        ungated = gpu_inference.inner_with_work(x, None, x[:0], *bare, "cuda", alternating)
        fits = torch.full((count + 8,), nan, dtype=dtype)
        other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
        refused = [fits[: count - 1], fits[1:], fits.repeat(2)[::2], fits.to(other), fits.float(), fits[:0]]
        for memory, written in ((fits.clone(), count), *((memory, 0) for memory in refused)):
            for gated, expected in ((True, own), (False, ungated)):
                memory.fill_(nan)
                found = (
                    gpu_inference.bimamba_inner_with_work(xz, memory, params, alternating)
                    if gated
                    else gpu_inference.inner_with_work(x, None, memory, *bare, "cuda", alternating)
                )
                assert torch.equal(found, expected)
                assert torch.isfinite(memory[:written]).all()
                assert memory[written:].isnan().all()
        for arguments in ((*xz.unbind(2), fits.clone()), (x, None, fits.clone())):
            arguments = (*arguments, *bare, "cuda", alternating)
            torch.library.opcheck(
                gpu_inference.inner_with_work, arguments, test_utils=("test_schema", "test_faketensor")
            )
    check_work_in_a_graph(xz, params, count)
    xz, params = xz.float(), MixerParams(*rest)  # the stand-in for Triton's projection takes no memory
    fits = fits.float()
    found = gpu_inference.bimamba_inner_with_work(xz, fits, params, True)
    assert torch.equal(found, gpu.bimamba_inner_packed(xz, params, True))
    assert fits.isnan().all()


def check_work_in_a_graph(xz: Tensor, params: MixerParams, count: int) -> None:
    """Memory that is read before, given to the mixer and then written to, as a pair's step does."""

    def step(xz: Tensor, memory: Tensor, *params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        memory = memory * 2
        before = memory.sum()
        y = gpu_inference.bimamba_inner_with_work(xz, memory, MixerParams(*params), True)
        memory[: y.numel()] = y.flatten()
        return before, y, memory[: y.numel()] + 1

    memory = torch.ones(max(count, xz.numel()), dtype=xz.dtype)
    built = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = [run(xz, memory, *params) for run in (step, built)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert (memory == 1).all()


def states(dtype: torch.dtype = torch.bfloat16) -> None:
    """Saved states by matrix products, of the states alone and of the forward, beside those of a lane for each channel.

    Directions meet in the middle of the forward, so lengths are such that blocks of the second begin at any step.
    """
    for B, L, E, R, alternating, tied in (
        (1, 5, 32, 1, True, True), (2, 8, 80, 2, False, True), (1, 41, 64, 1, True, True), (2, 33, 16, 1, True, True),
        (2, 41, 80, 2, False, False), (1, 7, 16, 1, True, False), (2, 71, 16, 2, False, False),
    ):  # fmt: skip
        with environment(SSAMBA_LPC=1):
            xz, *rest = draw(B, L, 2, E, 12, R, tied, dtype=dtype)
            params = MixerParams(*rest)
            x = xz[:, :, 0]
            p = plain_proj(x.float(), params.conv_weight_RKEW, params.conv_bias_RKE, params.x_proj_RKPE, alternating)
            shape = Shape(x, params, alternating)
            tensors = {"x": x, "p": p.to(dtype), **scan._parameters(params)}
            expected = scan._states(shape, tensors)
        found = torch.full_like(expected, float("nan"))
        with environment(SSAMBA_SKEWED=1 + L % 4):
            scan_mma.states(shape, tensors | {"ckpt": found})
        assert (found[:, :, 0] == 0).all()
        off = error(found, expected.double())
        bound = 8e-3 if dtype == torch.bfloat16 else 8e-3 * HALF_SCALE
        assert off < bound, f"{(B, L, E, R, alternating, tied)}: saved states are off by {off:.1e}"
        for kept in states_of_the_forward(xz, tensors["p"], params, alternating, ungated=L == 41):
            off = error(kept, expected.double())
            assert (kept[:, :, 0] == 0).all()
            assert off < bound, f"{(B, L, E, R, alternating, tied)}: states that the forward saves are off by {off:.1e}"


def states_of_the_forward(
    xz: Tensor, p: Tensor, params: MixerParams, alternating: bool, ungated: bool
) -> Iterator[Tensor]:
    """The states that the forward keeps, with the gate and perhaps without; its output is the same as without them."""
    x, z = xz.unbind(2)
    cut = f"split=1,warps={2 + xz.shape[1] % 2},stages={3 + xz.shape[1] % 2},blocks=1,chunks=1"
    with environment(SSAMBA_CUT=cut, SSAMBA_SKEWED=1 + xz.shape[1] % 4), a_lane_is_a_channel():
        for gate in (z, None) if ungated else (z,):
            y, kept = scan.forward(x, gate, p, params, alternating, True)
            # Tied decays have the same order of states either way; free ones add up another one's columns first.
            plain, _ = scan.forward(x, gate, p, params, alternating)
            assert torch.equal(y, plain) if params.tied else error(y, plain.double()) < 2e-3
            assert kept is not None
            yield kept


def check_training(tensors: list[Tensor], alternating: bool, bound: float, keep_states: bool = False) -> None:
    """Output and every gradient, twice; those of the packed form with that of the input product's bias. Once more from
    x and z apart and, with ``keep_states``, from states that the forward keeps.
    """
    exact = [t.double().requires_grad_() for t in tensors]
    x, z = exact[0].unbind(2)
    expected = naive.bimamba_inner(x, z, MixerParams(*exact[1:]), alternating)
    where = f"{tuple(tensors[0].shape)}, {tuple(tensors[6].shape)}, {alternating}, {tensors[0].dtype}"
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(tensors[0].dtype)
    truth = [expected, *torch.autograd.grad((expected * weight.double()).sum(), exact)]
    runs, biases = [], []
    for packed, keep in ((True, False), (True, False), (False, False), *([(True, True)] if keep_states else [])):
        mine = [t.clone().requires_grad_() for t in tensors]
        params = MixerParams(*mine[1:])
        if packed:
            bias = torch.zeros(tensors[0].shape[2:], requires_grad=True)
            y = gpu.bimamba_inner_packed(mine[0], params, alternating, bias, keep)
            *grads, dbias = torch.autograd.grad((y * weight).sum(), [*mine, bias])
            assert_sum_of_tokens(f"{where}: gradient of the bias", dbias, grads[0])
            summed, terms = truth[1].sum((0, 1)), truth[1].abs().sum((0, 1))  # terms may cancel
            assert_close(f"{where}: gradient of the bias", dbias, summed, bound, terms)
            biases += [] if keep else [dbias]
        else:
            y = gpu.bimamba_inner(*mine[0].unbind(2), params, alternating)
            grads = torch.autograd.grad((y * weight).sum(), mine)
        runs.append([y, *grads])
    assert torch.equal(*biases)
    assert all(torch.equal(a, b) for a, b in zip(*runs[:2], strict=True))
    for run in runs[1:]:
        for i, (found, wanted) in enumerate(zip(run, truth, strict=True)):
            off = error(found, wanted)
            assert off < bound, f"{where}: result {i} is off by {off:.1e}"


def training() -> None:
    for i, (tied, alternating, R) in enumerate(FORMS):
        check_training(draw(2, 21, 2, 5, 3, R, tied, states=6, dtype=torch.float32), alternating, 1e-4)
        if tied and alternating:
            check_training(draw(1, 1, 2, 3, 2, R, tied, dtype=torch.float32), alternating, 1e-4)
            check_training(draw(2, 37, 2, 20, 12, R, tied), alternating, 2e-2)
        with environment(SSAMBA_LPC=1):  # a lane is a channel
            check_training(draw(1 + i % 2, (46, 1, 17, 31)[i], 2, 40, 12, R, tied), alternating, 2e-2)
    with environment(SSAMBA_LPC=1):
        check_training(draw(1, 33, 2, 34, 5, 1, True, states=11), True, 2e-2)
        check_training(draw(1, 21, 2, 128, 12, 1, True), True, 2e-2)  # a channel for every lane of a block


def half() -> None:
    """float16: each form, odd lengths, few states, chunks of time, states by two warps; saved states; training."""
    for i, (split, chunks) in enumerate(((1, 1), (2, 1), (1, 3), (2, 3))):
        with environment(SSAMBA_SKEWED=1 + i, SSAMBA_CUT=f"split={split},warps=4,stages=3,blocks=1,chunks={chunks}"):
            tied, alternating, R = FORMS[i]
            check_forward(draw(2, 71, 2, 48, 12, R, tied, dtype=torch.float16), alternating)
            short = draw(1, 1 + 15 * (i % 2), 2, 16, 4, 1, True, dtype=torch.float16)
            short[0][:, 0, 1] = 0.5  # a gate that is closed at every step would leave nothing to compare
            check_forward(short, True)
            if split == 1:
                check_forward(draw(1, 33, 2, 16, 4, 2, False, states=8, dtype=torch.float16), False)
    states(torch.float16)
    for tied, alternating, R in FORMS[1:3]:
        check_training(draw(2, 37, 2, 32, 12, R, tied, dtype=torch.float16), alternating, 4e-3)
    with environment(SSAMBA_LPC=1):
        check_training(draw(2, 37, 2, 32, 12, 1, True, dtype=torch.float16), True, 4e-3)


def overflow() -> None:
    """Where delta u or a state is beyond float16, that channel stays finite, and the others are as right as ever."""
    xz, *rest = draw(2, 71, 2, 48, 12, 1, True, dtype=torch.float16)
    params = MixerParams(*rest)
    safe = go_beyond_float16(xz, params)
    expected = naive.bimamba_inner(xz[:, :, 0].double(), xz[:, :, 1].double(), params.to(torch.float64), True)
    assert expected.abs().max() < 65504
    for cut in ("split=1,warps=4,stages=3,blocks=1,chunks=1", "split=2,warps=4,stages=3,blocks=1,chunks=3"):
        x = xz[:, :, 0].contiguous()
        with environment(SSAMBA_CUT=cut), torch.no_grad():
            found = gpu.bimamba_inner_packed(xz, params, True)
            bare = params._replace(x_proj_RKPE=params.x_proj_RKPE.half())
            ungated = gpu_inference.inner_with_work(x, None, x.clone(), *bare, "cuda", True)
        assert torch.isfinite(found).all(), cut
        assert torch.isfinite(ungated).all(), cut
        bare = ungated.double() * torch.nn.functional.silu(xz[:, :, 1].double())
        off = error(bare.flatten(2)[..., safe], expected.flatten(2)[..., safe])
        assert off < 4e-3, f"{cut}: without a gate, channels beside those that overflow are off by {off:.1e}"
        off = error(found.flatten(2)[..., safe], expected.flatten(2)[..., safe])
        assert off < 4e-3, f"{cut}: channels beside those that overflow are off by {off:.1e}"


def chunks() -> None:
    """float32 in chunks of time, some of them empty; a lane or several for each channel, and ranks of any size."""
    for tied, alternating, R in (FORMS[0], FORMS[1], (False, False, 2)):
        for length, width, rank, states, cut, lanes in (
            (131, 48, 12, 16, 3, ""), (33, 5, 3, 6, 4, ""), (97, 20, 4, 16, 4, "4"), (1, 3, 2, 16, 2, ""),
        ):  # fmt: skip
            tensors = draw(2, length, 2, width, rank, R, tied, states=states, dtype=torch.float32)
            tensors[0][:, 0, 1] = 0.5
            exact = [t.double() for t in tensors]
            expected = naive.bimamba_inner(*exact[0].unbind(2), MixerParams(*exact[1:]), alternating)
            found = []
            for name in (f"chunks={cut}", "chunks=1"):
                with environment(SSAMBA_CUT=name, SSAMBA_LPC=lanes, SSAMBA_SKEWED=1 + length % 4), torch.no_grad():
                    found.append(gpu.bimamba_inner_packed(tensors[0], MixerParams(*tensors[1:]), alternating))
            off = error(found[0], expected)
            assert off < 2e-6, f"{(tied, alternating, R, length, width, cut, lanes)}: off by {off:.1e}"
            assert length < 64 or not torch.equal(*found), "the chunks were not computed apart"


BACKWARDS = (
    "mma,warps=2,clips=2",
    "mma,warps=4,keep=0,clips=3",
    "mma,warps=6,blocks=2,movm=1",
    "mma,movm=2,clips=2,windows=0",
)
"""Values of SSAMBA_BACKWARD."""
CASES = (
    (3, 33, 48, 12, 1, True), (2, 1, 16, 4, 1, True), (1, 16, 80, 12, 2, False), (3, 25, 48, 12, 2, False),
    (1, 8, 16, 4, 1, False), (4, 37, 32, 20, 1, True), (1, 7, 64, 48, 1, True), (2, 17, 16, 4, 2, False),
    (3, 46, 32, 12, 1, True),
)  # fmt: skip
"""B, L, E, r, R and whether directions alternate: batches that are whole or not, warps without channels, and blocks of
one clip or several, the last one of fewer."""


FREE_BACKWARDS = (
    "mma,warps=2,clips=2",
    "mma,warps=12,blocks=1,keep=16,movm=1,states=0,clips=2",
    "mma,warps=6,blocks=2,keep=17,windows=0",
    "mma,warps=3,keep=5,movm=2,clips=3",
)
FREE_CASES = (
    (3, 33, 48, 12, 2, False), (2, 1, 16, 4, 1, True), (1, 16, 80, 12, 1, True), (4, 25, 48, 12, 2, False),
    (1, 8, 16, 4, 1, False), (3, 37, 32, 20, 1, True), (1, 7, 64, 48, 2, False), (2, 17, 16, 4, 2, False),
    (3, 46, 32, 12, 1, True),
)  # fmt: skip


def backward(
    cases: Sequence[tuple[int, int, int, int, int, bool]] = CASES[:3],
    backwards: Sequence[str] = BACKWARDS,
    tied: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """The backward in tensor-core fragments, tied decays or free ones."""
    launched = []

    def watched(unit: nvrtc.Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
        launched.append(name)
        return build(unit, name, defines, device)

    nvrtc.kernel = watched
    bound = 2e-2 if dtype == torch.bfloat16 else 4e-3
    for i, (B, L, E, r, R, alternating) in enumerate(cases):
        launched.clear()
        cut = "split=1,warps=4,stages=3,blocks=1,chunks=1"
        chosen = environment(SSAMBA_BACKWARD=backwards[i % 4], SSAMBA_SKEWED=1 + i % 4, SSAMBA_CUT=cut)
        with chosen, a_lane_is_a_channel():
            check_training(draw(B, L, 2, E, r, R, tied, dtype=dtype), alternating, bound, keep_states=True)
        assert launched.count("scan_backward_mma") == 4, launched
        states_alone = launched.count("scan_fragments") + launched.count("scan_states") - 4 * R
        assert states_alone == 3, f"{launched}: states are computed again but where they were kept"


def free(cases: Sequence[tuple[int, int, int, int, int, bool]] = FREE_CASES[:3]) -> None:
    """Free decays in fragments, in both types; and what is beyond float16."""
    backward(cases, FREE_BACKWARDS, tied=False)
    backward(cases[2:], FREE_BACKWARDS[1:] + FREE_BACKWARDS[:1], tied=False, dtype=torch.float16)
    backward_overflow(tied=False)


def frees() -> None:
    """``free`` with more sizes, and float16's range with tied decays."""
    free(FREE_CASES)
    backward_overflow(tied=True)


def backward_overflow(tied: bool) -> None:
    """Where delta u or a state is beyond float16, gradients that fit into it are finite, and that of x is right in the
    channels beside them."""
    xz, *rest = draw(1, 71, 2, 48, 12, 1, tied, dtype=torch.float16)
    safe = go_beyond_float16(xz, MixerParams(*rest))
    exact = [t.double().requires_grad_() for t in (xz, *rest)]
    expected = naive.bimamba_inner(*exact[0].unbind(2), MixerParams(*exact[1:]), True)
    weight = torch.zeros(expected.shape).flatten(2)
    weight[..., safe] = torch.randn(weight[..., safe].shape, generator=torch.Generator().manual_seed(3))
    weight = weight.view(expected.shape).half()
    wanted = torch.autograd.grad((expected * weight.double()).sum(), exact)
    with environment(SSAMBA_BACKWARD="mma,warps=2"), a_lane_is_a_channel():
        mine = [t.clone().requires_grad_() for t in (xz, *rest)]
        y = gpu.bimamba_inner_packed(mine[0], MixerParams(*mine[1:]), True)
        found = torch.autograd.grad((y * weight).sum(), mine)
    fits = [bool((truth.abs() < 65504).all()) for truth in wanted]
    assert fits.count(False) == 1, fits  # that of the projection, times u
    assert all(torch.isfinite(grad).all() for grad, one in zip(found, fits, strict=True) if one)
    off = error(found[0][:, :, 0].flatten(2)[..., safe], wanted[0][:, :, 0].flatten(2)[..., safe])
    assert off < 1e-2, f"the gradient of x in channels beside those that overflow is off by {off:.1e}"


@contextmanager
def a_lane_is_a_channel() -> Iterator[None]:
    """As with more channels than can be emulated. SSAMBA_LPC=1 would rule out tensor cores."""
    chosen, Shape.lanes_per_channel = Shape.lanes_per_channel, lambda self: 1  # type: ignore[method-assign]
    yield
    Shape.lanes_per_channel = chosen  # type: ignore[method-assign]


def main(part: str) -> None:
    nvrtc.kernel, scan.usable, conv.conv_proj = build, lambda *_: True, plain_proj  # type: ignore[assignment]
    projection.usable = lambda x, *_: x.dtype in MMA_TYPES and x.shape[-1] % 16 == 0  # type: ignore[assignment]
    parts = {"forward": forward, "states": states, "training": training, "half": half, "overflow": overflow}
    parts |= {"chunks": chunks, "work": work}
    parts |= {"backward": backward, "backwards": lambda: backward(CASES)}
    parts |= {"free": free, "frees": frees}
    parts[part]()


if __name__ == "__main__":
    main(sys.argv[1])
