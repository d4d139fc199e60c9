"""Scans whose direction is the block's: for the forms of an operator that have no kernel for it.

With ``alternating`` the blocks of a pair have one direction each (R is 1): even blocks run left to right, odd ones
right to left. A form without a kernel for that runs the blocks one by one, the odd ones on the reversed sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.ops.mamba.params import MixerParams


class Block(NamedTuple):
    """One block's share of an operator's arguments, as a form of one direction takes it. Time is axis 1."""

    k: int

    def steps(self, x: Tensor, axis: int) -> Tensor:
        """Of a sequence whose blocks lie along ``axis``, in the order of this block's scan."""
        x = x.narrow(axis, self.k, 1)
        return x.flip(1) if self.k % 2 else x

    def weight(self, w_RKx: Tensor) -> Tensor:
        """Of a parameter."""
        return w_RKx.narrow(1, self.k, 1)

    def params(self, params: MixerParams) -> MixerParams:
        """Of a mixer's parameters."""
        return MixerParams(*(self.weight(w) for w in params))


def by_block(form: Callable[[Block], Tensor], blocks: int, axis: int) -> Tensor:
    """What ``form`` makes of each block, in the order of time, joined along ``axis``."""
    parts = [(form(Block(k)), k) for k in range(blocks)]
    return torch.cat([y.flip(1) if k % 2 else y for y, k in parts], dim=axis)
