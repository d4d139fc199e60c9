"""The reference's scan in float64 with few operations: by doubling over the steps instead of one step after another.

A long input takes the reference form minutes on a GPU, nearly all of it launches; this takes milliseconds, gradients
included. test_naive.py compares the two.
"""

from __future__ import annotations

from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams, expanded_rates


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, z: Tensor | None = None,
    alternating: bool = False,
) -> Tensor:  # fmt: skip
    """``naive.selective_scan``: ``h[t] = a[t] h[t-1] + b[t]`` is associative in the pairs (a, b)."""
    A = expanded_rates(A, B.shape[-1])
    delta = F.softplus(dt + dt_bias)
    length, directions, blocks = u.shape[1:4]
    backwards = torch.arange(blocks, device=u.device) % 2 == 1

    def turned(x: Tensor, r: int) -> Tensor:
        """In the order of direction r, and back: x is (B, L, K, ...)."""
        if alternating:
            return torch.where(backwards[:, None], x.flip(1), x)
        return x if r == 0 else x.flip(1)

    total = torch.zeros_like(u[:, :, 0])
    for r in range(directions):
        delta_r, u_r, B_r, C_r = (turned(x[:, :, r], r) for x in (delta, u, B, C))
        decay = torch.exp(delta_r.unsqueeze(-1) * A[r])
        # Before the first step the states are 0; the decays take part, so that they have gradients at length 1, too.
        state = 0.0 * decay + (delta_r * u_r).unsqueeze(-1) * B_r.unsqueeze(-2)
        reach = 1
        while reach < length:
            state = torch.cat([state[:, :reach], state[:, reach:] + decay[:, reach:] * state[:, :-reach]], 1)
            decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
            reach *= 2
        y = (state * C_r.unsqueeze(-2)).sum(-1) + D[r] * u_r
        total = total + turned(y, r)
    return total / directions * (1.0 if z is None else F.silu(z))


def bimamba_inner(x: Tensor, z: Tensor | None, params: MixerParams, alternating: bool = False) -> Tensor:
    """``naive.bimamba_inner`` in float64."""
    with mock.patch.object(naive, "selective_scan", selective_scan):
        return naive.bimamba_inner(x, z, params, alternating)
