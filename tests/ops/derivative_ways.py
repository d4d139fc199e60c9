"""Every operator, its plain form, and every way of taking derivatives of it, for test_derivatives.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from compare import Shape, assert_close, conv_inputs, inner_inputs, scan_inputs
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ssamba import ops
from ssamba.ops.layer_norm import naive as naive_norm
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams

SHAPES = [Shape(2, 7, 2, 2, 8, 4), Shape(1, 1, 2, 1, 3, 1), Shape(3, 34, 1, 2, 5, 3, W=2, r=1)]
"""An odd length, one step of one clip, and one direction over more than a chunk of the CPU's scan."""
BOUND = 2e-5
GPU_BOUND = 1e-4
"""As in test_gpu.py: the kernels' exponentials are approximate."""
Form = Callable[..., Any]


# ---- the operators


def plain_inner(x: Tensor, z: Tensor, *params: Tensor) -> Tensor:
    return naive.bimamba_inner(x, z, MixerParams(*params))


def plain_packed(xz: Tensor, *params: Tensor) -> Tensor:
    return naive.bimamba_inner_packed(xz, MixerParams(*params))


def packed_inputs(shape: Shape) -> list[Tensor]:
    x, z, *params = inner_inputs(shape).values()
    return [torch.stack([x, z], dim=2), *params]


def packed_with_bias(xz: Tensor, bias: Tensor, *params: Tensor) -> Tensor:
    """An input product's bias whose gradient the mixer gives."""
    return ops.bimamba_inner_packed(xz + bias.detach(), *params, bias_JKE=bias)


def plain_packed_with_bias(xz: Tensor, bias: Tensor, *params: Tensor) -> Tensor:
    return plain_packed(xz + bias, *params)


def packed_and_bias_inputs(shape: Shape) -> list[Tensor]:
    xz, *params = packed_inputs(shape)
    return [xz, torch.linspace(-1, 1, xz[0, 0].numel()).view(xz.shape[2:]), *params]


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
    "bimamba_inner_packed with a bias": (packed_with_bias, plain_packed_with_bias, packed_and_bias_inputs),
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
