"""``bimamba_inner`` without a gradient: the same kernels over parts of the input, through buffers that stay small.

Only the scan needs all steps in order. Everything before it is made for ``PART_TOKENS`` tokens at a time, in a work
area that each thread keeps for its next part and its next call: beyond the result, memory does not grow with the
length. Fresh memory would cost more than the work on it, since the system clears each page at its first touch.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.ops.linear_layer import cpu as linear_layer
from ssamba.ops.mamba.cpu import launch, layout
from ssamba.ops.mamba.cpu.launch import ScanInputs
from ssamba.ops.mamba.params import MixerParams
from ssamba.utils.torch_defaults import HOST_FLOAT32

PART_TOKENS = 1024
"""Tokens of a part: enough that starting the kernels costs little, and a part stays in the level-3 cache."""
_of_thread = threading.local()


class Weights(NamedTuple):
    """Parameters in float32, as the kernels and the matrix products read them. Shapes: ``naive``'s legend."""

    conv_RKWE: Tensor
    conv_bias_RKE: Tensor
    x_proj_RKEP: Tensor
    dt_proj_RKrE: Tensor
    dt_bias_RKE: Tensor
    A_RKEN: Tensor
    D_RKE: Tensor

    @property
    def states(self) -> int:
        """N, which the rates of tied decays do not say."""
        return (self.x_proj_RKEP.shape[3] - self.dt_proj_RKrE.shape[2]) // 2

    @classmethod
    def of(cls, params: MixerParams) -> Weights:
        """The same parameters, converted."""
        return cls(
            launch.taps_first(params.conv_weight_RKEW.float()),
            params.conv_bias_RKE.float().contiguous(),
            params.x_proj_RKPE.float().transpose(2, 3),
            params.dt_proj_RKEr.float().transpose(2, 3),
            params.dt_bias_RKE.float().contiguous(),
            -torch.exp(params.A_log_RKEN.float()).contiguous(),
            params.D_RKE.float().contiguous(),
        )


def release_work_area() -> None:
    """Frees the memory that this thread keeps between calls."""
    _of_thread.area = None


def _work_area(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Contiguous float32 tensors of those shapes, uninitialised, in this thread's work area, which grows as needed."""
    sizes = [-(-math.prod(shape) // 16) * 16 for shape in shapes]
    area = getattr(_of_thread, "area", None)
    if area is None or area.numel() < sum(sizes):
        with torch.inference_mode(False):  # made in inference mode, it could not be written to outside of it
            area = _of_thread.area = torch.empty(sum(sizes), **HOST_FLOAT32)
    places = area[: sum(sizes)].split(sizes)
    return [place[: math.prod(shape)].view(shape) for place, shape in zip(places, shapes, strict=True)]


def _scan_inputs(
    x_BLKE: Tensor, w: Weights, r_from: int, r_to: int, backwards: int, cut: tuple[int, int] = (0, 0)
) -> ScanInputs:
    """What the scan of directions r_from to r_to - 1 reads; ``cut``: rows at x's ends that only the taps need.

    u, dt, B and C live in the work area: the next call overwrites them.
    """
    batch, length, blocks, channels = x_BLKE.shape
    rank, outputs = w.dt_proj_RKrE.shape[2], w.x_proj_RKEP.shape[3]
    matrices, tokens = (r_to - r_from) * blocks, batch * length
    u_GTE, dt_GTE, p_GTP = _work_area([(matrices, tokens, n) for n in (channels, channels, outputs)])

    def by_token(x_GTn: Tensor) -> Tensor:
        return x_GTn.view(r_to - r_from, blocks, batch, length, x_GTn.shape[2]).permute(2, 3, 0, 1, 4)

    launch.conv_forward(x_BLKE, w.conv_RKWE, w.conv_bias_RKE, by_token(u_GTE), (r_from, r_to), backwards)
    linear_layer.batched_linear(u_GTE, w.x_proj_RKEP[r_from:r_to].flatten(0, 1).transpose(1, 2), out_GTm=p_GTP)
    torch.bmm(p_GTP[..., :rank], w.dt_proj_RKrE[r_from:r_to].flatten(0, 1), out=dt_GTE)
    p_BLRKP, kept = by_token(p_GTP), slice(cut[0], length - cut[1])
    _, B, C = p_BLRKP.split([rank, w.states, w.states], dim=-1)
    u, dt, B, C = (x[:, kept] for x in (by_token(u_GTE), by_token(dt_GTE), B, C))
    return ScanInputs(u, dt, w.A_RKEN, B, C, w.D_RKE, w.dt_bias_RKE)


def bimamba(
    x_BLKE: Tensor, z_BLKE: Tensor, weights: Weights, part_tokens: int = PART_TOKENS, alternating: bool = False
) -> Tensor:
    """Returns ``y_BLKE`` in x's dtype, made in parts of ``part_tokens`` tokens."""
    batch, length, blocks, channels = x_BLKE.shape
    y_BLKE = torch.empty((batch, length, blocks, channels), **HOST_FLOAT32)
    if length > part_tokens:
        for b in range(batch):
            clip = slice(b, b + 1)
            for k in range(blocks) if alternating else ():  # their parts follow one another in different orders
                one, of_block = slice(k, k + 1), Weights(*(w[:, k : k + 1] for w in weights))
                _long(x_BLKE[clip, :, one], z_BLKE[clip, :, one], y_BLKE[clip, :, one], of_block, part_tokens, k % 2)
            if not alternating:
                _long(x_BLKE[clip], z_BLKE[clip], y_BLKE[clip], weights, part_tokens)
        return y_BLKE.to(x_BLKE.dtype)
    directions, clips = weights.A_RKEN.shape[0], max(1, part_tokens // max(1, length))
    backwards = layout.backwards(blocks, alternating)
    for b in range(0, batch, clips):
        part = slice(b, b + clips)
        inputs = _scan_inputs(launch.rows(x_BLKE[part]), weights, 0, directions, backwards)
        launch.scan_forward(inputs, launch.rows(z_BLKE[part]), y_BLKE[part], None, backwards)
    return y_BLKE.to(x_BLKE.dtype)


def _long(
    x_1LKE: Tensor, z_1LKE: Tensor, y_1LKE: Tensor, weights: Weights, part_tokens: int, backwards: int = 0
) -> None:
    """One long clip: direction 0 over the parts from the left, then direction 1 from the right, states carried over.

    With ``backwards`` 1 its only direction runs from the right, in its only block.
    """
    length, blocks, channels = x_1LKE.shape[1:]
    directions, halo = weights.A_RKEN.shape[0], weights.conv_RKWE.shape[2] - 1
    carry_shape = launch.carry_shape(1, blocks, channels, weights.states)
    starts = list(range(0, length, part_tokens))
    for r in range(directions):
        carry = torch.zeros(carry_shape, **HOST_FLOAT32)
        to_right = r == 0 and not backwards
        for start in starts if to_right else reversed(starts):
            stop = min(start + part_tokens, length)
            # the taps reach back in the direction of the scan, out of the part
            cut = (min(halo, start), 0) if to_right else (0, min(halo, length - stop))
            x = launch.rows(x_1LKE[:, start - cut[0] : stop + cut[1]])
            inputs = _scan_inputs(x, weights, r, r + 1, backwards, cut)
            z, y = launch.rows(z_1LKE[:, start:stop]), y_1LKE[:, start:stop]
            launch.scan_part(inputs, z, y, r, carry, backwards)
