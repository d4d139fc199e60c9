"""The scan in CUDA C++ (source in ``nvrtc_source``): forward, and backward from x, z and the projection p alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

import torch
from torch import Tensor

from ssamba.ops import nvrtc
from ssamba.ops.nvrtc_forward import FORWARD
from ssamba.ops.nvrtc_source import BACKWARD, COMMON

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SHARED_LIMIT = 48 * 1024
_ENOUGH_WARPS = 1400  # a good two for each scheduler of 132 multiprocessors
_POINTERS = ("x z p dy y dz du ddt dbc conv_w conv_b dt_proj dt_bias a_log skip state ckpt da dvec").split()
_STRIDES = "xb xt xk zb zt zk dzb dzt dzk".split()
_SIZES = "B L K E R count".split()


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
        self.kind = _KINDS[x_BLKE.dtype]

    def forward_lanes(self) -> int:
        """Lanes that share a channel's states: few cost fewer instructions, many give more warps to fill the chip."""
        lanes = max(1, self.padded // 16)
        channels = self.lanes * self.batch * self.width
        while lanes < min(8, self.padded) and channels * lanes / 32 < _ENOUGH_WARPS:
            lanes *= 2
        return int(os.environ.get("SSAMBA_LPC", "0")) or lanes

    def backward_cut(self) -> tuple[int, int, int]:
        return self._cut(2, 256, 16 if self.padded <= 16 else 8)

    def _cut(self, per_thread: int, threads: int, steps: int) -> tuple[int, int, int]:
        per_thread = max(min(per_thread, self.padded), self.padded // 32)
        lanes_per_channel = self.padded // per_thread
        return per_thread, min(32, threads // lanes_per_channel), steps

    def defines(self, **more: int) -> tuple[str, ...]:
        values = {
            "DTYPE": self.kind, "N": self.states, "NP": self.padded, "P": self.outputs, "RANK": self.rank, "W": self.taps,
        }  # fmt: skip
        return tuple(f"{name}={value}" for name, value in (values | more).items())

    def tiles(self, steps: int) -> int:
        half = self.length if self.directions == 1 else (self.length + 1) // 2
        return -(-half // steps) + -(-(self.length - half) // steps)

    def shared(self) -> int:
        """Bytes of shared memory that the larger kernel takes, roughly and from above."""
        per_thread, channels, steps = self.backward_cut()
        warps = max(1, channels * (self.padded // per_thread) // 32)
        floats = (steps + self.taps - 1) * channels + (self.rank + 4) * (steps + channels + 4) + steps * 2 * self.padded
        backward = floats + steps * channels * 6 + warps * (steps * 2 * self.padded + 64)
        channels = 128 // self.forward_lanes()
        forward = 64 * (self.rank + 24) + 128 * self.padded + (self.rank + 16) * channels + 16 * channels
        return 4 * max(backward, forward)

    def grid(self, channels: int) -> tuple[int, int, int]:
        return -(-self.width // channels), self.batch * self.blocks, self.directions


def usable(x_BLKE: Tensor, a_log_RKEN: Tensor, taps: int, outputs: int) -> bool:
    """Whether this form can run here; ``SSAMBA_GPU_SCAN=triton`` in the environment forbids it."""
    if not x_BLKE.is_cuda or os.environ.get("SSAMBA_GPU_SCAN") == "triton" or x_BLKE.numel() == 0:
        return False
    shape = _Shape(x_BLKE, a_log_RKEN, taps, outputs)
    if shape.batch * shape.blocks >= 65536 or taps > 8 or shape.shared() > _SHARED_LIMIT:
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


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _forward(shape: _Shape, tensors: dict[str, Tensor], grad: bool) -> None:
    x = tensors["x"]
    per_channel, steps = shape.forward_lanes(), shape.backward_cut()[2]
    args = _arguments(shape, shape.tiles(steps), tensors)
    with _on(x):
        for phase in (0,) if shape.directions == 1 else (1, 2):
            defines = shape.defines(
                LPC=per_channel, SPT=shape.padded // per_channel, PHASE=phase, GRAD=int(grad), CKPT=steps, MIN_BLOCKS=int(os.environ.get("SSAMBA_MB", "4"))
            )
            run = nvrtc.kernel(COMMON + FORWARD, "scan_forward", defines, x.device.index or 0)
            run(shape.grid(128 // per_channel), 128, args)


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
    _forward(shape, {"x": x, "z": z, "p": p_GBLP, "y": y, "state": state, **_parameters(*parameters)}, grad=False)
    return y


def backward(
    dy: Tensor, x: Tensor, z: Tensor, p_GBLP: Tensor, *parameters: Tensor, dz: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Writes ``dz``; returns ``du_GBLE``, raw ``ddt_GBLE``, ``dBC_GBL2N``, ``dA_log_RKEN`` and (dD, ddt_bias) ``_2RKE``."""
    shape = _Shape(x, parameters[4], parameters[0].shape[-1], p_GBLP.shape[-1])
    cut = shape.backward_cut()
    lanes, batch, length, width, states = shape.lanes, shape.batch, shape.length, shape.width, shape.states
    count, grid = shape.tiles(cut[2]), shape.grid(cut[1])
    wide: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    tensors = {"x": x, "z": z, "p": p_GBLP, "dy": dy, "dz": dz, **_parameters(*parameters)}
    tensors["ckpt"] = torch.empty(lanes, batch, count, width, states, **wide)
    raw = x.new_empty(batch, length, shape.blocks, width)
    state = torch.empty(lanes, batch, width, states, **wide)
    _forward(shape, {**tensors, "y": raw, "state": state}, grad=True)
    del raw, state
    du, ddt = x.new_empty(lanes, batch, length, width), x.new_empty(lanes, batch, length, width)
    dbc = x.new_empty(grid[0], lanes, batch, length, 2 * states)
    da = torch.empty(batch, shape.directions, shape.blocks, width, states, **wide)
    dvec = torch.empty(batch, shape.directions, shape.blocks, 2, width, **wide)
    tensors |= {"du": du, "ddt": ddt, "dbc": dbc, "da": da, "dvec": dvec}
    threads = cut[1] * (shape.padded // cut[0])
    with _on(x):
        defines = shape.defines(
            SPT=cut[0], LPC=shape.padded // cut[0], CB=cut[1], TT=cut[2], MIN_BLOCKS=max(1, 512 // threads)
        )
        run = nvrtc.kernel(COMMON + BACKWARD, "scan_backward", defines, x.device.index or 0)
        run(grid, threads, _arguments(shape, count, tensors))
    return du, ddt, dbc.sum(0), da.sum(0), dvec.sum(0).permute(2, 0, 1, 3)
