"""The CPU kernels against the plain form in float64: values, every gradient, strides, extremes, threads."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compare import (
    Shape,
    assert_close,
    case_id,
    compare,
    conv_inputs,
    inner_inputs,
    output_weight,
    scan_inputs,
)
from torch import Tensor

from ssamba.ops.jit import openmp
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import mixer_inference, operators
from ssamba.ops.mamba.params import MixerParams

FORWARD, BACKWARD = 1e-6, 2e-6  # relative norms; float32 itself rounds at 6e-8

# Every listed length, batch, width and state count at least once, odd against even.
SHAPES = [
    Shape(B=1, L=1, R=1, K=1, E=1, N=1, W=1),
    Shape(B=2, L=2, R=2, K=1, E=3, N=16),
    Shape(B=3, L=7, R=2, K=2, E=65, N=17, W=3),
    Shape(B=1, L=63, R=1, K=2, E=64, N=16, W=2),
    Shape(B=2, L=64, R=2, K=2, E=3, N=1),
    Shape(B=1, L=65, R=2, K=1, E=65, N=64),
    Shape(B=1, L=33, R=2, K=1, E=384, N=16),
    Shape(B=1, L=513, R=2, K=1, E=3, N=16),
    Shape(B=2, L=5, R=1, K=1, E=128, N=8, W=6),
]


@pytest.fixture(autouse=True)
def _two_threads(one_thread: None) -> None:
    """Two threads: enough to go wrong. The plain form's tiny steps ask for ``one_thread`` (it restores the count)."""
    torch.set_num_threads(2)


def compare_conv(inputs: dict[str, Tensor]) -> None:
    compare(lambda **x: operators.conv_silu(*x.values()), naive.conv_silu, inputs, FORWARD, BACKWARD)


def compare_scan(inputs: dict[str, Tensor | None]) -> None:
    """The bias of dt and D get one number per channel, summed over clips and time, of which little may be left.

    With one channel of 3 x 513 steps the terms of the bias's gradient are 600 times its size: float32 loses three of
    its seven digits, in the plain form as well. So these two are measured against their terms (``compare``).
    """

    def terms(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # delta = softplus(dt + bias): dt has the bias's terms for its gradient. y = ... + D u, gated, then averaged.
        u, z = inputs["u_BLRKE"], inputs["z_BLKE"]
        assert u is not None
        to_y_BLKE = output_weight(expected["output"].shape).double() / u.shape[2]
        if z is not None:
            to_y_BLKE = to_y_BLKE * F.silu(z.detach().double())
        of_each = {
            "dt_bias_RKE": expected["gradient of dt_BLRKE"],
            "D_RKE": to_y_BLKE.unsqueeze(2) * u.detach().double(),
        }
        for name, terms_BLRKE in of_each.items():
            torch.testing.assert_close(terms_BLRKE.sum((0, 1)), expected[f"gradient of {name}"], rtol=1e-9, atol=1e-9)
        return {name: terms_BLRKE.abs().sum((0, 1)) for name, terms_BLRKE in of_each.items()}

    compare(lambda **x: operators.selective_scan(*x.values()), naive.selective_scan, inputs, FORWARD, BACKWARD, terms)


def inner(module: object, inputs: dict[str, Tensor]) -> Tensor:
    """``bimamba_inner`` of a backend."""
    x, z, *params = inputs.values()
    return module.bimamba_inner(x, z, MixerParams(*params))  # type: ignore[attr-defined]


def compare_inference(inputs: dict[str, Tensor], part_tokens: int | None = None) -> None:
    """The form without a gradient, in parts of so many tokens if given."""
    x, z, *params = inputs.values()
    with torch.no_grad():
        if part_tokens is None:
            found = inner(operators, inputs)
        else:
            weights = mixer_inference.Weights.of(MixerParams(*params))
            found = mixer_inference.bimamba(x, z, weights, part_tokens)
        expected = inner(naive, {name: value.double() for name, value in inputs.items()})
    assert_close("output", found, expected, FORWARD)


def test_fresh_memory_is_nan_here() -> None:
    """The fixture that the other tests rely on, inside a custom operator too."""

    @torch.library.custom_op("ssamba_test::fresh", mutates_args=())
    def fresh(x: Tensor) -> Tensor:
        return torch.empty(3, 4)

    x = torch.zeros(3)
    for found in (torch.empty(5), torch.empty_like(x), x.new_empty(2, 2), fresh(x)):
        assert found.isnan().all()


@pytest.mark.parametrize("shape", SHAPES, ids=case_id)
def test_convolution_and_its_gradients(shape: Shape) -> None:
    compare_conv(conv_inputs(shape))


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("shape", SHAPES, ids=case_id)
def test_scan_and_its_gradients(shape: Shape, gated: bool) -> None:
    compare_scan(scan_inputs(shape, gated))


@pytest.mark.parametrize(
    "shape", [Shape(2, 70, 2, 2, 48, 16), Shape(1, 9, 1, 1, 70, 4, 3), Shape(1, 1, 2, 1, 5, 3)], ids=case_id
)
def test_mixer_and_its_gradients(shape: Shape) -> None:
    inputs = inner_inputs(shape)
    compare(lambda **x: inner(operators, x), lambda **x: inner(naive, x), inputs, FORWARD, BACKWARD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "channels", "states"), list(product((1, 2, 7, 63, 64, 65, 513), (1, 3, 64, 65, 384), (1, 16, 17, 64)))
)
def test_scan_over_the_whole_grid(length: int, channels: int, states: int) -> None:
    for batch, directions, blocks in ((1, 2, 2), (3, 1, 1)):
        compare_scan(scan_inputs(Shape(batch, length, directions, blocks, channels, states)))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels apart": lambda x: torch.stack([x, x], dim=-1)[..., 1],
    "channels first": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
    "part of a longer sequence": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "part of wider rows": lambda x: torch.cat([x, x, x], dim=-1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "one clip for all": lambda x: x[:1].expand_as(x),
    "one channel for all": lambda x: x[..., :1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    shape, lay = Shape(2, 37, 2, 2, 20, 16), LAYOUTS[layout]
    compare_conv({name: lay(x) for name, x in conv_inputs(shape).items()})
    compare_scan({name: None if x is None else lay(x) for name, x in scan_inputs(shape).items()})
    inputs = inner_inputs(shape)
    compare_inference(inputs | {name: lay(inputs[name]) for name in ("x_BLKE", "z_BLKE")})


@pytest.mark.parametrize("offset", [-200.0, -80.0, -20.0, 15.0, 30.0, 300.0, 1e4])
def test_extreme_step_sizes(offset: float) -> None:
    """Steps of 1e-35 (nothing moves) and of 1e4 (every state is forgotten at once) alike."""
    inputs = scan_inputs(Shape(1, 40, 2, 1, 17, 16))
    assert inputs["dt_BLRKE"] is not None
    compare_scan(inputs | {"dt_BLRKE": inputs["dt_BLRKE"] + offset})


@pytest.mark.parametrize("scale", [1e-15, 40.0, 1e4])
def test_extreme_gates_and_convolutions(scale: float) -> None:
    shape = Shape(1, 9, 2, 1, 17, 4)
    inputs = scan_inputs(shape)
    assert inputs["z_BLKE"] is not None
    compare_scan(inputs | {"z_BLKE": inputs["z_BLKE"] * scale})
    convolution = conv_inputs(shape)
    compare_conv(convolution | {"x_BLKE": convolution["x_BLKE"] * scale})


def test_slow_decay_keeps_its_state() -> None:
    """Decays of 1 - 1e-4 over 4,000 steps: rounding must not drift."""
    inputs = [x for x in scan_inputs(Shape(1, 4000, 1, 1, 16, 1)).values() if x is not None]
    inputs[1], inputs[2], inputs[6] = inputs[1] * 0 - 9.2, inputs[2] * 0 - 1, inputs[6] * 0
    expected = naive.selective_scan(*[x.double() for x in inputs])
    assert_close("output", operators.selective_scan(*inputs), expected, 1e-5)


def test_nan_stays_nan_and_in_its_clip() -> None:
    inputs = scan_inputs(Shape(2, 20, 2, 1, 20, 16))
    assert inputs["u_BLRKE"] is not None
    inputs["u_BLRKE"][0, 5] = math.nan
    out = operators.selective_scan(*inputs.values())
    assert out[0].isnan().all()
    assert not out[1].isnan().any()


@pytest.mark.parametrize("shape", [Shape(2, 37, 2, 2, 20, 5), Shape(1, 3, 1, 1, 65, 16, 2)], ids=case_id)
def test_inference_writes_all_that_it_reads(shape: Shape) -> None:
    """From fresh memory, which is full of NaN here: lanes that should be masked would show."""
    compare_inference(inner_inputs(shape))


@pytest.mark.parametrize("tokens", [2, 7, 20, 64])
@pytest.mark.parametrize(
    "shape", [Shape(3, 9, 2, 2, 40, 16), Shape(2, 50, 1, 1, 40, 5), Shape(2, 50, 2, 1, 70, 16)], ids=case_id
)
def test_inference_in_parts(shape: Shape, tokens: int) -> None:
    """Parts shorter than the taps reach, parts of one clip, parts of several clips."""
    compare_inference(inner_inputs(shape), tokens)


def test_inference_mode_leaves_nothing_that_other_modes_cannot_use() -> None:
    """The work area of the first call serves all later ones of the thread, whatever mode it was made in."""
    mixer_inference.release_work_area()
    inputs = inner_inputs(Shape(2, 9, 2, 2, 40, 16))
    with torch.inference_mode():
        expected = inner(operators, inputs)
    with torch.no_grad():
        assert torch.equal(inner(operators, inputs), expected)
    with torch.inference_mode():
        assert torch.equal(inner(operators, inputs), expected)


THREADED = Shape(2, 70, 2, 2, 130, 16)


def gradients(inputs: dict[str, Tensor]) -> list[Tensor]:
    """The mixer's output and all its gradients."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out = inner(operators, leaves)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), list(leaves.values()))]


def test_kernels_give_the_same_bits_on_any_number_of_threads() -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [x.detach().requires_grad_() for x in scan_inputs(THREADED).values() if x is not None]
        y = operators.selective_scan(*leaves)
        x, w, b = (x.requires_grad_() for x in conv_inputs(THREADED).values())
        u = operators.conv_silu(x, w, b)
        found.append(
            [y, u, *torch.autograd.grad(y.square().sum(), leaves), *torch.autograd.grad(u.square().sum(), [x, w, b])]
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_four_python_threads_at_once() -> None:
    inputs = inner_inputs(THREADED)
    expected = gradients(inputs)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(5):
            try:
                for i, (a, b) in enumerate(zip(gradients(inputs), expected, strict=True)):
                    assert_close(f"tensor {i}", a, b, 1e-6)
            except AssertionError as error:
                wrong.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_works_alone() -> None:
    """Data loaders fork after the first use; the parent's worker threads do not exist in the child."""
    inputs = conv_inputs(THREADED).values()
    expected = operators.conv_silu(*inputs)
    child = os.fork()
    if child == 0:  # torch.equal, and filling memory, would use torch's own threads, which a child does not have either
        torch.utils.deterministic.fill_uninitialized_memory = False
        os._exit(0 if np.array_equal(operators.conv_silu(*inputs).numpy(), expected.numpy()) else 1)
    deadline = time.monotonic() + 30
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status[1]) == 0
    assert torch.equal(operators.conv_silu(*inputs), expected)


def test_the_thread_pool_that_replaces_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = conv_inputs(THREADED).values()
    expected = operators.conv_silu(*inputs)
    monkeypatch.setattr(openmp, "openmp_parallel", lambda: None)
    assert torch.equal(operators.conv_silu(*inputs), expected)


@pytest.mark.parametrize("shape", [Shape(0, 5, 2, 1, 4, 4), Shape(2, 0, 2, 1, 4, 4)], ids=case_id)
def test_empty_inputs(shape: Shape) -> None:
    u = operators.conv_silu(*conv_inputs(shape).values())
    assert u.shape == (shape.B, shape.L, shape.R, shape.K, shape.E)
    leaves = [x.requires_grad_() for x in scan_inputs(shape).values() if x is not None]
    out = operators.selective_scan(*leaves)
    assert out.shape == (shape.B, shape.L, shape.K, shape.E)
    out.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in leaves)
    with torch.no_grad():
        assert inner(operators, inner_inputs(shape)).shape == out.shape
