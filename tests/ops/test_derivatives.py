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
from compare import Shape, assert_close, case_id, conv_inputs, inner_inputs, scan_inputs
from mixer_inputs import pair_weights
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

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
SHAPES = [Shape(2, 7, 2, 2, 8, 4), Shape(1, 1, 2, 1, 3, 1), Shape(3, 34, 1, 2, 5, 3, W=2, r=1)]
"""An odd length, one step of one clip, and one direction over more than a chunk of the CPU's scan."""
BOUND = 2e-5
GPU_BOUND = 1e-4
"""As in test_gpu.py: the kernels' exponentials are approximate."""
Form = Callable[..., Any]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # One warning says that the reference form runs: test_auto_says_so_once looks at it.
    pytest.mark.filterwarnings("ignore:ssamba.ops:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSAMBA_BACKEND", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # a convolution would keep 10 bits


# ---- the operators


def plain_inner(x: Tensor, z: Tensor, *params: Tensor) -> Tensor:
    return naive.bimamba_inner(x, z, MixerParams(*params))


def plain_packed(xz: Tensor, *params: Tensor) -> Tensor:
    return naive.bimamba_inner_packed(xz, MixerParams(*params))


def packed_inputs(shape: Shape) -> list[Tensor]:
    x, z, *params = inner_inputs(shape).values()
    return [torch.stack([x, z], dim=2), *params]


def norm_inputs(shape: Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    sizes = [(shape.B, shape.L, 12), (shape.B, shape.L, 12), (12,), (12,)]
    return [torch.randn(size, generator=generator) for size in sizes]


def norm(module: Any, scaled: bool = False) -> Form:
    def run(x: Tensor, residual: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.arange(1.0, 1 + x.shape[0], dtype=x.dtype, device=x.device) if scaled else None
        return module.add_layer_norm(x, residual, *maps, residual_scale=2.0, x_scale_B=scale)

    return run


OPERATORS: dict[str, tuple[Form, Form, Callable[[Shape], list[Tensor]]]] = {
    "conv_silu": (ops.conv_silu, naive.conv_silu, lambda s: list(conv_inputs(s).values())),
    "selective_scan": (
        ops.selective_scan, naive.selective_scan, lambda s: [x for x in scan_inputs(s).values() if x is not None],
    ),
    "selective_scan without a gate": (
        ops.selective_scan, naive.selective_scan,
        lambda s: [x for x in scan_inputs(s, gated=False).values() if x is not None],
    ),
    "bimamba_inner": (ops.bimamba_inner, plain_inner, lambda s: list(inner_inputs(s).values())),
    "bimamba_inner_packed": (ops.bimamba_inner_packed, plain_packed, packed_inputs),
    "add_layer_norm": (norm(ops), norm(naive_norm), norm_inputs),
    "add_layer_norm without maps": (norm(ops), norm(naive_norm), lambda s: norm_inputs(s)[:2]),
    "add_layer_norm with factors": (norm(ops, scaled=True), norm(naive_norm, scaled=True), norm_inputs),
}  # fmt: skip


def on(device: str, tensors: Sequence[Tensor], apart: bool = False) -> list[Tensor]:
    """Copies on the device; ``apart``: no two neighbours of a tensor lie next to each other."""
    found = [x.to(device) for x in tensors]
    return [torch.stack([x, x + 1], dim=-1)[..., 0] for x in found] if apart else found


def scalar(form: Form) -> Callable[..., Tensor]:
    """A scalar with curvature of what ``form`` returns."""

    def run(*inputs: Tensor) -> Tensor:
        out = form(*inputs)
        parts = []
        for i, y in enumerate(out if isinstance(out, tuple) else (out,)):
            weight = torch.linspace(-1 - i, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
            parts.append((weight * y + y**2 / 2).sum())
        return torch.stack(parts).sum()

    return run


def directions(inputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(x.shape, generator=generator).to(x) for x in inputs]


def second(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, then those of a function of them: a second backward."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    first = torch.autograd.grad(scalar(form)(*leaves), leaves, create_graph=True)
    mixed = torch.stack([(g * v).sum() + (g**2).sum() for g, v in zip(first, directions(inputs), strict=True)]).sum()
    return [*(g.detach() for g in first), *torch.autograd.grad(mixed, leaves)]


def dual(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(inputs, directions(inputs), strict=True)]
        tangent = forward_ad.unpack_dual(scalar(form)(*duals)).tangent
        assert tangent is not None
        return [tangent.clone()]


def jvp(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    value, tangent = torch.func.jvp(scalar(form), tuple(inputs), tuple(directions(inputs)))
    return [value, tangent]


def jvp_of_no_grad(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return jvp(form, inputs)


def grad(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.func.grad(scalar(form), argnums=tuple(range(len(inputs))))(*inputs))


def grad_of_grad(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    def inner(x: Tensor) -> Tensor:
        return torch.func.grad(scalar(form))(x, *inputs[1:]).square().sum()

    return [torch.func.grad(inner)(inputs[0])]


def forward_over_reverse(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    gradient = torch.func.grad(scalar(form), argnums=tuple(range(len(inputs))))
    return [x for part in torch.func.jvp(gradient, tuple(inputs), tuple(directions(inputs))) for x in part]


def reverse_over_forward(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    def tangent(*inputs: Tensor) -> Tensor:
        return torch.func.jvp(scalar(form), inputs, tuple(directions(inputs)))[1]

    return list(torch.func.grad(tangent, argnums=tuple(range(len(inputs))))(*inputs))


def vmapped(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    stacked = [torch.stack([x, 0.5 * x]) for x in inputs]
    return [torch.func.vmap(scalar(form))(*stacked), torch.func.vmap(scalar(form), (0, *[None] * (len(inputs) - 1)))(
        stacked[0], *inputs[1:]
    )]  # fmt: skip


def per_sample(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of each clip alone, with respect to the other inputs as well."""
    first = torch.stack([inputs[0], 0.5 * inputs[0]])
    gradient = torch.func.grad(scalar(form), argnums=tuple(range(len(inputs))))
    return list(torch.func.vmap(gradient, (0, *[None] * (len(inputs) - 1)))(first, *inputs[1:]))


def two_rows(form: Form, inputs: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.stack([scalar(form)(x, *inputs[1:]), scalar(form)(0.5 * x, *inputs[1:])])


def jacrev(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.func.jacrev(two_rows(form, inputs))(inputs[0])]


def jacfwd(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.func.jacfwd(two_rows(form, inputs))(inputs[0])]


def hessian(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.func.hessian(scalar(form), argnums=1)(*inputs)]


def hessian_by_autograd(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.autograd.functional.hessian(lambda w: scalar(form)(inputs[0], w, *inputs[2:]), inputs[1])]


def batched_backward(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    x = inputs[0].detach().requires_grad_()
    weight = torch.eye(2, dtype=x.dtype, device=x.device)
    return list(torch.autograd.grad(two_rows(form, inputs)(x), x, weight, is_grads_batched=True))


def vmapped_backward(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A backward in a transform, of a forward outside of it."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = scalar(form)(*leaves)
    weights = torch.tensor([1.0, 2.0], dtype=y.dtype, device=y.device)
    return list(torch.func.vmap(lambda w: torch.autograd.grad(y, leaves, w, retain_graph=True))(weights))


def dual_of_backward(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A tangent that appears in the backward only."""
    x = inputs[0].detach().requires_grad_()
    y = scalar(form)(x, *inputs[1:])
    with forward_ad.dual_level():
        given = forward_ad.make_dual(torch.ones_like(y), torch.full_like(y, 3.0))
        tangent = forward_ad.unpack_dual(torch.autograd.grad(y, x, given)[0]).tangent
        assert tangent is not None
        return [tangent.clone()]


def checkpointed(reentrant: bool) -> Callable[[Form, Sequence[Tensor]], list[Tensor]]:
    def run(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        checkpoint(scalar(form), *leaves, use_reentrant=reentrant).backward()
        return [x.grad for x in leaves if x.grad is not None]

    return run


def checkpointed_twice(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    return second(lambda *x: checkpoint(form, *x, use_reentrant=False), inputs)


WAYS: dict[str, Callable[[Form, Sequence[Tensor]], list[Tensor]]] = {
    "second backward": second,
    "dual tensors": dual,
    "jvp": jvp,
    "jvp without gradients": jvp_of_no_grad,
    "grad": grad,
    "grad of grad": grad_of_grad,
    "forward over reverse": forward_over_reverse,
    "reverse over forward": reverse_over_forward,
    "vmap": vmapped,
    "vmap of grad": per_sample,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "batched backward": batched_backward,
    "vmap of a backward": vmapped_backward,
    "checkpoint": checkpointed(reentrant=False),
    "reentrant checkpoint": checkpointed(reentrant=True),
    "second backward of a checkpoint": checkpointed_twice,
}


def compare(name: str, way: Callable[..., list[Tensor]], inputs: list[Tensor], bound: float = BOUND) -> None:
    fast, plain, _ = OPERATORS[name]
    expected = way(plain, [x.double() for x in inputs])
    found = way(fast, inputs)
    bound = max(bound, GPU_BOUND) if inputs[0].is_cuda else bound
    assert len(found) == len(expected) > 0
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        # A gradient that is zero but for rounding, as that of what the norm removes, is held to the size of its terms.
        size = e if e.norm() > 1e-9 else torch.ones_like(e)
        assert_close(f"{name}: result {i}", f, e, bound, size)


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
        return ops.ready_weights(*tensors, dtype=torch.float32)

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
