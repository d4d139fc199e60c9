"""Numbers of states that the tensor-core scans do not have: states that are always zero make up for what is missing.

A state whose B and C are zero stays zero, adds nothing to an output, and neither do its gradients. So a mixer computes
the same with more states, and where kernels for these are faster it is given them. Two places round up, each
where it costs least:

- ``rounded``: before the operator, rows of zeros in the small weights that B and C come from, to the 8 or 16 states
  that the forward by tensor cores has.
- ``for_backward``: in the backward, columns of zeros in the saved projection, to the 16 states that the backward by
  tensor cores has. The forward before it keeps its number, since with 8 states it is faster than with 16.

dev/KERNEL-NOTES.md has the counts of instructions behind ``forward_states`` and ``MAX_IN_LANES``.
``SSAMBA_STATES`` forbids either, for measurements (``environment.rounded_states``).
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ssamba.ops import dispatch, environment
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cuda import mixer, scan_backward
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.params import MixerParams

STATES = 16
"""Of the backward by tensor cores."""
MAX_IN_LANES = 4
"""States up to which the other backward takes no more instructions than that of 16 states by tensor cores."""


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
    if kernels is not mixer or not MAX_IN_LANES < states < STATES or "backward" not in environment.rounded_states():
        return inputs
    wide = _with_rates(params, STATES)
    wide = wide._replace(x_proj_RKPE=params.x_proj_RKPE[:, :, :1].expand(-1, -1, rank + 2 * STATES, -1))
    found = inputs._replace(params=wide, p_GBLP=p_GBLP.new_empty(*p_GBLP.shape[:3], wide.outputs))
    tensors = {name.partition("_")[0]: t for name, t in found._asdict().items() if isinstance(t, Tensor)}
    if not _on_tensor_cores(Shape(inputs.x_BLKE, wide, alternating), tensors):
        return inputs
    gradients = dispatch.find_kernels("join_products", backends="triton") or naive
    gradients.spread_states(p_GBLP, found.p_GBLP, rank)
    return found


def _on_tensor_cores(shape: Shape, tensors: dict[str, Tensor]) -> bool:
    return scan_backward.choose(shape, tensors) is not None


def _with_rates(params: MixerParams, states: int) -> MixerParams:
    """Free decays get any rate for the states that are zero; tied ones hold for every number of them."""
    more = states - params.states
    if params.tied or params.A_log_RKEN.shape[-1] == 1:
        return params
    return params._replace(A_log_RKEN=F.pad(params.A_log_RKEN, (0, more)))
