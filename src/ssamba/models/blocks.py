"""Two bidirectional Mamba blocks that read the same input: the unit that the SSAMBA encoder is a chain of.

The reference runs an even block on the sequence and an odd block on the reversed sequence and adds the results. Both
read the same input, and reversing the sequence around a block equals exchanging its directions. So a pair is one wide
step: one input product, four scans at once, one output product, no flip (REFERENCE.md, "Encoder").
Shape letters are those of ``ssamba.ops.reference``; d is the width, h is 2 for the halves x and z.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssamba import ops
from ssamba.config import Config

NORM_EPS = 1e-5
BLOCKS, DIRECTIONS = 2, 2
DT_MIN, DT_MAX, DT_FLOOR = 0.001, 0.1, 1e-4


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


class BlockPair(nn.Module):
    """Parameters of two parallel blocks, stacked, and their common step.

    Direction 0 runs left to right. In the second block the official checkpoint's unsuffixed weights belong to
    direction 1: ``ssamba.interop.official`` does that exchange.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, e, n, r = config.width, config.inner, config.state_size, config.dt_rank
        lanes = (DIRECTIONS, BLOCKS)
        self.depth = config.depth
        self.norm_weight_Kd = _empty(BLOCKS, d)
        self.norm_bias_Kd = _empty(BLOCKS, d)
        self.in_proj_hKEd = _empty(2, BLOCKS, e, d)
        self.conv_weight_RKEW = _empty(*lanes, e, config.conv_width)
        self.conv_bias_RKE = _empty(*lanes, e)
        self.x_proj_RKPE = _empty(*lanes, r + 2 * n, e)
        self.dt_proj_RKEr = _empty(*lanes, e, r)
        self.dt_bias_RKE = _empty(*lanes, e)
        self.A_log_RKEN = _empty(*lanes, e, n)
        self.D_RKE = _empty(*lanes, e)
        self.out_proj_dKE = _empty(d, BLOCKS, e)

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """The reference's initialisation (REFERENCE.md, "Encoder"), from an explicit generator."""

        def uniform(parameter: Tensor, bound: float) -> None:
            parameter.uniform_(-bound, bound, generator=generator)

        d, (e, r) = self.norm_weight_Kd.shape[1], self.dt_proj_RKEr.shape[2:]
        self.norm_weight_Kd.fill_(1.0)
        self.norm_bias_Kd.zero_()
        uniform(self.in_proj_hKEd, d**-0.5)
        uniform(self.conv_weight_RKEW, self.conv_weight_RKEW.shape[-1] ** -0.5)
        uniform(self.conv_bias_RKE, self.conv_weight_RKEW.shape[-1] ** -0.5)
        uniform(self.x_proj_RKPE, e**-0.5)
        uniform(self.dt_proj_RKEr, r**-0.5)
        uniform(self.out_proj_dKE, e**-0.5 / math.sqrt(self.depth))
        span = math.log(DT_MAX) - math.log(DT_MIN)
        dt = torch.exp(torch.rand(self.dt_bias_RKE.shape, generator=generator) * span + math.log(DT_MIN))
        dt = dt.clamp_min(DT_FLOOR)
        self.dt_bias_RKE.copy_(dt + torch.log(-torch.expm1(-dt)))
        states = torch.arange(1, self.A_log_RKEN.shape[-1] + 1, dtype=torch.float32)
        self.A_log_RKEN.copy_(states.log().expand_as(self.A_log_RKEN))
        self.D_RKE.fill_(1.0)

    def forward(self, x_BLd: Tensor, residual_BLd: Tensor | None, keep_KB: Tensor | None) -> tuple[Tensor, Tensor]:
        """One step: returns the blocks' summed output and the new (doubled) residual, both (B, L, d).

        ``keep_KB`` scales x per block and clip as it joins the residual (stochastic depth); None keeps it whole.
        """
        if residual_BLd is None:
            joined_BLd = x_BLd
        elif keep_KB is None:
            joined_BLd = residual_BLd + x_BLd
        else:
            xz, residual = self._input_with_drop(x_BLd, residual_BLd, keep_KB)
            return self._mix(xz), residual
        normal_BLd = F.layer_norm(joined_BLd, joined_BLd.shape[-1:], eps=NORM_EPS)
        weight, bias = self._folded_input()
        xz_BLhKE = F.linear(normal_BLd, weight.flatten(0, 2), bias.flatten()).unflatten(-1, weight.shape[:3])
        return self._mix(xz_BLhKE), joined_BLd * BLOCKS

    def _folded_input(self) -> tuple[Tensor, Tensor]:
        """Input product with each block's LayerNorm scale and shift folded in: the normalised input is shared."""
        weight_hKEd = self.in_proj_hKEd * self.norm_weight_Kd[:, None]
        bias_hKE = (self.in_proj_hKEd * self.norm_bias_Kd[:, None]).sum(-1)
        return weight_hKEd, bias_hKE

    def _input_with_drop(self, x_BLd: Tensor, residual_BLd: Tensor, keep_KB: Tensor) -> tuple[Tensor, Tensor]:
        """The input product when each block has its own stochastic depth, so its own residual."""
        weight_hKEd, bias_hKE = self._folded_input()
        parts, total = [], residual_BLd * BLOCKS
        for k in range(BLOCKS):
            kept_BLd = x_BLd * keep_KB[k].to(x_BLd.dtype)[:, None, None]
            total = total + kept_BLd
            joined_BLd = residual_BLd + kept_BLd
            normal_BLd = F.layer_norm(joined_BLd, joined_BLd.shape[-1:], eps=NORM_EPS)
            part = F.linear(normal_BLd, weight_hKEd[:, k].flatten(0, 1), bias_hKE[:, k].flatten())
            parts.append(part.unflatten(-1, (2, -1)))
        return torch.stack(parts, dim=3), total

    def _mix(self, xz_BLhKE: Tensor) -> Tensor:
        x_BLKE, z_BLKE = xz_BLhKE.unbind(2)
        y_BLKE = ops.bimamba_inner(
            x_BLKE,
            z_BLKE,
            self.conv_weight_RKEW,
            self.conv_bias_RKE,
            self.x_proj_RKPE,
            self.dt_proj_RKEr,
            self.dt_bias_RKE,
            self.A_log_RKEN,
            self.D_RKE,
        )
        return F.linear(y_BLKE.flatten(2), self.out_proj_dKE.flatten(1))
