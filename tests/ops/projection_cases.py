"""Inputs of the fused convolution and projection, and the comparison with float64."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cuda import projection

BOUNDS = {torch.bfloat16: 5e-3, torch.float16: 1.25e-3}
"""Relative errors: u and the result are rounded to 16 bits, and the hardware's tanh has 11 bits."""
CASES = (
    (1, 70, 2, 400, 44, 2, False), (5, 3, 1, 80, 80, 1, True), (40, 1, 2, 16, 44, 1, True),
    (3, 37, 2, 144, 10, 2, False), (1, 1, 1, 48, 96, 1, False), (2, 129, 2, 64, 28, 1, True),
)  # fmt: skip
"""B, L, K, E, P, R and whether directions alternate."""
BULK_CASES = (
    (4, 37, 2, 144, 56, 1, True), (1, 72, 2, 400, 44, 2, False), (5, 4, 1, 80, 80, 1, True),
    (40, 1, 2, 16, 44, 1, True), (8, 33, 1, 208, 10, 2, False),
)  # fmt: skip
"""Tokens in runs of four: those that tensor maps take."""
GPU_CASES = (
    (1, 513, 2, 384, 44, 1, True), (1, 513, 2, 384, 44, 2, False), (2, 129, 2, 768, 56, 2, False),
    (1, 513, 2, 1536, 80, 1, False), (1, 300, 2, 1536, 80, 2, False), (64, 7, 1, 80, 28, 1, True),
    (5, 1, 2, 400, 10, 2, False), (1, 5001, 2, 384, 44, 1, True), (16, 513, 2, 384, 44, 2, False),
)  # fmt: skip


def draw(
    B: int, L: int, K: int, E: int, P: int, R: int, dtype: torch.dtype, device: str = "cpu", apart: bool = False
) -> list[Tensor]:
    """x, taps, bias and projection; clips one behind the other, or ``apart``."""
    generator = torch.Generator().manual_seed(L + E)
    x = torch.randn(B, L + apart, 2, K, E, generator=generator).to(dtype)
    weight, bias = torch.randn(R, K, E, 4, generator=generator), torch.randn(R, K, E, generator=generator)
    proj = torch.randn(R, K, P, E, generator=generator).to(dtype)
    x, weight, bias, proj = (t.to(device) for t in (x, weight, bias, proj))
    return [x[:, :L, 0], weight, bias, proj]


def expected_projection(tensors: list[Tensor], alternating: bool) -> Tensor:
    """The same in float64."""
    x, weight, bias, proj = (t.double() for t in tensors)
    u = naive.conv_silu(x, weight, bias, alternating)
    return torch.einsum("blrke,rkpe->rkblp", u, proj).flatten(0, 1)


def check(tensors: list[Tensor], alternating: bool) -> float:
    """The error of the result; no token may be much worse than all of them."""
    expected, dtype = expected_projection(tensors, alternating), tensors[0].dtype
    out = torch.full_like(expected, float("nan"), dtype=dtype)
    found = projection.conv_proj(*tensors, out, alternating).double()
    again = projection.conv_proj(*tensors, torch.full_like(out, float("nan")), alternating)
    where = (
        f"{[tuple(t.shape) for t in (tensors[0], tensors[3])]}, {alternating}, {dtype}, {os.environ.get('SSAMBA_PROJ')}"
    )
    assert torch.equal(found, again.double()), f"{where}: other bits the second time"
    error = float((found - expected).norm() / expected.norm())
    assert error < BOUNDS[dtype], f"{where}: off by {error:.1e}"
    tokens = (found - expected).norm(dim=-1) / expected.square().sum(-1).mean().sqrt()
    assert tokens.max() < 4 * BOUNDS[dtype], f"{where}: a token is off by {tokens.max():.1e}"
    return error


def check_fine_taps(dtype: torch.dtype, R: int, alternating: bool, device: str = "cpu") -> float:
    """The error where the leading bits of two taps cancel: what a 16-bit tap lacks is then all that is left."""
    (x, weight, bias, proj), E = draw(1, 70, 2, 64, 44, R, dtype, device), 64
    x = x[:, :1].expand(x.shape).contiguous()
    fine = 8 * (1 + torch.rand(R, 2, E, generator=torch.Generator().manual_seed(1)).to(device) / 4096)
    weight, bias = torch.stack([-torch.full_like(fine, 8), fine, 0 * fine, 0 * fine], -1), torch.zeros_like(bias)
    expected = expected_projection([x, weight, bias, proj], alternating)
    error = projection.conv_proj(x, weight, bias, proj, None, alternating).double() - expected
    back = [bool(k % 2) if alternating else bool(r) for r in range(R) for k in range(2)]
    inner = torch.stack([t[:, :-3] if b else t[:, 3:] for t, b in zip(error, back, strict=True)])
    wanted = torch.stack([t[:, :-3] if b else t[:, 3:] for t, b in zip(expected, back, strict=True)])
    off = float(inner.norm() / wanted.norm())
    assert off < 4 * BOUNDS[dtype], f"{(dtype, R, alternating)}: off by {off:.1e}"
    return off
