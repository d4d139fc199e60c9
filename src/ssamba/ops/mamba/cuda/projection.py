"""Convolution, SiLU and the projection to (dt, B, C) in one pass, launched: kernels/conv_projection.cu, for few tokens
kernels/conv_projection_sliced.cu, and with tensor maps kernels/conv_projection_bulk.cu."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit import nvrtc
from ssamba.ops.jit.limits import dynamic_limit
from ssamba.ops.mamba.cuda.kernel_args import CONV_PROJECTION_ARGS, CONV_PROJECTION_BULK_ARGS
from ssamba.ops.mamba.cuda.sources import DTYPE_CODES, MMA_TYPES, defines, unit

_MAX_OUTPUTS = 96
_SHARED_MAX = 227 * 1024
"""Of an H100, where there is no GPU to ask."""
_MULTIPROCESSORS = 132
"""Of an H100 and an H200."""
_MAX_SLICED_BLOCKS = 264
"""Up to two blocks of the sliced form for each multiprocessor of an H100: beyond, they read the weights too often."""


_TAPS = ("near", "runs", "bulk")
"""How many tokens are convolved: x read at each tap's distance, or once for a lane's run of four tokens; ``bulk``: the
latter, x and weights copied by tensor maps."""
_RUN = 4
"""Tokens of a lane's run."""
_TWELVE_WARPS = 1.32
"""Time of a round of blocks of twelve warps, for one of eight: ``bulk``, base."""


class ProjectionTiling(NamedTuple):
    """How a call is spread over the GPU. dev/KERNEL-NOTES.md has the measurements behind ``choose_tiling``."""

    warps: int
    """Warps of a block."""
    blocks: int
    """Blocks that a multiprocessor shall hold, which bounds the registers."""
    slices: int = 0
    """Warps that share tokens and take turns at the channels: the sliced form; 0: the form for many tokens."""
    rows: int = 32
    """Tokens of a warp, 16 or 32; without slices 32."""
    stages: int = 2
    """Parts of the channels in shared memory at once; without slices 2, but for ``bulk``."""
    channels: int = 64
    """Channels of a part, 64 or 128; without slices 64."""
    taps: str = "near"
    """Without slices: how the convolution is computed, one of ``_TAPS``."""
    unroll: int = 1
    """For ``bulk``: groups of 16 channels in the loop's body, 1, 2 or 4."""

    def tokens(self, directions: int) -> int:
        """Tokens of a block."""
        return self.rows * self.warps // (directions * max(1, self.slices))

    def shared_bytes(self, directions: int, outputs: int, width: int = 0) -> int:
        """Bytes of shared memory of a block: ``Stage`` of the source, and the sums of each warp of a slice.

        ``width``: channels, whose taps ``bulk`` has there all at once.
        """
        tokens, rows, row = self.tokens(directions), -(-outputs // 16) * 16, 2 * (self.channels + 8)
        if not self.slices and self.taps == "bulk":
            stage = 128 * (tokens + 2 * _RUN) + directions * -(-outputs // 8) * 1024
            return self.stages * (stage + 12) + directions * _whole(width) * 20
        if self.slices or self.taps == "near":
            stage = row * (tokens + 6 + directions * rows) + 20 * self.channels * directions
            return self.stages * stage + (self.warps * self.rows // 16 * rows * 64 if self.slices else 0)
        taps = 1280 * directions
        stage = 128 * (tokens + 7) + (tokens + 7) // 4 * 16 + row * directions * outputs + taps
        beyond = max(0, row * (rows - outputs) - taps)  # tiles of weights reach beyond their last row
        return self.stages * stage + beyond

    def check(self, directions: int) -> None:
        """Raises ValueError for what no kernel takes."""
        if self.slices < 0:
            raise ValueError(f"SSAMBA_PROJ: slices={self.slices}; use 0 or more")
        sharing = directions * max(1, self.slices)
        if self.warps < 1 or self.warps > 32 or self.warps % sharing:
            raise ValueError(f"SSAMBA_PROJ: {self.warps} warps; use a multiple of {sharing} up to 32 here")
        if self.taps not in _TAPS:
            raise ValueError(f"SSAMBA_PROJ: there is no taps={self.taps}; use {', '.join(_TAPS)}")
        given = self._replace(stages=2) if self.taps == "bulk" else self
        if not self.slices and given[3:6] != ProjectionTiling(1, 1)[3:6]:
            raise ValueError(f"SSAMBA_PROJ: rows={self.rows} and the like need slices; add slices=1 or more")
        if self.rows not in (16, 32) or self.channels not in (64, 128) or self.stages < 2:
            raise ValueError(
                f"SSAMBA_PROJ: rows={self.rows},stages={self.stages},channels={self.channels}; use 16 or 32 rows, "
                "2 stages or more, 64 or 128 channels"
            )
        if self.unroll not in (1, 2, 4):
            raise ValueError(f"SSAMBA_PROJ: unroll={self.unroll}; use 1, 2 or 4")


def _whole(width: int) -> int:
    """Channels, with those that fill the last part of 64."""
    return -(-width // 64) * 64


def _of_many_tokens(sequences: int, tokens_each: int, outputs: int, directions: int, maps: bool) -> ProjectionTiling:
    def rounds(tiling: ProjectionTiling) -> int:
        count = sequences * -(-tokens_each // tiling.tokens(directions))
        return -(-count // (tiling.blocks * _MULTIPROCESSORS))

    if maps:
        eight = ProjectionTiling(8, 1 if outputs > 64 else 2, taps="bulk", unroll=4)
        if outputs <= 48 and directions == 1 and rounds(eight) > 1:
            return ProjectionTiling(4, 4, taps="bulk", unroll=4)
        twelve = ProjectionTiling(12, 1, taps="bulk")
        wide = outputs > 64 and directions == 1
        return twelve if wide and rounds(twelve) * _TWELVE_WARPS < rounds(eight) else eight
    if outputs <= 48:
        return ProjectionTiling(4, 4, taps="runs")
    if outputs <= 64:  # with four warps and the other form, three blocks fit where two rounds need four
        return ProjectionTiling(8, 2, taps="runs")
    small = ProjectionTiling(4, 3, taps="near" if directions == 1 else "runs")
    large = ProjectionTiling(8, 1, taps="runs")
    return large if directions == 1 and rounds(small) >= rounds(large) else small


def choose_tiling(
    sequences: int, tokens_each: int, outputs: int, directions: int, limit: int, width: int = 0, maps: bool = False
) -> ProjectionTiling:
    """The tiling for ``sequences`` (those of all mixers) of ``tokens_each``, of ``width`` channels.

    ``limit``: bytes of shared memory. ``maps``: whether tensor maps can be used, as ``bulk`` does.

    ``SSAMBA_PROJ`` replaces some values, for measurements (``environment.projection_launch``). Raises ValueError for
    values that no kernel takes.
    """
    given: dict[str, Any] = environment.projection_launch()

    def fits(tiling: ProjectionTiling) -> bool:
        return tiling.shared_bytes(directions, outputs, width) <= limit

    candidates = [_of_many_tokens(sequences, tokens_each, outputs, directions, by_maps) for by_maps in (maps, False)]
    if sequences * -(-tokens_each // 16) <= _MAX_SLICED_BLOCKS:
        sliced = ProjectionTiling(4 * directions, 1, slices=4, rows=16, stages=6)
        candidates = [sliced._replace(stages=stages) for stages in range(sliced.stages, 1, -1)] + candidates
    last = ProjectionTiling(4, 4) if outputs <= 64 else ProjectionTiling(8, 1)
    tiling = next(filter(fits, candidates), last)
    if "warps" in given:  # these name a form, and what they leave out is the other form's default
        tiling = ProjectionTiling(0, 0)
    tiling = tiling._replace(**given)
    tiling.check(directions)
    if given and not fits(tiling):
        shared = tiling.shared_bytes(directions, outputs, width)
        raise ValueError(f"SSAMBA_PROJ: {shared} bytes of shared memory; use fewer stages or warps for {limit} here")
    return tiling


def usable(x_BLKE: Tensor, weight_RKEW: Tensor, x_proj_RKPE: Tensor) -> bool:
    """Whether this form takes these shapes: 8 channels of a token must lie in 16 aligned bytes."""
    outputs, width = x_proj_RKPE.shape[2:]
    if x_BLKE.dtype not in MMA_TYPES or width % 16 or weight_RKEW.shape[-1] != 4 or x_BLKE.numel() == 0:
        return False
    if outputs % 2 or outputs > _MAX_OUTPUTS or x_BLKE.shape[0] * x_BLKE.shape[2] >= 65536:
        return False
    if any(t.data_ptr() % 16 for t in (x_BLKE, weight_RKEW, x_proj_RKPE)) or any(
        stride % 8 for stride in x_BLKE.stride()[:3]
    ):
        return False
    if not x_BLKE.is_cuda:
        return False
    return nvrtc.multiplies_bfloat16(x_BLKE.device.index or 0)


def _maps(x_BLKE: Tensor, proj_RKPE: Tensor, sequences: int, tokens: int) -> list[ctypes.Array[ctypes.c_uint64]]:
    """Tensor maps of x, whose clips are ``sequences``, and of the projection, by the boxes that ``bulk`` copies."""
    width, (xb, xt, xk) = x_BLKE.shape[3], (2 * stride for stride in x_BLKE.stride()[:3])
    length = x_BLKE.shape[0] * x_BLKE.shape[1] // sequences
    of_x = nvrtc.make_tensor_map(
        x_BLKE.data_ptr(),
        (width, length // _RUN, _RUN, x_BLKE.shape[2], sequences),
        (_RUN * xt, xt, xk, xb),
        (64, tokens // _RUN + 2, _RUN, 1, 1),
    )
    return [of_x, nvrtc.make_tensor_map_2d(proj_RKPE.flatten(0, 2), proj_RKPE.shape[2], 64)]


def _takes_maps(x_BLKE: Tensor, tokens_each: int) -> bool:
    """Whether the device has tensor maps, and sequences end with a run: no map ends inside one."""
    return tokens_each % _RUN == 0 and x_BLKE.is_cuda and torch.cuda.get_device_capability(x_BLKE.device) >= (9, 0)


def conv_proj(
    x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, proj_RKPE: Tensor, out: Tensor | None = None,
    alternating: bool = False,
) -> Tensor:  # fmt: skip
    """``p_GBLP = silu(conv(x)) proj^T``; the taps and the bias in float32. ``out`` takes it."""
    batch, length, blocks, width = x_BLKE.shape
    directions, outputs = weight_RKEW.shape[0], proj_RKPE.shape[2]
    p = x_BLKE.new_empty(directions * blocks, batch, length, outputs) if out is None else out
    weight, bias, proj = weight_RKEW.float(), bias_RKE.float(), proj_RKPE.to(x_BLKE.dtype)
    # Clips that lie one behind the other are one sequence: blocks of tokens then need not end with each.
    together = x_BLKE.stride(0) == length * x_BLKE.stride(1) and batch * length < 2**31
    sequences, tokens_each = (1, batch * length) if together else (batch, length)
    limit = dynamic_limit(x_BLKE.device.index or 0) if x_BLKE.is_cuda else _SHARED_MAX
    maps = p.data_ptr() % 16 == 0 and _takes_maps(x_BLKE, tokens_each)
    tiling = choose_tiling(sequences * blocks, tokens_each, outputs, directions, limit, width, maps)
    if tiling.taps == "bulk" and not maps:  # asked for
        tiling = tiling._replace(taps="runs", stages=2)
    reach = max(x_BLKE.stride(1), blocks * outputs * width) * 2 * (tiling.tokens(directions) + 8)
    if tiling.taps == "runs" and reach >= 2**31:
        tiling = tiling._replace(taps="near")  # the other form steps by 32-bit distances
    macros = defines(
        DTYPE=DTYPE_CODES[x_BLKE.dtype], P=outputs, DIRS=directions, WARPS=tiling.warps, MIN_BLOCKS=tiling.blocks,
        ALTERNATING=int(alternating),
    )  # fmt: skip
    file, grid = "conv_projection.cu", (-(-tokens_each // tiling.tokens(directions)), blocks, sequences)
    addresses = [t.data_ptr() for t in (x_BLKE, proj, weight, bias, p)]
    if tiling.slices:
        macros += defines(ROWS=tiling.rows, SLICES=tiling.slices, STAGES=tiling.stages, EC=tiling.channels)
        file = "conv_projection_sliced.cu"
    elif tiling.taps == "near":
        grid = grid[0], sequences * blocks, 1
    elif tiling.taps == "bulk":
        macros += defines(STAGES=tiling.stages, CHANNELS=_whole(width), PART=width % 64, UNROLL=tiling.unroll)
        file = "conv_projection_bulk.cu"
    else:
        macros += defines(RUNS=1)
    args: Any
    if file == "conv_projection_bulk.cu":
        of_x, of_weights = _maps(x_BLKE, proj, sequences, tiling.tokens(directions))
        args = CONV_PROJECTION_BULK_ARGS.ctype(of_x, of_weights, *addresses[2:])
    else:
        args = CONV_PROJECTION_ARGS.ctype(*addresses, *x_BLKE.stride()[:3])
    args.B, args.L, args.K, args.E, args.clip = sequences, tokens_each, blocks, width, length
    with nvrtc.on(x_BLKE):
        run = nvrtc.kernel(unit(file), "conv_proj", macros, x_BLKE.device.index or 0)
        run(grid, 32 * tiling.warps, args, tiling.shared_bytes(directions, outputs, width), not tiling.slices)
    return p
