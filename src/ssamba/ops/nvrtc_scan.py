"""The scan in CUDA C++ (source in ``nvrtc_source``): forward, and backward from x, z and the projection p alone."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import Tensor

from ssamba.ops import nvrtc
from ssamba.ops.nvrtc_backward import BACKWARD
from ssamba.ops.nvrtc_backward_lanes import LANES_BACKWARD
from ssamba.ops.nvrtc_forward import FORWARD, TILES
from ssamba.ops.nvrtc_source import COMMON, KINDS
from ssamba.ops.nvrtc_states import STATES

_SHARED_LIMIT = 48 * 1024
_ENOUGH_WARPS = 1400  # a good two for each scheduler of 132 multiprocessors
_POINTERS = (
    *("x", "z", "p", "dy", "y", "dz", "du", "ddt", "dbc", "conv_w", "conv_b", "dt_proj", "dt_bias", "a_log", "skip"),
    *("state", "ckpt", "da", "dvec"),
)
_STRIDES = ["xb", "xt", "xk", "zb", "zt", "zk", "dzb", "dzt", "dzk"]
_SIZES = ["B", "L", "K", "E", "R", "count"]


class _Args(ctypes.Structure):
    """``struct Args`` of the source, field for field."""

    _fields_ = (
        [(n, ctypes.c_void_p) for n in _POINTERS]
        + [(n, ctypes.c_longlong) for n in _STRIDES]
        + [(n, ctypes.c_int) for n in _SIZES]
    )


class _Shape:
    """Sizes of a call and how they are cut: states of a thread, channels of a block, steps of a tile."""

    def __init__(self, x_BLKE: Tensor, a_log_RKEN: Tensor, taps: int, outputs: int) -> None:
        self.batch, self.length, self.blocks, self.width = x_BLKE.shape
        self.directions, self.states = a_log_RKEN.shape[0], a_log_RKEN.shape[-1]
        self.taps, self.outputs, self.rank = taps, outputs, outputs - 2 * self.states
        self.padded = 1 << (self.states - 1).bit_length()
        self.lanes = self.directions * self.blocks
        self.kind = KINDS[x_BLKE.dtype]

    def lanes_per_channel(self) -> int:
        """Lanes that share a channel's states: few cost fewer instructions, many give more warps to fill the chip."""
        lanes = max(1, self.padded // 16)
        forced = int(os.environ.get("SSAMBA_LPC", "0"))  # for measurements
        if lanes <= forced <= min(32, self.padded):
            return forced
        channels = self.lanes * self.batch * self.width
        while lanes < min(8, self.padded) and channels * lanes / 32 < _ENOUGH_WARPS:
            lanes *= 2
        return lanes

    def lane_is_channel(self) -> bool:
        """Whether ``nvrtc_backward_lanes`` serves."""
        return self.kind != 0 and self.padded == 16 and self.lanes_per_channel() == 1

    def tile(self) -> int:
        """Steps of a tile of the backward."""
        return 16 if self.kind else 8

    def saved(self) -> int:
        """Steps between saved states: as many as the backward's history in shared memory has."""
        return 8 if self.lane_is_channel() else self.tile()

    def defines(self, **more: int) -> tuple[str, ...]:
        values = {
            "DTYPE": self.kind, "N": self.states, "NP": self.padded, "P": self.outputs, "RANK": self.rank, "W":
            self.taps,
        }  # fmt: skip
        return tuple(f"{name}={value}" for name, value in (values | more).items())

    def _low(self) -> tuple[int, int, bool]:
        """Rank rounded up to products of 16, the row of low-rank dt in bytes, and whether tensor cores expand it."""
        cores = self.kind != 0 and self.outputs % 2 == 0
        steps = -(-self.rank // 16)
        return steps, (steps * 16 + 8) * (2 if cores else 4), cores

    def _weights(self, channels: int) -> int:
        """Bytes of one warp's dt_proj."""
        steps, _, cores = self._low()
        return steps * -(-channels // 8) * 256 if cores else (self.rank * channels * 4 + 15) // 16 * 16

    def forward_shared(self) -> int:
        channels = 32 // self.lanes_per_channel()
        return 64 * self._low()[1] + 512 * self.padded + 4 * (self._weights(channels) + 128 * channels)

    def backward_sizes(self, warps: int) -> tuple[dict[str, int], int]:
        """The macros that place the backward's arrays in shared memory, and its bytes."""
        lanes, tile = self.lanes_per_channel(), self.tile()
        channels, per_thread, low = 32 // lanes, self.padded // lanes, 2 * 16 * self._low()[1]
        if self.lane_is_channel():
            own = self._weights(channels) + 8 * tile * channels + (self.saved() + 1) * 1024
            sizes = {"LOW_BYTES": low, "WEIGHT_BYTES": self._weights(channels), "OWN_BYTES": own}
            return sizes, low + 16 * tile * self.padded + warps * own
        words = per_thread // 2 if self.kind and per_thread % 2 == 0 else per_thread
        row = max(words * 128, 8 * self.padded)
        own = self._weights(channels) + 4 * (16 + 2 * tile) * channels + tile * row
        sizes = {"LOW_BYTES": low, "WEIGHT_BYTES": self._weights(channels), "OWN_BYTES": own}
        return sizes, low + 16 * tile * self.padded + warps * own

    def grid(self, channels: int) -> tuple[int, int, int]:
        return -(-self.width // channels), self.batch * self.blocks, self.directions


def _dynamic_limit(device: int) -> int:
    """Shared memory that one block may ask for, in bytes."""
    found = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return int(found) or _SHARED_LIMIT


def usable(x_BLKE: Tensor, a_log_RKEN: Tensor, taps: int, outputs: int) -> bool:
    """Whether this form can run here; ``SSAMBA_GPU_SCAN=triton`` in the environment forbids it."""
    if not x_BLKE.is_cuda or os.environ.get("SSAMBA_GPU_SCAN") == "triton" or x_BLKE.numel() == 0:
        return False
    shape = _Shape(x_BLKE, a_log_RKEN, taps, outputs)
    if shape.batch * shape.blocks >= 65536 or taps > 8 or shape.forward_shared() > _SHARED_LIMIT:
        return False
    if x_BLKE.is_cuda and shape.backward_sizes(1)[1] > _dynamic_limit(x_BLKE.device.index or 0):
        return False
    if shape.length * max(x_BLKE.stride(1), shape.blocks * shape.width, shape.outputs, 2 * shape.states) >= 2**31:
        return False  # offsets inside a clip are 32-bit
    return nvrtc.available(x_BLKE.device.index or 0)


def _arguments(shape: _Shape, count: int, tensors: dict[str, Tensor]) -> _Args:
    args = _Args()
    for name, tensor in tensors.items():
        setattr(args, name, tensor.data_ptr())
    for name in ("x", "z", "dz"):
        if name in tensors:
            for axis, stride in zip("btk", tensors[name].stride()[:3], strict=True):
                setattr(args, name + axis, stride)
    args.B, args.L, args.K, args.E = shape.batch, shape.length, shape.blocks, shape.width
    args.R, args.count = shape.directions, count
    return args


def _forward(shape: _Shape, tensors: dict[str, Tensor]) -> None:
    x = tensors["x"]
    per_channel = shape.lanes_per_channel()
    args = _arguments(shape, 0, tensors)
    with nvrtc.on(x):
        for phase in (0,) if shape.directions == 1 else (1, 2):
            # Long batches where a lane computes few of their steps: independent work to hide latencies behind.
            defines = shape.defines(
                LPC=per_channel, SPT=shape.padded // per_channel, WARPS=4, TT=32, PHASE=phase,
                BATCH=min(max(8, 4 * per_channel), 32), MIN_BLOCKS=3 if per_channel == 1 else 4,
            )  # fmt: skip
            run = nvrtc.kernel(COMMON + TILES + FORWARD, "scan_forward", defines, x.device.index or 0)
            run(shape.grid(128 // per_channel), 128, args)


def _states(shape: _Shape, tensors: dict[str, Tensor]) -> Tensor:
    """``_GB.EN``, the state before every ``shape.saved()`` steps, its last dimension padded."""
    x, per_channel, steps = tensors["x"], shape.lanes_per_channel(), shape.saved()
    count = -(-shape.length // steps)
    states = x.new_empty(shape.lanes, shape.batch, count, shape.width, shape.padded)
    defines = shape.defines(
        LPC=per_channel, SPT=shape.padded // per_channel, WARPS=4, TT=32, CKPT=steps,
        BATCH=min(max(8, 2 * per_channel), steps), MIN_BLOCKS=3 if per_channel == 1 else 4,
    )  # fmt: skip
    with nvrtc.on(x):
        run = nvrtc.kernel(COMMON + TILES + STATES, "scan_states", defines, x.device.index or 0)
        run(shape.grid(128 // per_channel), 128, _arguments(shape, count, tensors | {"ckpt": states}))
    return states


def _parameters(
    conv_weight: Tensor, conv_bias: Tensor, dt_proj: Tensor, dt_bias: Tensor, a_log: Tensor, skip: Tensor
) -> dict[str, Tensor]:
    names = ("conv_w", "conv_b", "dt_proj", "dt_bias", "a_log", "skip")
    values = (conv_weight, conv_bias, dt_proj, dt_bias, a_log, skip)
    return {n: v.float() for n, v in zip(names, values, strict=True)}


def forward(x: Tensor, z: Tensor, p_GBLP: Tensor, *parameters: Tensor) -> Tensor:
    """``y_BLKE``. ``parameters``: conv weight and bias, dt_proj, dt_bias, A_log, D."""
    shape = _Shape(x, parameters[4], parameters[0].shape[-1], p_GBLP.shape[-1])
    y = x.new_empty(shape.batch, shape.length, shape.blocks, shape.width)
    state = x.new_empty(shape.lanes, shape.batch, shape.width, shape.states, dtype=torch.float32)
    _forward(shape, {"x": x, "z": z, "p": p_GBLP, "y": y, "state": state, **_parameters(*parameters)})
    return y


def backward(
    dy: Tensor, x: Tensor, z: Tensor, p_GBLP: Tensor, y: Tensor, *parameters: Tensor, dz: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Writes ``dz``; returns ``du_GBLE``, raw ``ddt_GBLE``, ``dBC_GBL2N``, ``dA_log_RKEN`` and (dD, ddt_bias)
    ``_2RKE``. ``y`` is what ``forward`` returned.
    """
    shape = _Shape(x, parameters[4], parameters[0].shape[-1], p_GBLP.shape[-1])
    per_channel, fast = shape.lanes_per_channel(), shape.lane_is_channel()
    warps = 4
    if x.is_cuda:
        while warps > 1 and shape.backward_sizes(warps)[1] > _dynamic_limit(x.device.index or 0):
            warps //= 2
    sizes, shared = shape.backward_sizes(warps)
    lanes, batch, length, width, states = shape.lanes, shape.batch, shape.length, shape.width, shape.states
    grid = shape.grid(warps * 32 // per_channel)
    wide: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    tensors = {"x": x, "z": z, "p": p_GBLP, "dy": dy, "y": y, "dz": dz, **_parameters(*parameters)}
    tensors["ckpt"] = _states(shape, tensors)
    du, ddt = x.new_empty(lanes, batch, length, width), x.new_empty(lanes, batch, length, width)
    dbc = x.new_empty(grid[0], lanes, batch, length, 2 * states)
    da = torch.empty(batch, shape.directions, shape.blocks, width, states, **wide)
    dvec = torch.empty(batch, shape.directions, shape.blocks, 2, width, **wide)
    tensors |= {"du": du, "ddt": ddt, "dbc": dbc, "da": da, "dvec": dvec}
    with nvrtc.on(x):
        defines = shape.defines(
            LPC=per_channel, SPT=shape.padded // per_channel, WARPS=warps, TT=shape.tile(),
            MIN_BLOCKS=3 if fast else 2, **sizes,
        )  # fmt: skip
        source = COMMON + TILES + (LANES_BACKWARD if fast else BACKWARD)
        run = nvrtc.kernel(source, "scan_backward", defines, x.device.index or 0)
        run(grid, warps * 32, _arguments(shape, tensors["ckpt"].shape[2], tensors), shared)
    return du, ddt, dbc.sum(0), da.sum(0), dvec.sum(0).permute(2, 0, 1, 3)
