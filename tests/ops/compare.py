"""Comparing a fast form with the plain one: shapes with ids, one assertion, values and every gradient by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """Sizes of an operator's arguments: see the legend of ``ssamba.ops.mamba.naive``."""

    B: int
    L: int
    R: int
    K: int
    E: int
    N: int
    W: int = 4
    r: int = 3


def case_id(value: object) -> str:
    """The id of a parameter: ``B2-L37-R2-K2-E32-N16-W4-r3`` of a shape, ``float32`` of a dtype."""
    if isinstance(value, Shape):
        return "-".join(f"{name}{size}" for name, size in zip(value._fields, value, strict=True))
    return str(value).removeprefix("torch.")


def relative_error(found: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """Norm of the difference relative to that of ``size`` (None: of ``expected``), which is 1e-20 at least."""
    difference = (found.detach().double() - expected.detach().double()).norm()
    return float(difference) / max(float((expected if size is None else size).detach().double().norm()), 1e-20)


def assert_close(
    name: str, found: Tensor | None, expected: Tensor | None, bound: float, size: Tensor | None = None
) -> None:
    """Same shape, finite, and the relative error of the whole tensor (``relative_error``) below ``bound``."""
    assert found is not None, f"{name} is missing"
    assert expected is not None, f"{name} should be missing"
    assert found.shape == expected.shape, f"{name} has shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    assert torch.isfinite(found).all(), f"{name} has {int((~torch.isfinite(found)).sum())} values that are not finite"
    error = relative_error(found, expected, size)
    assert error < bound, f"{name} is off by {error:.1e}, allowed {bound:.1e}"


def assert_sum_of_tokens(name: str, found: Tensor, dxz_BLhKE: Tensor) -> None:
    """``found`` is the sum of ``dxz`` over clips and tokens, but for the rounding of each of its values."""
    exact, kind = dxz_BLhKE.detach().double(), torch.finfo(dxz_BLhKE.dtype)
    error = (found.detach().double() - exact.sum((0, 1))).abs()
    bound = 4 * kind.eps * exact.abs().sum((0, 1)) + kind.smallest_normal * kind.eps * exact.shape[0] * exact.shape[1]
    assert found.shape == error.shape, f"{name} has shape {tuple(found.shape)}, not {tuple(error.shape)}"
    assert (error <= bound).all(), f"{name} is {float((error / bound).amax()):.1f} times as far off as it may be"


def output_weight(shape: Sequence[int]) -> Tensor:
    """The gradient that the comparisons give an output of this shape: normal numbers from a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def values_and_gradients(
    operator: Callable[..., Tensor], inputs: Mapping[str, Tensor | None], weight: Tensor | None = None
) -> dict[str, Tensor]:
    """The output, and the gradient of ``(output weight).sum()`` for each input that is not None, by name.

    Without a weight, ``output_weight``.
    """
    leaves = {name: None if x is None else x.detach().clone().requires_grad_() for name, x in inputs.items()}
    out = operator(**leaves)
    if weight is None:
        weight = output_weight(out.shape)
    wanted = {name: x for name, x in leaves.items() if x is not None}
    grads = torch.autograd.grad((out * weight.to(out)).sum(), list(wanted.values()))
    return {"output": out.detach()} | {f"gradient of {n}": g for n, g in zip(wanted, grads, strict=True)}


def compare(
    fast: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    inputs: Mapping[str, Tensor | None],
    forward: float,
    backward: float,
    terms: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda expected: {},
) -> None:
    """Output and gradients of ``fast``, from these very tensors, against ``plain`` on float64 copies.

    The strides of the inputs are kept: nothing is copied before it reaches the operator.

    ``terms`` is for gradients that are sums over clips and time, whose terms may cancel: float32 rounds each term at
    its own size, so that the error of the sum follows the terms and not what is left of them. It takes the expected
    values and gradients and gives, by the inputs' names, the sums of the terms' absolute values. The error is measured
    against these, and held to the narrower ``forward``.
    """
    leaves = {name: None if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    out = fast(**leaves)
    weight = output_weight(out.shape).to(out)
    expected = values_and_gradients(
        plain, {name: None if x is None else x.double() for name, x in inputs.items()}, weight.double()
    )
    assert_close("output", out, expected["output"], forward)
    out.backward(weight)
    sizes = terms(expected)
    for name, leaf in leaves.items():
        if leaf is not None:
            bound = forward if name in sizes else backward
            assert_close(f"gradient of {name}", leaf.grad, expected[f"gradient of {name}"], bound, sizes.get(name))


def draw(generator: torch.Generator, sizes: Mapping[str, tuple[Sequence[int], float]]) -> dict[str, Any]:
    """Normal tensors by name, from (shape, standard deviation) of each."""
    return {name: torch.randn(*size, generator=generator) * scale for name, (size, scale) in sizes.items()}


def conv_inputs(shape: Shape, seed: int = 1) -> dict[str, Tensor]:
    """Random arguments of ``conv_silu``."""
    B, L, R, K, E, _, W, _ = shape
    sizes = {"x_BLKE": ((B, L, K, E), 1.0), "weight_RKEW": ((R, K, E, W), 1.0), "bias_RKE": ((R, K, E), 1.0)}
    return draw(torch.Generator().manual_seed(seed), sizes)


def scan_inputs(shape: Shape, gated: bool = True, seed: int = 0) -> dict[str, Tensor | None]:
    """Random arguments of ``selective_scan``."""
    B, L, R, K, E, N, _, _ = shape
    sizes = {
        "u_BLRKE": ((B, L, R, K, E), 1.0), "dt_BLRKE": ((B, L, R, K, E), 1.0), "A_RKEN": ((R, K, E, N), 1.0),
        "B_BLRKN": ((B, L, R, K, N), 1.0), "C_BLRKN": ((B, L, R, K, N), 1.0), "D_RKE": ((R, K, E), 1.0),
        "dt_bias_RKE": ((R, K, E), 1.0), "z_BLKE": ((B, L, K, E), 1.0),
    }  # fmt: skip
    found = draw(torch.Generator().manual_seed(seed), sizes)
    found["dt_BLRKE"] -= 1
    found["A_RKEN"] = -torch.exp(found["A_RKEN"])
    return found if gated else found | {"z_BLKE": None}


def inner_inputs(shape: Shape, seed: int = 2) -> dict[str, Tensor]:
    """Random arguments of ``bimamba_inner``."""
    B, L, R, K, E, N, W, r = shape
    sizes = {
        "x_BLKE": ((B, L, K, E), 1.0), "z_BLKE": ((B, L, K, E), 1.0), "conv_weight_RKEW": ((R, K, E, W), 0.5),
        "conv_bias_RKE": ((R, K, E), 0.1), "x_proj_RKPE": ((R, K, r + 2 * N, E), 1 / math.sqrt(E)),
        "dt_proj_RKEr": ((R, K, E, r), 1 / math.sqrt(r)), "dt_bias_RKE": ((R, K, E), 1.0),
        "A_log_RKEN": ((R, K, E, N), 0.5), "D_RKE": ((R, K, E), 1.0),
    }  # fmt: skip
    return draw(torch.Generator().manual_seed(seed), sizes)
