"""The mixer with the scan in CUDA C++, which makes u and dt on the way: neither is ever in memory.

The same functions as ``ssamba.ops.mamba.triton.mixer``. The projection is CUDA C++ where that takes the shapes, else
Triton's.
"""

from __future__ import annotations

import math

from torch import Tensor

from ssamba.ops import dispatch
from ssamba.ops.mamba.cuda import conv, projection, scan, scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.params import MixerParams


def supports(x_BLKE: Tensor, params: MixerParams) -> str | None:
    """Why the scan cannot run on these tensors, or None."""
    if scan.usable(x_BLKE, params):
        return None
    return "the CUDA C++ scan takes neither this device nor sizes beyond its shared memory and offsets"


def forward(
    x_BLKE: Tensor, z_BLKE: Tensor | None, params: MixerParams, alternating: bool = False, keep_states: bool = False,
    work: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """See ``ssamba.ops.mamba.triton.mixer.forward``.

    Without ``z`` there is no gate; then ``supports_ungated`` must hold. The projection is written to ``work`` where it
    fits and CUDA C++ makes it.
    """
    params = _small_in_float32(params)
    weights = params.conv_weight_RKEW, params.conv_bias_RKE, params.x_proj_RKPE
    kernels = dispatch.kernels("conv_proj", x_BLKE, *weights)
    room_GBLP = _room(work, x_BLKE, params) if kernels is projection else None
    options = {} if room_GBLP is None else {"out": room_GBLP}
    p_GBLP = kernels.conv_proj(x_BLKE, *weights, alternating=alternating, **options)
    y_BLKE, states = scan.forward(x_BLKE, z_BLKE, p_GBLP, params, alternating, keep_states)
    return y_BLKE, p_GBLP, states


def _room(work: Tensor | None, x_BLKE: Tensor, params: MixerParams) -> Tensor | None:
    """``work`` as memory for ``p_GBLP``, at an address that every kernel reads as it reads fresh memory; or None."""
    if work is None or work.dtype != x_BLKE.dtype or not work.is_contiguous() or work.data_ptr() % 16:
        return None
    directions, blocks, outputs = params.x_proj_RKPE.shape[:3]
    sizes = directions * blocks, *x_BLKE.shape[:2], outputs
    count = math.prod(sizes)
    return work.view(-1)[:count].view(sizes) if work.numel() >= count else None


def supports_ungated(x_BLKE: Tensor, work: Tensor, params: MixerParams) -> bool:
    """Whether ``forward`` takes these tensors without a gate: that needs the scan by products of tensor cores."""
    if supports(x_BLKE, params) is not None or not projection.usable(
        x_BLKE, params.conv_weight_RKEW, params.x_proj_RKPE
    ):
        return False
    return scan_mma.usable(Shape(x_BLKE, params), {"x": x_BLKE, "p": work})


def scan_backward(
    dy_BLKE: Tensor,
    x_BLKE: Tensor,
    z_BLKE: Tensor,
    y_BLKE: Tensor,
    p_GBLP: Tensor,
    params: MixerParams,
    dz_BLKE: Tensor,
    alternating: bool = False,
    token_sums: bool = False,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """See ``ssamba.ops.mamba.triton.mixer.scan_backward``."""
    return scan.backward(dy_BLKE, x_BLKE, z_BLKE, p_GBLP, y_BLKE, params, dz_BLKE, alternating, token_sums, states)


def conv_backward(
    x_BLKE: Tensor, params: MixerParams, du_GBLE: Tensor, dx_BLKE: Tensor, alternating: bool = False,
    token_sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """See ``ssamba.ops.mamba.triton.mixer.conv_backward``."""
    weights = params.conv_weight_RKEW, params.conv_bias_RKE
    return conv.backward(x_BLKE, *weights, du_GBLE, dx_BLKE, alternating, token_sums)


def _small_in_float32(params: MixerParams) -> MixerParams:
    """All but ``x_proj``, whose products are in x's dtype, in float32."""
    first, second, *rest = scan.in_float32(*params[:2], *params[3:])
    return MixerParams(first, second, params.x_proj_RKPE, *rest)
