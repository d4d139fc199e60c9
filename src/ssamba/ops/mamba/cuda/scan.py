"""The scan in CUDA C++: forward, and backward from x, z and the projection p alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit import nvrtc
from ssamba.ops.jit.limits import SHARED_LIMIT, dynamic_limit
from ssamba.ops.mamba.cuda import scan_backward, scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape, arguments
from ssamba.ops.mamba.cuda.sources import unit
from ssamba.ops.mamba.params import MixerParams


def usable(x_BLKE: Tensor, params: MixerParams) -> bool:
    """Whether this form can run here; ``SSAMBA_GPU_SCAN=triton`` in the environment forbids it."""
    if not x_BLKE.is_cuda or environment.gpu_scan() == "triton" or x_BLKE.numel() == 0:
        return False
    shape = Shape(x_BLKE, params)
    if shape.batch * shape.blocks >= 65536 or shape.taps > 8 or shape.forward_shared() > SHARED_LIMIT:
        return False
    if x_BLKE.is_cuda and shape.backward_sizes(1)[1] > dynamic_limit(x_BLKE.device.index or 0):
        return False
    if shape.length * max(x_BLKE.stride(1), shape.blocks * shape.width, shape.outputs, 2 * shape.states) >= 2**31:
        return False  # offsets inside a clip are 32-bit
    return nvrtc.available(x_BLKE.device.index or 0)


def in_float32(*weights: Tensor) -> tuple[Tensor, ...]:
    """Small parameters in float32. Of 16 bits they are converted together: with short inputs launches count."""
    if any(w.dtype != weights[0].dtype for w in weights) or weights[0].dtype == torch.float32:
        return tuple(w.float() for w in weights)
    together = torch.cat([w.flatten() for w in weights]).float()
    parts = together.split([w.numel() for w in weights])
    return tuple(part.view(w.shape) for part, w in zip(parts, weights, strict=True))


def _forward(shape: Shape, tensors: dict[str, Tensor]) -> None:
    x = tensors["x"]
    if scan_mma.usable(shape, tensors):
        return scan_mma.forward(shape, tensors)
    chunks, per_channel = shape.chunks_of_lanes()
    passes = [(0, chunks)] if shape.directions == 1 else [(1, chunks), (2, chunks)]
    if chunks > 1:
        passes.insert(0, (3, shape.directions * chunks - 1))  # nothing comes after the last chunk
        tensors = tensors | scan_mma.chunk_ends(shape, chunks, x)
    args = arguments(shape, chunks, tensors)
    chunked = {"CHUNKED": 1} if chunks > 1 else {}
    across, clips, directions = shape.grid(128 // per_channel)
    with nvrtc.on(x):
        for phase, side_by_side in passes:
            # Long batches where a lane computes few of their steps: independent work to hide latencies behind.
            defines = shape.defines(
                LPC=per_channel, SPT=shape.padded // per_channel, WARPS=4, TT=32, PHASE=phase,
                BATCH=min(max(8, 4 * per_channel), 32), MIN_BLOCKS=3 if per_channel == 1 else 4,
                **chunked,
            )  # fmt: skip
            run = nvrtc.kernel(unit("scan_forward.cu"), "scan_forward", defines, x.device.index or 0)
            run((across, clips, directions * side_by_side), 128, args)


def sizes_of_states(shape: Shape) -> tuple[int, ...]:
    """Sizes ``GB.EN`` of the states before every ``shape.saved()`` steps, the last dimension padded."""
    return shape.dir_blocks, shape.batch, -(-shape.length // shape.saved()), shape.width, shape.padded


def _states(shape: Shape, tensors: dict[str, Tensor]) -> Tensor:
    """The states before every ``shape.saved()`` steps."""
    x, per_channel, steps = tensors["x"], shape.lanes_per_channel(), shape.saved()
    states = x.new_empty(sizes_of_states(shape))
    count = states.shape[2]
    if scan_backward.takes_states(shape, tensors):
        scan_mma.states(shape, tensors | {"ckpt": states})
        return states
    defines = shape.defines(
        LPC=per_channel, SPT=shape.padded // per_channel, WARPS=4, TT=32, CKPT=steps,
        BATCH=min(max(8, 2 * per_channel), steps), MIN_BLOCKS=3 if per_channel == 1 else 4,
    )  # fmt: skip
    with nvrtc.on(x):
        run = nvrtc.kernel(unit("scan_states.cu"), "scan_states", defines, x.device.index or 0)
        run(shape.grid(128 // per_channel), 128, arguments(shape, count, tensors | {"ckpt": states}))
    return states


def _parameters(params: MixerParams) -> dict[str, Tensor]:
    names = ("conv_w", "conv_b", "dt_proj", "dt_bias", "a_log", "skip")
    return {n: v.float() for n, v in zip(names, (*params[:2], *params[3:]), strict=True)}


def forward(
    x: Tensor, z: Tensor | None, p_GBLP: Tensor, params: MixerParams, alternating: bool = False,
    keep_states: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """``y_BLKE``. Without ``z`` there is no gate; then ``scan_mma.usable`` must hold.

    With ``keep_states``, where its kernel saves them on the way, also the states that ``backward`` would compute again.
    """
    shape = Shape(x, params, alternating)
    y = x.new_empty(shape.batch, shape.length, shape.blocks, shape.width)
    tensors = {"x": x, "p": p_GBLP, "y": y, **_parameters(params)}
    if shape.directions == 2:  # each scan stops in the middle, where the second phase goes on
        sizes = shape.dir_blocks, shape.batch, shape.width, shape.states
        tensors["state"] = x.new_empty(sizes, dtype=torch.float32)
    if z is not None:
        tensors["z"] = z
    keep_states = keep_states and scan_mma.forward_saves_states(scan_mma.choose_tiling(shape))
    if keep_states and scan_mma.takes_states(shape, tensors):
        tensors["ckpt"] = x.new_empty(sizes_of_states(shape))
    if z is None:
        scan_mma.forward(shape, tensors)
    else:
        _forward(shape, tensors)
    return y, tensors.get("ckpt")


def backward(
    dy: Tensor, x: Tensor, z: Tensor, p_GBLP: Tensor, y: Tensor, params: MixerParams, dz: Tensor,
    alternating: bool = False, token_sums: bool = False, states: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Writes ``dz``; returns ``du_GBLE``, raw ``ddt_GBLE``, and in parts that are to be added ``dBC_xGBL2N``,
    ``dA_log_xRKEN``, (dD, ddt_bias) ``_xRK2E`` and with ``token_sums`` the sums of ``dz``, ``_xKE``. ``y`` is what
    ``forward`` returned, ``states`` the states that it kept.
    """
    shape = Shape(x, params, alternating)
    dir_blocks, batch, length, width = shape.dir_blocks, shape.batch, shape.length, shape.width
    wide: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    tensors = {"x": x, "z": z, "p": p_GBLP, "dy": dy, "y": y, "dz": dz, **_parameters(params)}
    parts, shares, run = scan_backward.launch(shape, tensors, token_sums)
    tensors["ckpt"] = _states(shape, tensors) if states is None else states
    du, ddt = x.new_empty(dir_blocks, batch, length, width), x.new_empty(dir_blocks, batch, length, width)
    dbc = x.new_empty(parts, dir_blocks, batch, length, 2 * shape.states)
    da = torch.empty(shares, shape.directions, shape.blocks, width, shape.rates, **wide)
    dvec = torch.empty(shares, shape.directions, shape.blocks, 2 + token_sums, width, **wide)
    run(tensors | {"du": du, "ddt": ddt, "dbc": dbc, "da": da, "dvec": dvec})
    return du, ddt, dbc, da, dvec[..., :2, :], dvec[:, 0, :, 2] if token_sums else None
