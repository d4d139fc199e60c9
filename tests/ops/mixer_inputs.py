"""Random inputs of a small mixer, for the scripts that compare the GPU kernels with the reference."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams


def mixer_inputs(B: int, L: int, K: int, E: int, r: int, R: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """xz (B, L, 2, K, E) in ``dtype`` and a mixer's parameters in float32, with 16 states; L is the seed."""
    generator = torch.Generator().manual_seed(L)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = [draw(B, L, 2, K, E).to(dtype), draw(R, K, E, 4) * 0.5, draw(R, K, E) * 0.1]
    tensors += [draw(R, K, r + 32, E) / E**0.5, draw(R, K, E, r) / r**0.5, draw(R, K, E) - 3]
    return [*tensors, torch.log(torch.rand(R, K, E, 16, generator=generator) * 16 + 0.5), draw(R, K, E)]


def pair_weights(d: int, r: int, R: int, dtype: torch.dtype, apart: bool = False) -> list[Tensor]:
    """The arguments of ``ready_weights`` for a pair of width d; ``apart``: those that may be are not contiguous."""
    generator = torch.Generator().manual_seed(d)
    parameters = mixer_inputs(1, 1, 2, 2 * d, r, R)[1:]
    shapes = [(2, 2, 2 * d, d), (2, d), (2, d), (d, 2, 2 * d)]
    tensors = [torch.randn(*s, generator=generator) for s in shapes] + parameters
    tensors = [t.to(dtype) for t in tensors]
    return [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors] if apart else tensors


def weights_of(module: Any, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """``ready_weights_of_pairs`` of a backend for one pair, flat."""
    pair = *tensors[:4], MixerParams(*tensors[4:])
    *rest, params = module.ready_weights_of_pairs(tensors[0], [pair], dtype)[0]
    return [*rest, *params]


def go_beyond_float16(xz: Tensor, params: MixerParams) -> Tensor:
    """Changes the inputs of an alternating mixer so that delta u is beyond float16 in some channels.

    Everything that is in memory stays in the range, outputs too. Returns which channels (K E,) are not concerned.
    """
    r, states = params.rank, params.states
    params.dt_bias_RKE[:, :, ::2] = -4.0
    params.dt_bias_RKE[:, :, 1::5] = 5.0
    xz[:, :, 0, :, 1::3] *= 8e3
    for rows, factor in ((slice(r), 1e-4), (slice(r, r + states), 3e-6), (slice(r + states, None), 1e-5)):
        params.x_proj_RKPE[:, :, rows] *= factor
    params.x_proj_RKPE.copy_(params.x_proj_RKPE.half())  # as the kernels see it
    params.D_RKE.mul_(0.1)
    exact = params.to(torch.float64)
    u = naive.conv_silu(xz[:, :, 0].double(), exact.conv_weight_RKEW, exact.conv_bias_RKE, True)
    p = torch.einsum("blrke,rkpe->blrkp", u, exact.x_proj_RKPE)
    dt = torch.einsum("blrkp,rkep->blrke", p[..., :r], exact.dt_proj_RKEr)
    drive = (F.softplus(dt + exact.dt_bias_RKE) * u).abs()
    safe = (drive.sum(1) * p[..., r : r + states].abs().amax() < 65504).flatten(0, 1).all(0).flatten()
    assert u.abs().max() < 65504
    assert drive.max() > 2 * 65504
    assert safe.any()
    return safe & (drive.amax(1) < 65504).flatten(0, 1).all(0).flatten()
