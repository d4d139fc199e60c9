"""Two bidirectional Mamba blocks that read the same input: the unit that the SSAMBA encoder is a chain of.

The reference runs an even block on the sequence and an odd block on the reversed sequence and adds the results. Both
read the same input, and reversing the sequence around a block equals exchanging its directions. So a pair is one wide
step: one input product, four scans at once, one output product, no flip (REFERENCE.md, "Encoder").
Shape letters are those of ``ssamba.ops.mamba.naive``; d is the width, h is 2 for the halves x and z.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssamba import ops
from ssamba.models.config import Config
from ssamba.ops.mamba.naive import fold_norm

NORM_EPS = 1e-5
BLOCKS = 2
PART_TOKENS = 32768
"""Inference of more tokens goes through each pair in parts of at least so many, which are enough to fill a GPU."""
LATE_FROM, LATE_FROM_WIDE, NARROW = 16384, 65536, 192
"""Tokens from which on the scan runs without its gate where it can, and z is made after it: that takes a third less
memory and, up to this width, where gate and output are one pass, no more time. Wider models gain in long batches."""
LATE_TOKENS = 65536
"""Tokens of a part where the gate comes late: all channels of that many keep a GPU busy."""
DT_MIN, DT_MAX, DT_FLOOR = 0.001, 0.1, 1e-4


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


class Passed(NamedTuple):
    """What goes from pair to pair, (B, L, d) each."""

    x_BLd: Tensor
    """At first the tokens, then a pair's output, which has yet to join the stream; the stream's norm where ``joined``.
    """
    stream_BLd: Tensor | None = None
    """The residual stream, None at first. Until x joins it, its factor (``residual_scale``) is left out, too."""
    joined: bool = False
    """Whether the next pair's beginning is already done: x has joined the stream, and that is normalised."""


class BlockPair(nn.Module):
    """Parameters of two parallel blocks, stacked, and their common step.

    Direction 0 runs left to right; a model of one direction has only that. In the second block the official
    checkpoint's unsuffixed weights belong to direction 1: ``ssamba.models.pretrained.official`` does that exchange.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, e, n, r = config.width, config.inner, config.state_size, config.dt_rank
        lanes = (config.directions, BLOCKS)
        self.depth = config.depth
        self.residual_scale = config.residual_scale
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

    def forward(self, passed: Passed, keep_KB: Tensor | None = None, reuse: bool = False, join: bool = False) -> Passed:
        """One step: the blocks' summed output and the residual stream that it has yet to join.

        Each block adds x to its own copy of the residual, and the two are added after the pair: the stream doubles.
        That factor is left to whoever adds to the stream next, so the stream comes in and goes out undoubled.
        With a ``residual_scale`` of 1 the two are averaged instead.
        ``keep_KB`` scales x per block and clip as it joins the residual (stochastic depth); None keeps it whole.
        ``reuse`` lets the step write its results over x and the residual, in inference: then they are the chain's own.
        ``join`` allows it to do what the next pair begins with, where that costs it little.
        """
        x_BLd, residual_BLd, joined = passed
        if keep_KB is None or residual_BLd is None:
            if joined:
                assert residual_BLd is not None
                normal_BLd, stream_BLd = x_BLd, residual_BLd
            else:
                normal_BLd, stream_BLd = add_to_stream(x_BLd, residual_BLd, scale=self.residual_scale, reuse=reuse)
            batch, length = x_BLd.shape[:2]
            if not torch.is_grad_enabled():
                late_from = LATE_FROM if x_BLd.shape[2] <= NARROW else LATE_FROM_WIDE
                own = reuse or stream_BLd is not x_BLd  # and not the caller's tokens
                join = join and own and stream_BLd.is_contiguous()
                if batch * length >= late_from and self._step_gated_late(normal_BLd, stream_BLd, join):
                    return Passed(normal_BLd, stream_BLd, join)
                parts = min(batch, batch * length // PART_TOKENS)
                if parts > 1:
                    self._step_by_parts(normal_BLd, parts)
                    return Passed(normal_BLd, stream_BLd)
            xz_BLhKE = self._input(normal_BLd, *self._folded_input())
            del normal_BLd  # not needed by the mixer, which is where memory peaks
            return Passed(self._mix(xz_BLhKE), stream_BLd)
        assert not joined, "x must not join the stream before each block has scaled it"
        xz_BLhKE, stream_BLd = self._input_with_drop(x_BLd, residual_BLd, keep_KB)
        return Passed(self._mix(xz_BLhKE), stream_BLd)

    def _step_by_parts(self, normal_BLd: Tensor, parts: int) -> None:
        """The step of some clips after the other, each over its own input: the mixer's memory is that of one part."""
        weight, bias = self._folded_input()
        for clips_BLd in normal_BLd.tensor_split(parts):
            clips_BLd.copy_(self._mix(self._input(clips_BLd, weight, bias)))

    def _step_gated_late(self, normal_BLd: Tensor, stream_BLd: Tensor, join: bool) -> bool:
        """The step over its own input, with z made after the scan, part by part. False, and nothing done, if it cannot.

        The scan's projection takes the input's place meanwhile, so the norm is computed again from the stream.
        With ``join`` the stream becomes what the next pair adds up to, and its norm takes the output's place.
        """
        if not ops.runs_ungated(normal_BLd, self.A_log_RKEN):
            return False
        parts = max(1, normal_BLd.shape[0] * normal_BLd.shape[1] // LATE_TOKENS)
        pieces = (t.tensor_split(min(parts, t.shape[0])) for t in (normal_BLd, stream_BLd))
        weights = ops.ready_weights(
            self.in_proj_hKEd, self.norm_weight_Kd, self.norm_bias_Kd, self.out_proj_dKE, *self._mixer_parameters(),
            dtype=normal_BLd.dtype,
        )  # fmt: skip
        return all(self._gated_late(normal, stream, join, *weights) for normal, stream in zip(*pieces, strict=True))

    def _gated_late(
        self, normal_BLd: Tensor, stream_BLd: Tensor, join: bool, weight_hKEd: Tensor, bias_hKE: Tensor,
        out_proj_dKE: Tensor, *parameters: Tensor,
    ) -> bool:  # fmt: skip
        """``_step_gated_late`` of some clips, with the weights that ``ops.ready_weights`` made."""
        (weight_x, weight_z), (bias_x, bias_z) = (t.flatten(1, 2) for t in (weight_hKEd, bias_hKE))
        x_BLKE = F.linear(normal_BLd, weight_x, bias_x).unflatten(-1, (BLOCKS, -1))
        y_BLKE = ops.bimamba_ungated(x_BLKE, normal_BLd, *parameters)
        del x_BLKE
        if y_BLKE is None:
            return False
        y_TX, stream_Td, out_Td = y_BLKE.flatten(2).flatten(0, 1), stream_BLd.flatten(0, 1), normal_BLd.flatten(0, 1)
        scale = self.residual_scale if join else None
        ops.gated_output_(y_TX, stream_Td, weight_z, bias_z, out_proj_dKE.flatten(1), out_Td, NORM_EPS, scale)
        return True

    def _input(self, normal_BLd: Tensor, weight_hKEd: Tensor, bias_hKE: Tensor) -> Tensor:
        return F.linear(normal_BLd, weight_hKEd.flatten(0, 2), bias_hKE.flatten()).unflatten(-1, weight_hKEd.shape[:3])

    def _folded_input(self) -> tuple[Tensor, Tensor]:
        """Input product with each block's LayerNorm scale and shift folded in: the normalised input is shared."""
        return fold_norm(self.in_proj_hKEd, self.norm_weight_Kd, self.norm_bias_Kd)

    def _input_with_drop(self, x_BLd: Tensor, residual_BLd: Tensor, keep_KB: Tensor) -> tuple[Tensor, Tensor]:
        """The input product when each block has its own stochastic depth, so its own residual."""
        weight_hKEd, bias_hKE = self._folded_input()
        scale = self.residual_scale
        added = (add_to_stream(x_BLd, residual_BLd, keep_B, scale=scale) for keep_B in keep_KB)
        normal, streams = zip(*added, strict=True)
        # One product for each block, whose results lie as they are: the mixer takes x and z with any strides.
        normal_KTd = torch.stack(normal).flatten(1, 2)
        weight_KdX = weight_hKEd.permute(1, 3, 0, 2).flatten(2)
        bias_K1X = bias_hKE.transpose(0, 1).flatten(1)[:, None]
        xz_KTX = torch.baddbmm(bias_K1X, normal_KTd, weight_KdX)
        xz_KBLhE = xz_KTX.view(BLOCKS, *x_BLd.shape[:2], 2, -1)
        return xz_KBLhE.permute(1, 2, 3, 0, 4), sum(streams) / BLOCKS

    def _mix(self, xz_BLhKE: Tensor) -> Tensor:
        y_BLKE = ops.bimamba_inner_packed(xz_BLhKE, *self._mixer_parameters())
        del xz_BLhKE
        return F.linear(y_BLKE.flatten(2), self.out_proj_dKE.flatten(1))

    def _mixer_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """In the order of ``ops.bimamba_inner``."""
        return (
            self.conv_weight_RKEW,
            self.conv_bias_RKE,
            self.x_proj_RKPE,
            self.dt_proj_RKEr,
            self.dt_bias_RKE,
            self.A_log_RKEN,
            self.D_RKE,
        )


def add_to_stream(
    x_BLd: Tensor,
    residual_BLd: Tensor | None,
    keep_B: Tensor | None = None,
    weight_d: Tensor | None = None,
    bias_d: Tensor | None = None,
    scale: float = BLOCKS,
    reuse: bool = False,
) -> tuple[Tensor, Tensor]:
    """``stream = scale residual + keep x`` (2: the pair before doubles) and LayerNorm(stream), in reverse order.

    Without affine weights the norm has the dtype that the matrix product after it wants. ``reuse`` allows the stream to
    take the residual's place (without one, x's) and the norm x's, where that saves memory.
    """
    mixed = torch.is_autocast_enabled(x_BLd.device.type) and weight_d is None
    dtype = (
        torch.get_autocast_dtype(x_BLd.device.type)
        if mixed
        else (x_BLd if residual_BLd is None else residual_BLd).dtype
    )
    return ops.add_layer_norm(
        x_BLd,
        residual_BLd,
        weight_d,
        bias_d,
        eps=NORM_EPS,
        residual_scale=scale,
        x_scale_B=keep_B,
        out_dtype=dtype,
        reuse=reuse,
    )
