"""Second and third derivatives of the Triton operators in Triton's interpreter; test_derivatives.py runs it."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Callable, Sequence

import torch
import triton_small  # noqa: F401  (makes the interpreter take NumPy's arrays)
from compare import Shape, assert_close, inner_inputs
from torch import Tensor

from ssamba.ops.layer_norm import gpu as gpu_norm
from ssamba.ops.mamba import gpu, naive
from ssamba.ops.mamba.params import MixerParams

SHAPES = (Shape(2, 5, 2, 2, 3, 2, r=2), Shape(1, 1, 1, 1, 2, 1, W=2, r=1))
Form = Callable[..., "Tensor | tuple[Tensor, ...]"]


def derivatives(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    """First, second and third derivatives, and a batch of backwards."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = form(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(3)

    def draw(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    value = torch.stack([(y * draw(y)).sum() + (y**2).sum() for y in outputs]).sum()
    first = torch.autograd.grad(value, leaves, create_graph=True)
    mixed = torch.stack([(g * draw(g)).sum() + 0.1 * (g**3).sum() for g in first]).sum()
    second = torch.autograd.grad(mixed, leaves, create_graph=True)
    third = torch.autograd.grad(torch.stack([(g * draw(g)).sum() for g in second]).sum(), leaves)
    found = [*first, *second, *third]
    y = form(*leaves)
    y = y if isinstance(y, Tensor) else y[0]
    weights = torch.stack([draw(y), draw(y)])
    batched = torch.autograd.grad(y, leaves[:1], weights, is_grads_batched=True, retain_graph=True)
    over_vmap = torch.func.vmap(lambda w: torch.autograd.grad(y, leaves[0], w, retain_graph=True)[0])(weights)
    return [x.detach() for x in (*found, *batched, over_vmap)]


def compare(name: str, fast: Form, plain: Form, inputs: Sequence[Tensor]) -> None:
    pairs = zip(derivatives(fast, inputs), derivatives(plain, [x.double() for x in inputs]), strict=True)
    for i, (found, expected) in enumerate(pairs):
        size = expected if expected.norm() > 1e-9 else torch.ones_like(expected)
        assert_close(f"{name}: result {i}", found, expected, 1e-4, size)


def norm_written_out(
    x: Tensor, residual: Tensor | None = None, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """torch.nn.functional.layer_norm has wrong third derivatives in torch 2.13, so it is written out here."""
    stream = x if factors is None else x * factors[:, None, None].to(x)
    stream = stream if residual is None else stream + 2 * residual
    centred = stream - stream.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias, stream


def check_mixer(shape: Shape) -> None:
    x, z, *params = inner_inputs(shape).values()
    compare(
        f"apart {shape}",
        lambda x, z, *p: gpu.bimamba_inner(x, z, MixerParams(*p)),
        lambda x, z, *p: naive.bimamba_inner(x, z, MixerParams(*p)),
        (x, z, *params),
    )
    compare(
        f"packed {shape}",
        lambda xz, *p: gpu.bimamba_inner_packed(xz, MixerParams(*p)),
        lambda xz, *p: naive.bimamba_inner_packed(xz, MixerParams(*p)),
        (torch.stack([x, z], dim=2), *params),
    )
    compare(
        f"packed with a bias {shape}",
        lambda xz, bias, *p: gpu.bimamba_inner_packed(xz + bias.detach(), MixerParams(*p), False, bias),
        lambda xz, bias, *p: naive.bimamba_inner_packed(xz + bias, MixerParams(*p)),
        (torch.stack([x, z], dim=2), torch.linspace(-1, 1, 2 * x[0, 0].numel()).view(2, *x.shape[2:]), *params),
    )


def check_norm() -> None:
    generator = torch.Generator().manual_seed(1)
    x, residual, w, b = (torch.randn(s, generator=generator) for s in ((2, 3, 20), (2, 3, 20), (20,), (20,)))
    factors = torch.tensor([0.5, 2.0])
    for given in ((x,), (x, residual), (x, residual, w, b)):
        for scale in (None, factors):
            compare(
                f"norm of {len(given)}",
                lambda *t, scale=scale: gpu_norm.add_layer_norm(*t, residual_scale=2.0, x_scale_B=scale),
                lambda *t, scale=scale: norm_written_out(*t, factors=scale),
                given,
            )


if __name__ == "__main__":
    for shape in SHAPES:
        check_mixer(shape)
    check_norm()
