"""A linear layer whose product is the operator's."""

from __future__ import annotations

from torch import Tensor, nn

from ssamba import ops


class LinearLayer(nn.Linear):
    """``torch.nn.Linear`` by ``ops.linear``: on a CPU with two libraries for products the faster one."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return ops.linear(input, self.weight, self.bias)
