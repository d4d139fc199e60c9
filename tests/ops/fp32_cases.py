"""Products in float32 that must be as right as torch's own: of odd sizes and strides, badly scaled, special."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor, "Tensor | None"], Any]
FACTOR = 2.0
"""How far beyond the error of torch's own float32 product an error may be."""
LEAST = {"greatest": 2.4e-7, "mean": 4.5e-8}
"""Errors of torch that count as so large: one product of values with 11 + 11 bits may be off by 2^-21 and more, which
nobody sees but in sums of very few."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def strided(*shape: int) -> Tensor:
    """Rows with a gap between them, and columns that are not neighbours."""
    return draw(*shape[:-1], 2 * shape[-1] + 3)[..., 1 : 2 * shape[-1] : 2]


CASES = {
    "rows": (draw(70, 192), draw(50, 192)),
    "one row": (draw(1, 129), draw(33, 129)),
    "one output": (draw(65, 40), draw(1, 40)),
    "one input": (draw(37, 1), draw(5, 1)),
    "strided": (strided(35, 96), strided(40, 96)),
    "transposed": (draw(96, 70).t(), draw(96, 40).t()),
    "a transposed": (draw(256, 64).t(), draw(32, 256)),
    "b transposed": (draw(64, 48), draw(48, 64).t()),
    "expanded": (draw(1, 64).expand(40, 64), draw(20, 64)),
    "no rows": (draw(0, 64), draw(20, 64)),
    "no inputs": (draw(7, 0), draw(5, 0)),
    "no outputs": (draw(7, 16), draw(0, 16)),
}


def scaled_cases() -> dict[str, tuple[Tensor, Tensor]]:
    """Rows of very different sizes, columns of very different sizes, and sums that cancel."""
    a, b = draw(40, 192), draw(33, 192)
    scales = 10.0 ** torch.linspace(-20, 20, 40)
    inputs = 10.0 ** torch.linspace(-15, 15, 192)
    cancel = torch.cat([a, -a + 1e-6 * draw(40, 192, seed=1)], 1)
    return {
        "scaled rows": (a * scales[:, None], b),
        "scaled outputs": (a, b * scales[:33, None] * 1e-10),
        "scaled inputs": (a * inputs, b),
        "scaled inputs against each other": (a * inputs, b / inputs),
        "one sign": (a.abs(), b.abs()),
        "cancelling": (cancel, torch.cat([b, b], 1)),
    }


def sizes(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """The norm of each result's products: what an error is relative to, however they cancel."""
    found = a.double().norm(dim=1, keepdim=True) * b.double().norm(dim=1)
    return (found if bias is None else found + bias.double().abs()).clamp_min(1e-37)


def check_against_torch(name: str, product: Product, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    """The mean and the greatest error, each at most ``FACTOR`` of torch's."""
    found, plain = product(a, b, bias), F.linear(a, b, bias)
    truth = F.linear(a.double(), b.double(), None if bias is None else bias.double())
    assert (found.shape, found.dtype, found.is_contiguous()) == (plain.shape, plain.dtype, True), name
    if not found.numel():
        return
    mine, torchs = ((y.double() - truth).abs() / sizes(a, b, bias) for y in (found, plain))
    assert bool(found.isfinite().all()), name
    for kind, of in (("greatest", Tensor.max), ("mean", Tensor.mean)):
        error, of_torch = float(of(mine)), float(of(torchs))
        bound = FACTOR * max(of_torch, LEAST[kind])
        assert error <= bound, f"{name}, {kind} error: {error:.1e}, torch's {of_torch:.1e}"


GREATEST = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).tiny
"""What a value may lose at most: with 11 bits its second half may be too small for a number, or be flushed to zero."""
SPECIAL: dict[str, tuple[float, ...]] = {
    "infinities": (float("inf"), float("-inf")),
    "NaN": (float("nan"),),
    "the greatest": (GREATEST, -GREATEST),
    "near the greatest": (3.4e38, -2.5e38),
    "subnormal": (1e-40, -3e-42, 1e-45),
    "small": (1e-35, -1e-37, 1.2e-38),
}


def check_special(name: str, product: Product) -> None:
    """The same values finite, infinite and NaN as torch's, and the finite ones as right."""
    for width in (40, 1):
        a, b = draw(40, width) / 64, draw(37, width) / 8
        for i, value in enumerate(SPECIAL[name]):
            a[3 * i + 1, width // 2] = value
            b[5 * i + 2, 0] = value
        a[20] = SPECIAL[name][0] / 64  # of the greatest, no sum overflows in one order alone
        b[30], b[31], b[32] = 0.0, 1.0, -1.0
        found, plain = product(a, b, None), F.linear(a, b)
        assert torch.equal(found.isnan(), plain.isnan()), name
        assert torch.equal(found.isposinf(), plain.isposinf()), name
        assert torch.equal(found.isneginf(), plain.isneginf()), name
        fine = plain.isfinite()
        truth = F.linear(a.double(), b.double())
        scale = sizes(a, b, None).nan_to_num(posinf=GREATEST)
        lost = TINY * (a.abs().sum(1, keepdim=True) + b.abs().sum(1)).double().nan_to_num(posinf=GREATEST)
        error = ((found.double() - truth).abs() / (1e-6 * scale + lost))[fine]
        assert float(error.max()) < 1, f"{name}: {float(error.max()):.1e} times the bound"
