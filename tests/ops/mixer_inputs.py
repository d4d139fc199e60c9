"""Random inputs of a small mixer, for the scripts that compare the GPU kernels with the reference."""

from __future__ import annotations

import torch
from torch import Tensor


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
