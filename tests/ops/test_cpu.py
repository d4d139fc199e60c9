"""The CPU kernels against the reference form in float64: values, every gradient, strides, extremes, threads."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import mixer_inference, operators

FORWARD, BACKWARD = 1e-6, 2e-6  # relative norms; float32 itself rounds at 6e-8

# (B, L, R, K, E, N, W): every listed length, batch, width and state count at least once, odd against even
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 1, 3, 16, 4),
    (3, 7, 2, 2, 65, 17, 3),
    (1, 63, 1, 2, 64, 16, 2),
    (2, 64, 2, 2, 3, 1, 4),
    (1, 65, 2, 1, 65, 64, 4),
    (1, 33, 2, 1, 384, 16, 4),
    (1, 513, 2, 1, 3, 16, 4),
    (2, 5, 1, 1, 128, 8, 6),
]


@pytest.fixture(autouse=True)
def _two_threads(one_thread: None) -> None:
    """Two threads: enough to go wrong. The reference's tiny steps ask for ``one_thread`` (it restores the count)."""
    torch.set_num_threads(2)


def scan_inputs(shape: Sequence[int], gated: bool = True, seed: int = 0) -> list[Tensor | None]:
    """Random arguments of ``selective_scan``."""
    batch, length, directions, blocks, channels, states, _ = shape
    rng = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=rng)

    tokens, lanes = (batch, length, directions, blocks), (directions, blocks)
    return [
        draw(*tokens, channels),
        draw(*tokens, channels) - 1,
        -torch.exp(draw(*lanes, channels, states)),
        draw(*tokens, states),
        draw(*tokens, states),
        draw(*lanes, channels),
        draw(*lanes, channels),
        draw(batch, length, blocks, channels) if gated else None,
    ]


def conv_inputs(shape: Sequence[int]) -> list[Tensor]:
    batch, length, directions, blocks, channels, _, width = shape
    rng = torch.Generator().manual_seed(1)
    sizes = ((batch, length, blocks, channels), (directions, blocks, channels, width), (directions, blocks, channels))
    return [torch.randn(*size, generator=rng) for size in sizes]


def inner_inputs(shape: Sequence[int], rank: int = 3) -> list[Tensor]:
    """Random arguments of ``bimamba_inner``."""
    batch, length, directions, blocks, channels, states, width = shape
    rng = torch.Generator().manual_seed(2)
    lanes = (directions, blocks)
    scaled = [
        ((batch, length, blocks, channels), 1.0),
        ((batch, length, blocks, channels), 1.0),
        ((*lanes, channels, width), 0.5),
        ((*lanes, channels), 0.1),
        ((*lanes, rank + 2 * states, channels), channels**-0.5),
        ((*lanes, channels, rank), rank**-0.5),
        ((*lanes, channels), 1.0),
        ((*lanes, channels, states), 0.5),
        ((*lanes, channels), 1.0),
    ]
    return [torch.randn(*size, generator=rng) * scale for size, scale in scaled]


def error(ours: Tensor, truth: Tensor) -> float:
    """Norm of the difference relative to the truth's, which counts as 1e-20 where it is less (see ``_LOWEST``)."""
    assert ours.shape == truth.shape
    return (ours.double() - truth).norm().item() / max(truth.norm().item(), 1e-20)


def compare(name: str, inputs: Sequence[Tensor | None]) -> None:
    """Values and gradients of the fast form, from these very tensors, against the reference on float64 copies."""
    ours = [None if x is None else x.detach().requires_grad_() for x in inputs]
    doubles = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    out, truth = getattr(operators, name)(*ours), getattr(naive, name)(*doubles)
    assert error(out, truth) < FORWARD
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    out.backward(direction)
    truth.backward(direction.double())
    for i, (x, y) in enumerate(zip(ours, doubles, strict=True)):
        if x is not None and y is not None:
            assert x.grad is not None
            assert y.grad is not None
            assert error(x.grad, y.grad) < BACKWARD, f"gradient {i}"


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_its_gradients(shape: tuple[int, ...]) -> None:
    compare("conv_silu", conv_inputs(shape))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_scan_and_its_gradients(shape: tuple[int, ...], gated: bool) -> None:
    compare("selective_scan", scan_inputs(shape, gated))


@pytest.mark.parametrize("shape", [(2, 70, 2, 2, 48, 16, 4), (1, 9, 1, 1, 70, 4, 3)])
def test_mixer_and_its_gradients(shape: tuple[int, ...]) -> None:
    compare("bimamba_inner", inner_inputs(shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "channels", "states"), list(product((1, 2, 7, 63, 64, 65, 513), (1, 3, 64, 65, 384), (1, 16, 17, 64)))
)
def test_scan_over_the_whole_grid(length: int, channels: int, states: int) -> None:
    for batch, directions, blocks in ((1, 2, 2), (3, 1, 1)):
        compare("selective_scan", scan_inputs((batch, length, directions, blocks, channels, states, 4)))


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
    shape = (2, 37, 2, 2, 20, 16, 4)
    lay = LAYOUTS[layout]
    compare("conv_silu", [lay(x) for x in conv_inputs(shape)])
    compare("selective_scan", [None if x is None else lay(x) for x in scan_inputs(shape)])
    with torch.no_grad():
        inputs = inner_inputs(shape)
        inputs[:2] = [lay(x) for x in inputs[:2]]
        truth = naive.bimamba_inner(*[x.double() for x in inputs])
        assert error(operators.bimamba_inner(*inputs), truth) < FORWARD


@pytest.mark.parametrize("offset", [-200.0, -80.0, -20.0, 15.0, 30.0, 300.0, 1e4])
def test_extreme_step_sizes(offset: float) -> None:
    """Steps of 1e-35 (nothing moves) and of 1e4 (every state is forgotten at once) alike."""
    inputs = scan_inputs((1, 40, 2, 1, 17, 16, 4))
    assert inputs[1] is not None
    inputs[1] = inputs[1] + offset
    ours = operators.selective_scan(*inputs)  # type: ignore[arg-type]
    truth = naive.selective_scan(*[x.double() for x in inputs if x is not None])
    assert torch.isfinite(ours).all()
    assert error(ours, truth) < FORWARD
    compare("selective_scan", inputs)


@pytest.mark.parametrize("scale", [1e-15, 40.0, 1e4])
def test_extreme_gates_and_convolutions(scale: float) -> None:
    inputs = scan_inputs((1, 9, 2, 1, 17, 4, 4))
    assert inputs[7] is not None
    inputs[7] = inputs[7] * scale
    compare("selective_scan", inputs)
    x, weight, bias = conv_inputs((1, 9, 2, 1, 17, 4, 4))
    compare("conv_silu", [x * scale, weight, bias])


def test_slow_decay_keeps_its_state() -> None:
    """Decays of 1 - 1e-4 over 4,000 steps: rounding must not drift."""
    inputs = [x for x in scan_inputs((1, 4000, 1, 1, 16, 1, 4)) if x is not None]
    inputs[1], inputs[2], inputs[6] = inputs[1] * 0 - 9.2, inputs[2] * 0 - 1, inputs[6] * 0
    truth = naive.selective_scan(*[x.double() for x in inputs])
    assert error(operators.selective_scan(*inputs), truth) < 1e-5


def test_nan_stays_nan_and_in_its_clip() -> None:
    inputs = scan_inputs((2, 20, 2, 1, 20, 16, 4))
    assert inputs[0] is not None
    inputs[0][0, 5] = math.nan
    out = operators.selective_scan(*inputs)  # type: ignore[arg-type]
    assert out[0].isnan().all()
    assert not out[1].isnan().any()


def test_results_are_written_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory full of NaN: whatever is not written, and any lane that should be masked, would show."""
    plain_empty, plain_new_empty = torch.empty, Tensor.new_empty

    def poison(x: Tensor) -> Tensor:
        return x.fill_(math.nan) if x.is_floating_point() else x.fill_(255)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(plain_empty(*a, **k)))
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **k: poison(plain_new_empty(self, *a, **k)))
    monkeypatch.setattr(mixer_inference._kept, "area", None, raising=False)
    for shape in ((2, 37, 2, 2, 20, 5, 4), (1, 3, 1, 1, 65, 16, 2)):
        compare("conv_silu", conv_inputs(shape))
        compare("selective_scan", scan_inputs(shape))
        with torch.no_grad():
            inputs = inner_inputs(shape)
            truth = naive.bimamba_inner(*[x.double() for x in inputs])
            assert error(operators.bimamba_inner(*inputs), truth) < FORWARD


@pytest.mark.parametrize("tokens", [2, 7, 20, 64])
@pytest.mark.parametrize("shape", [(3, 9, 2, 2, 40, 16, 4), (2, 50, 1, 1, 40, 5, 4), (2, 50, 2, 1, 70, 16, 4)])
def test_inference_in_parts(shape: tuple[int, ...], tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts shorter than the taps reach, parts of one clip, parts of several clips."""
    monkeypatch.setattr(mixer_inference, "TOKENS", tokens)
    inputs = inner_inputs(shape)
    with torch.no_grad():
        ours = operators.bimamba_inner(*inputs)
    assert error(ours, naive.bimamba_inner(*[x.double() for x in inputs])) < FORWARD


def test_inference_mode_leaves_nothing_that_other_modes_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work area of the first call serves all later ones of the thread, whatever mode it was made in."""
    monkeypatch.setattr(mixer_inference._kept, "area", None, raising=False)
    inputs = inner_inputs((2, 9, 2, 2, 40, 16, 4))
    with torch.inference_mode():
        expected = operators.bimamba_inner(*inputs)
    with torch.no_grad():
        assert torch.equal(operators.bimamba_inner(*inputs), expected)
    with torch.inference_mode():
        assert torch.equal(operators.bimamba_inner(*inputs), expected)


def gradients(inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = operators.bimamba_inner(*leaves)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def test_kernels_give_the_same_bits_on_any_number_of_threads() -> None:
    shape = (2, 70, 2, 2, 130, 16, 4)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [x.detach().requires_grad_() for x in scan_inputs(shape) if x is not None]
        y = operators.selective_scan(*leaves)
        x, w, b = (x.requires_grad_() for x in conv_inputs(shape))
        u = operators.conv_silu(x, w, b)
        found.append(
            [y, u, *torch.autograd.grad(y.square().sum(), leaves), *torch.autograd.grad(u.square().sum(), [x, w, b])]
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_four_python_threads_at_once() -> None:
    inputs = inner_inputs((2, 70, 2, 2, 130, 16, 4))
    truth = gradients(inputs)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(5):
            for i, (a, b) in enumerate(zip(gradients(inputs), truth, strict=True)):
                if error(a, b.double()) > 1e-6:
                    wrong.append(f"tensor {i}")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_works_alone() -> None:
    """Data loaders fork after the first use; the parent's worker threads do not exist in the child."""
    inputs = conv_inputs((2, 70, 2, 2, 130, 16, 4))
    truth = operators.conv_silu(*inputs)
    child = os.fork()
    if child == 0:  # torch.equal would use torch's own threads, which a child does not have either
        os._exit(0 if np.array_equal(operators.conv_silu(*inputs).numpy(), truth.numpy()) else 1)
    deadline = time.monotonic() + 30
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status[1]) == 0
    assert torch.equal(operators.conv_silu(*inputs), truth)


def test_the_thread_pool_that_stands_in_for_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssamba.ops.jit import openmp

    inputs = conv_inputs((2, 70, 2, 2, 130, 16, 4))
    truth = operators.conv_silu(*inputs)
    monkeypatch.setattr(openmp, "_openmp_parallel", lambda: None)
    assert torch.equal(operators.conv_silu(*inputs), truth)


@pytest.mark.parametrize("shape", [(0, 5, 2, 1, 4, 4, 4), (2, 0, 2, 1, 4, 4, 4)])
def test_empty_inputs(shape: tuple[int, ...]) -> None:
    batch, length, directions, blocks, channels, _, _ = shape
    u = operators.conv_silu(*conv_inputs(shape))
    assert u.shape == (batch, length, directions, blocks, channels)
    leaves = [x.requires_grad_() for x in scan_inputs(shape) if x is not None]
    out = operators.selective_scan(*leaves)
    assert out.shape == (batch, length, blocks, channels)
    out.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in leaves)
    with torch.no_grad():
        assert operators.bimamba_inner(*inner_inputs(shape)).shape == out.shape
