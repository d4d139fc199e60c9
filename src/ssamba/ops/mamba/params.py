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
    """``A = -exp(A_log)``: the decay rates of the states."""
    D_RKE: Tensor
    """Weight of the skip from the convolved input to the output."""

    @property
    def directions(self) -> int:
        """R."""
        return self.A_log_RKEN.shape[0]

    @property
    def states(self) -> int:
        """N."""
        return self.A_log_RKEN.shape[-1]

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

    def contiguous(self) -> MixerParams:
        """The same values, each tensor contiguous."""
        return MixerParams(*(tensor.contiguous() for tensor in self))

    def to(self, dtype: torch.dtype) -> MixerParams:
        """All tensors in ``dtype``."""
        return MixerParams(*(tensor.to(dtype) for tensor in self))


SCHEMA = ", ".join(f"Tensor {field.rpartition('_')[0]}" for field in MixerParams._fields)
"""The tensors in the schema of a torch operator, whose arguments are flat: ``Tensor conv_weight, ..., Tensor D``."""
