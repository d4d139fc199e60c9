"""Numbers of states that the tensor-core scans do not have: states that are always zero make up for what is missing.

A state whose B and C are zero stays zero, adds nothing to an output, and neither do its gradients. So a mixer computes
the same with more states, and where kernels for these are faster it is given them. Two places round up, each
where it costs least:

- ``rounded``: before the operator, rows of zeros in the small weights that B and C come from, to the 8 or 16 states
  that the forward by tensor cores has.
- ``for_backward``: in the backward, columns of zeros in the saved projection, to the 16 states that the backward by
  tensor cores has. The forward before it keeps its number, since with 8 states it is faster than with 16.

dev/KERNEL-NOTES.md has the counts of instructions behind both, and what a card said.
``SSAMBA_STATES`` forbids either, for measurements (``environment.rounded_states``).
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops import dispatch, environment
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cuda import mixer, scan_backward
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.cuda.sources import MMA_TYPES
from ssamba.ops.mamba.params import MixerParams

FEW, STATES = 8, 16
"""Of the forward by tensor cores, and, 16 alone, of the backward."""


def forward_states(states: int) -> int:
    """The number of states that the forward computes ``states`` with, where tensor cores take the other sizes."""
    if "forward" not in environment.rounded_states() or states > STATES:
        return states
    return STATES if states > FEW else FEW


def rounded(x_BLKE: Tensor, params: MixerParams) -> MixerParams:
    """``params`` with the states that the forward by tensor cores has, if it takes x; or as they are.

    Only sizes and types decide, so that a traced graph and a run agree.
    """
    states = forward_states(params.states)
    if states == params.states or not _takes_sizes(x_BLKE, params):
        return params
    return _with_states(params, states)


def _takes_sizes(x_BLKE: Tensor, params: MixerParams) -> bool:
    """As ``scan_mma.usable``, without what only a run knows."""
    if not _has_cuda(x_BLKE) or x_BLKE.dtype not in MMA_TYPES or x_BLKE.shape[-1] % 16 or params.taps > 5:
        return False
    if "cuda" not in dispatch.gpu_backends().split(",") or environment.gpu_scan() == "triton":
        return False
    return params.rank % 4 == 0 and params.rank <= 64 and environment.lanes_per_channel() is None


def _has_cuda(x: Tensor) -> bool:
    return x.is_cuda and torch.version.cuda is not None


class ScanInputs(NamedTuple):
    """What the backward of a scan starts from, in the order of ``mixer.scan_backward``."""

    dy_BLKE: Tensor
    x_BLKE: Tensor
    z_BLKE: Tensor
    y_BLKE: Tensor
    p_GBLP: Tensor
    params: MixerParams
    dz_BLKE: Tensor


def for_backward(kernels: ModuleType, inputs: ScanInputs, alternating: bool) -> ScanInputs:
    """``inputs`` with 16 states where ``kernels`` then run on tensor cores and have fewer instructions; or as they are.

    Gradients of B, C and free decays come back with 16 states, too. Of ``x_proj`` only the shape is right.
    """
    params, p_GBLP = inputs.params, inputs.p_GBLP
    states, rank = params.states, params.rank
    if kernels is not mixer or states >= STATES or "backward" not in environment.rounded_states():
        return inputs
    wide = _with_rates(params, STATES - states)
    wide = wide._replace(x_proj_RKPE=params.x_proj_RKPE[:, :, :1].expand(-1, -1, rank + 2 * STATES, -1))
    tensors = {name.partition("_")[0]: t for name, t in inputs._asdict().items() if isinstance(t, Tensor)}
    if scan_backward.choose(Shape(inputs.x_BLKE, wide, alternating), tensors) is None:
        return inputs
    wide_GBLP = p_GBLP.new_empty(*p_GBLP.shape[:3], wide.outputs)
    gradients = dispatch.find_kernels("join_products", backends="triton") or naive
    gradients.spread_states(p_GBLP, wide_GBLP, rank)
    return inputs._replace(params=wide, p_GBLP=wide_GBLP)


def _with_states(params: MixerParams, states: int) -> MixerParams:
    """``params`` with more states, by rows of zeros behind those of B and of C."""
    rank, given, x_proj = params.rank, params.states, params.x_proj_RKPE
    dt, b, c = x_proj.split([rank, given, given], dim=2)
    zeros = x_proj.new_zeros(*x_proj.shape[:2], states - given, x_proj.shape[3])
    wide = params._replace(x_proj_RKPE=torch.cat([dt, b, zeros, c, zeros], dim=2))
    return _with_rates(wide, states - given)


def _with_rates(params: MixerParams, more: int) -> MixerParams:
    """Free decays get any rate for ``more`` states, which are zero; tied ones hold for every number of states.

    A single state's rate is that of tied ones: state 1 decays once as fast.
    """
    if params.A_log_RKEN.shape[-1] == 1:
        return params
    return params._replace(A_log_RKEN=F.pad(params.A_log_RKEN, (0, more)))
