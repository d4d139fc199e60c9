"""A mixer's parameters as one value, so that they travel together and by name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MixerParams(NamedTuple):
    """Parameters of ``bimamba_inner``: R directions of K blocks (shape letters: ``ssamba.ops.mamba.naive``).

    The order is that of the public operators, which take the seven tensors one by one.
    """

    conv_weight_RKEW: Tensor
    """Taps of the depthwise causal convolution, the present token's last."""
    conv_bias_RKE: Tensor
    x_proj_RKPE: Tensor
    """Projection of the convolved input to (dt, B, C): P = r + 2 N rows."""
    dt_proj_RKEr: Tensor
    """Expands dt from rank r to E channels."""
    dt_bias_RKE: Tensor
    """Added to dt before its softplus."""
    A_log_RKEN: Tensor
    """``A = -exp(A_log)``: the decay rates of the states. Tied: one value of each channel, on a last axis of 1, and
    state n of 1 .. N decays n times as fast."""
    D_RKE: Tensor
    """Weight of the skip from the convolved input to the output."""

    @property
    def directions(self) -> int:
        """R."""
        return self.A_log_RKEN.shape[0]

    @property
    def states(self) -> int:
        """N."""
        return (self.outputs - self.rank) // 2

    @property
    def tied(self) -> bool:
        """Whether a channel's states share one decay rate, times 1 .. N."""
        return self.A_log_RKEN.shape[-1] == 1 and self.states > 1

    @property
    def taps(self) -> int:
        """W."""
        return self.conv_weight_RKEW.shape[-1]

    @property
    def outputs(self) -> int:
        """P."""
        return self.x_proj_RKPE.shape[2]

    @property
    def rank(self) -> int:
        """r."""
        return self.dt_proj_RKEr.shape[-1]

    def expanded(self) -> MixerParams:
        """The same mixer with a decay rate for each state, for forms that have no kernel for tied ones."""
        if not self.tied:
            return self
        A_log = self.A_log_RKEN
        wide = torch.float64 if A_log.dtype == torch.float64 else torch.float32
        counts_N = torch.arange(1, self.states + 1, dtype=wide, device=A_log.device)
        return self._replace(A_log_RKEN=A_log.to(wide) + counts_N.log())

    def contiguous(self) -> MixerParams:
        """The same values, each tensor contiguous."""
        return MixerParams(*(tensor.contiguous() for tensor in self))

    def to(self, dtype: torch.dtype) -> MixerParams:
        """All tensors in ``dtype``."""
        return MixerParams(*(tensor.to(dtype) for tensor in self))


def expanded_rates(A_RKEN: Tensor, states: int) -> Tensor:
    """``A`` with a rate for each of N states: what tied decays, (R, K, E, 1), stand for. Others as they are."""
    if A_RKEN.shape[-1] != 1 or states == 1:
        return A_RKEN
    return A_RKEN * torch.arange(1, states + 1, dtype=A_RKEN.dtype, device=A_RKEN.device)


SCHEMA = ", ".join(f"Tensor {field.rpartition('_')[0]}" for field in MixerParams._fields)
"""The tensors in the schema of a torch operator, whose arguments are flat: ``Tensor conv_weight, ..., Tensor D``."""
