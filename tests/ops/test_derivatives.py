"""Derivatives beyond one backward pass: forward mode, second derivatives, the transforms of ``torch.func``.

The truth is the plain form in float64. Cases of a GPU need one; the Triton kernels run in their interpreter, too.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import Shape, assert_close, case_id, inner_inputs
from derivative_ways import (
    BOUND,
    OPERATORS,
    SHAPES,
    WAYS,
    Form,
    compare,
    directions,
    dual_of_backward,
    grad,
    hessian,
    hessian_by_autograd,
    jvp,
    norm_inputs,
    on,
    plain_inner,
    scalar,
    second,
)
from mixer_inputs import pair_weights
from torch import Tensor

from ssamba import ops
from ssamba.ops.layer_norm import naive as naive_norm
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams
from ssamba.utils.errors import ConfigError

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
    ),
]
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # One warning says that the reference form runs: test_auto_says_so_once looks at it.
    pytest.mark.filterwarnings("ignore:ssamba.ops:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSAMBA_BACKEND", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # a convolution would keep 10 bits


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator(name: str, way: str, device: str) -> None:
    compare(name, WAYS[way], on(device, OPERATORS[name][2](SHAPES[0])))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["second backward", "jvp", "grad", "vmap of grad"])
@pytest.mark.parametrize("apart", [False, True], ids=["dense", "apart"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=case_id)
@pytest.mark.parametrize("name", OPERATORS)
def test_shapes(name: str, shape: Shape, apart: bool, way: str, device: str) -> None:
    compare(name, WAYS[way], on(device, OPERATORS[name][2](shape), apart), bound=5e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", [hessian, hessian_by_autograd])
@pytest.mark.parametrize("name", OPERATORS)
def test_hessians(name: str, way: Callable[..., list[Tensor]], device: str) -> None:
    compare(name, way, on(device, OPERATORS[name][2](Shape(1, 3, 2, 1, 2, 2, r=1))))


def third(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = scalar(form)(*leaves)
    for _ in range(2):
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        value = torch.stack([(g * v).sum() for g, v in zip(gradients, directions(inputs), strict=True)]).sum()
    return list(torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in OPERATORS if "norm" not in name])
def test_third_derivatives(name: str, device: str) -> None:
    """Not of the norm: those of torch's are wrong. ``derivatives_small.py`` has the GPU's, which are right."""
    compare(name, third, on(device, OPERATORS[name][2](SHAPES[0])), bound=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_tangent_that_appears_in_a_backward_is_not_lost(name: str, device: str) -> None:
    """torch has no forward mode for the backward of some of its functions, and says so: so do the operators then."""
    inputs = on(device, OPERATORS[name][2](SHAPES[0]))
    try:
        dual_of_backward(OPERATORS[name][1], inputs)
    except NotImplementedError:
        with pytest.raises(NotImplementedError, match="forward AD"):
            dual_of_backward(OPERATORS[name][0], inputs)
    else:
        compare(name, dual_of_backward, inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_graph_of_the_gradient_does_not_change_it(name: str, device: str) -> None:
    inputs = [x.requires_grad_() for x in on(device, OPERATORS[name][2](SHAPES[0]))]
    run = scalar(OPERATORS[name][0])
    once, twice = (torch.autograd.grad(run(*inputs), inputs, create_graph=graph) for graph in (False, True))
    if device == "cuda" and name in ("conv_silu", "selective_scan"):  # plain torch there, which rounds otherwise
        torch.testing.assert_close(once, twice, rtol=1e-5, atol=1e-6)
        return
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=case_id)
@pytest.mark.parametrize("name", ["bimamba_inner", "bimamba_inner_packed"])
def test_half_precision_with_parameters_in_float32(name: str, dtype: torch.dtype, device: str) -> None:
    """As under autocast: first and second gradients and tangents. Squares must stay in float16's range."""

    def small(form: Form) -> Form:
        return lambda *inputs: 0.01 * form(*inputs)

    tensors = on(device, OPERATORS[name][2](SHAPES[0]))
    inputs = [x.to(dtype) if i < (2 if name == "bimamba_inner" else 1) else x for i, x in enumerate(tensors)]
    for way in (second, jvp):
        for f, e in zip(
            way(small(OPERATORS[name][0]), inputs),
            way(small(OPERATORS[name][1]), [x.double() for x in inputs]),
            strict=True,
        ):
            assert_close(f"{name}", f, e, (4e-2 if dtype == torch.bfloat16 else 8e-3) * (1 + f.is_cuda))


def test_gradgradcheck() -> None:
    """Against finite differences, in float64, where the reference form runs."""
    for name in ("conv_silu", "selective_scan", "bimamba_inner", "add_layer_norm"):
        inputs = [x.double().requires_grad_() for x in OPERATORS[name][2](Shape(1, 3, 2, 1, 2, 1, W=2, r=1))]
        form = OPERATORS[name][0]
        assert torch.autograd.gradcheck(form, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(form, inputs)


def test_the_operators_of_torch_themselves() -> None:
    """A gradient of what has no backward of its own, and batches, without the dispatcher."""
    x, z, *params = (t.requires_grad_() for t in inner_inputs(SHAPES[0]).values())
    found = torch.autograd.grad(torch.ops.ssamba.bimamba_inference(x, z, *params).square().sum(), (x, z, *params))
    exact = [t.detach().double().requires_grad_() for t in (x, z, *params)]
    for i, (f, e) in enumerate(zip(found, torch.autograd.grad(plain_inner(*exact).square().sum(), exact), strict=True)):
        assert_close(f"gradient {i}", f, e, BOUND)
    stacked = torch.stack([x.detach(), 2 * x.detach()])
    rows = torch.func.vmap(lambda x: torch.ops.ssamba.bimamba_inference(x, z, *params))(stacked)
    assert torch.equal(rows[1], torch.ops.ssamba.bimamba_inference(2 * x, z, *params))


def test_auto_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = OPERATORS["conv_silu"][2](SHAPES[0])
    ops.dispatch.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jvp(ops.conv_silu, inputs)
        jvp(ops.conv_silu, inputs)
    found = [str(w.message) for w in caught if "ssamba" in str(w.message)]
    assert len(found) == 1
    assert "SSAMBA_BACKEND=reference" in found[0]


@pytest.mark.parametrize("way", ["jvp", "dual tensors", "grad", "vmap", "jacrev"])
def test_a_forced_fast_form_is_refused_in_one_line(way: str) -> None:
    inputs = OPERATORS["selective_scan"][2](SHAPES[0])
    with ops.use_backend("cpu"), pytest.raises(ConfigError, match="SSAMBA_BACKEND=reference") as caught:
        WAYS[way](ops.selective_scan, inputs)
    assert "\n" not in str(caught.value)
    with ops.use_backend("reference"):
        WAYS[way](ops.selective_scan, inputs)


@pytest.mark.parametrize("way", ["grad", "vmap", "jvp", "forward over reverse"])
def test_compiled_transforms(way: str) -> None:
    inputs = OPERATORS["conv_silu"][2](SHAPES[0])
    plain = WAYS[way](naive.conv_silu, inputs)
    built = torch.compile(lambda *x: WAYS[way](ops.conv_silu, x), backend="aot_eager")(*inputs)
    for f, e in zip(built, plain, strict=True):
        assert_close(way, f, e, BOUND)


# ---- a GPU's kernels without a GPU


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_in_its_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("derivatives_small.py"))],
        capture_output=True, text=True, timeout=300, env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


# ---- inference alone


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_what_inference_uses(device: str) -> None:
    """The operators of a deferred gate write over their inputs: the plain form runs, or torch refuses."""
    y, stream, weight, bias, out_proj = (
        x.to(device) for x in map(torch.randn, ((6, 8), (6, 4), (8, 4), (8,), (4, 8)))
    )  # fmt: skip

    def run(y: Tensor, stream: Tensor, *weights: Tensor) -> Tensor:
        out = torch.zeros_like(stream)
        ops.gated_output_(y.clone(), stream.clone(), *weights, out, 1e-5, 2.0)
        return out

    def plain(y: Tensor, stream: Tensor, *weights: Tensor) -> Tensor:
        out = torch.zeros_like(stream)
        naive.gated_output_(y.clone(), stream.clone(), *weights, out, 1e-5, 2.0)
        return out

    inputs = [y, stream, weight, bias, out_proj]
    for i, (f, e) in enumerate(zip(jvp(run, inputs), jvp(plain, [x.double() for x in inputs]), strict=True)):
        assert_close(f"result {i}", f, e, 1e-4)
    for way in (grad_once, grad):  # what was written over is missed by the backward, and torch says so
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            way(run, inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_ready_weights(device: str) -> None:
    tensors = [x.to(device) for x in pair_weights(8, 2, 2, torch.float32)]

    def plain(*tensors: Tensor) -> tuple[Tensor, ...]:
        *found, params = naive.ready_weights(*tensors[:4], MixerParams(*tensors[4:]), tensors[0].dtype)
        return (*found, *params)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return ops.ready_weights_of_pairs([tuple(tensors)], torch.float32)[0]

    for way in (second, jvp):
        for i, (f, e) in enumerate(zip(way(run, tensors), way(plain, [x.double() for x in tensors]), strict=True)):
            assert_close(f"result {i}", f, e, 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_factor_of_the_norm_has_a_gradient(device: str) -> None:
    inputs = [*on(device, norm_inputs(SHAPES[0])), torch.tensor([0.5, 2.0], device=device)]

    def form(module: Any) -> Form:
        return lambda x, res, w, b, scale: module.add_layer_norm(x, res, w, b, x_scale_B=scale, residual_scale=2.0)

    for f, e in zip(
        grad_once(form(ops), inputs), grad_once(form(naive_norm), [x.double() for x in inputs]), strict=True
    ):
        assert_close("gradient", f, e, 1e-4)


def grad_once(form: Form, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(scalar(form)(*leaves), leaves)
