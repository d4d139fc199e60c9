"""Sizes of one call of the CUDA C++ scan, how they are distributed over threads, and the argument of its kernels."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit.limits import SHARED_LIMIT
from ssamba.ops.mamba.cuda.kernel_args import SCAN_ARGS
from ssamba.ops.mamba.cuda.sources import DTYPE_CODES, defines
from ssamba.ops.mamba.params import MixerParams

_ENOUGH_WARPS = 1400  # more than two for each scheduler of 132 multiprocessors
_CHUNKED_WARPS = 1584  # three blocks of four warps for each multiprocessor
_MIN_CHUNKS, _MAX_CHUNKS, _MIN_CHUNK_STEPS = 4, 32, 64  # of the forward with states in lanes


class Shape:
    """Sizes of a call and their distribution: states of a thread, channels of a block, steps of a tile."""

    def __init__(self, x_BLKE: Tensor, params: MixerParams, alternating: bool = False) -> None:
        self.batch, self.length, self.blocks, self.width = x_BLKE.shape
        self.directions, self.states, self.rank = params.directions, params.states, params.rank
        self.taps, self.outputs = params.taps, params.outputs
        self.tied, self.alternating = params.tied, alternating
        self.rates = 1 if self.tied else self.states  # of a channel
        self.padded = 1 << (self.states - 1).bit_length()
        self.dir_blocks = self.directions * self.blocks
        self.kind = DTYPE_CODES[x_BLKE.dtype]

    def lanes_per_channel(self) -> int:
        """Lanes that share a channel's states: few cost fewer instructions, many give more warps to fill the chip."""
        lanes = max(1, self.padded // 16)
        forced = environment.lanes_per_channel()
        if forced is not None and lanes <= forced <= min(32, self.padded):
            return forced
        channels = self.dir_blocks * self.batch * self.width
        while lanes < min(8, self.padded) and channels * lanes / 32 < _ENOUGH_WARPS:
            lanes *= 2
        return lanes

    def chunks_of_lanes(self) -> tuple[int, int]:
        """Chunks of each half of the time that the forward with states in lanes computes in parallel, and the lanes.

        Where few channels are to fill the chip, chunks give more warps with one lane a channel, which takes half of
        the instructions of eight. 1, and ``lanes_per_channel``, where that does not pay or lanes are asked for.
        """
        lanes, forced = max(1, self.padded // 16), environment.scan_tiling().get("chunks")
        while lanes < min(8, self.padded) and self.forward_shared(lanes) > SHARED_LIMIT:
            lanes *= 2
        warps = max(1, self.dir_blocks * self.batch * self.width * lanes // 32)
        chunks = min(_MAX_CHUNKS, -(-_CHUNKED_WARPS // warps), self.length // (self.directions * _MIN_CHUNK_STEPS))
        if environment.lanes_per_channel() is not None:
            chunks, lanes = 1, self.lanes_per_channel()
        if forced is not None:
            return (forced, lanes) if forced > 1 else (1, self.lanes_per_channel())
        return (chunks, lanes) if chunks >= _MIN_CHUNKS else (1, self.lanes_per_channel())

    def lane_is_channel(self) -> bool:
        """Whether kernels/scan_backward_lanes.cu takes this shape."""
        return self.kind != 0 and self.padded == 16 and self.lanes_per_channel() == 1

    def fills(self, channels: int) -> bool:
        """Whether blocks of this number of channels leave no lane idle; the newer forms have a shorter loop then."""
        return (self.tied or self.alternating) and self.lane_is_channel() and self.width % channels == 0

    def tile(self) -> int:
        """Steps of a tile of the backward."""
        return 16 if self.kind else 8

    def saved(self) -> int:
        """Steps between saved states: as many as the backward's history in shared memory has."""
        return 8 if self.lane_is_channel() else self.tile()

    def defines(self, **more: int) -> tuple[str, ...]:
        """The macros that every form of the scan reads, and ``more``."""
        return defines(
            DTYPE=self.kind,
            N=self.states,
            NP=self.padded,
            P=self.outputs,
            RANK=self.rank,
            W=self.taps,
            TIED=int(self.tied),
            ALTERNATING=int(self.alternating),
            **more,
        )

    def _low(self) -> tuple[int, int, bool]:
        """Rank rounded up to products of 16, the row of low-rank dt in bytes, and whether tensor cores expand it."""
        cores = self.kind != 0 and self.outputs % 2 == 0
        steps = -(-self.rank // 16)
        return steps, (steps * 16 + 8) * (2 if cores else 4), cores

    def _weights(self, channels: int) -> int:
        """Bytes of one warp's dt_proj."""
        steps, _, cores = self._low()
        return steps * -(-channels // 8) * 256 if cores else (self.rank * channels * 4 + 15) // 16 * 16

    def forward_shared(self, lanes: int | None = None) -> int:
        """Bytes of shared memory of a block of the forward with states in lanes, those of ``lanes_per_channel``."""
        channels = 32 // (lanes or self.lanes_per_channel())
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
        """The grid: tiles of ``channels`` channels, clips times mixers, directions."""
        return -(-self.width // channels), self.batch * self.blocks, self.directions


def arguments(shape: Shape, count: int, tensors: dict[str, Tensor]) -> ctypes.Structure:
    """The kernels' argument: ``count``, and the addresses and strides of ``tensors`` by their names in it."""
    args: Any = SCAN_ARGS.ctype()
    for name, tensor in tensors.items():
        setattr(args, name, tensor.data_ptr())
    for name in ("x", "z", "dz"):
        if name in tensors:
            for axis, stride in zip("btk", tensors[name].stride()[:3], strict=True):
                setattr(args, name + axis, stride)
    args.B, args.L, args.K, args.E = shape.batch, shape.length, shape.blocks, shape.width
    args.R, args.count = shape.directions, count
    return args
