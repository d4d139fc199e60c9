"""Chooses the tiling of the tensor-core forward scan (kernels/scan_forward_mma.cu), and launches it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit import nvrtc
from ssamba.ops.jit.limits import dynamic_limit
from ssamba.ops.mamba.cuda.scan_shape import Shape, arguments
from ssamba.ops.mamba.cuda.sources import MMA_TYPES, unit

_MIN_CHUNKS, _MAX_CHUNKS, _BLOCKS = 4, 16, 384
_MULTIPROCESSORS = 132
"""Of an H100 and an H200."""
_MIN_CHUNK_STEPS = 64  # with fewer or shorter chunks, the pass that finds their first states does not pay
_MANY_CHUNKS_STEPS = 256  # from this length of a chunk on, there are more than _MIN_CHUNKS where a scan is dear
_ENVIRONMENT_NAMES = {"split": "state_split", "blocks": "min_blocks_per_sm"}


class ScanTiling(NamedTuple):
    """How a call is spread over the GPU. dev/KERNEL-NOTES.md has the measurements behind ``choose_tiling``."""

    state_split: int
    """Warps that share the states of 16 channels: 1 or 2."""
    warps: int
    """Warps of a block."""
    stages: int
    """Batches of 16 steps in shared memory at once, at least 3."""
    min_blocks_per_sm: int
    """Blocks that a multiprocessor shall hold, which bounds the registers."""
    chunks: int
    """Chunks of each half of the time that are computed in parallel."""
    adds: int = 1
    """With one warp for all states and no chunks: 1 adds what comes into the states by the FMA that decays them, 0 by
    the product that it is, as the other tilings do."""


def choose_tiling(shape: Shape) -> ScanTiling:
    """The tiling for a number of groups of 16 channels over all directions, mixers and clips.

    ``SSAMBA_CUT`` replaces some values, for measurements (``environment.scan_tiling``). Raises ValueError for a name
    that it does not know.
    """
    given = environment.scan_tiling()
    fields = {_ENVIRONMENT_NAMES.get(name, name): value for name, value in given.items()}
    return _default_tiling(shape)._replace(**fields)


def _default_tiling(shape: Shape) -> ScanTiling:
    groups, splits = shape.dir_blocks * shape.batch * shape.width // 16, shape.states == 16
    enough = max(1, 4 * _BLOCKS // groups)  # chunks for so many blocks of 4 warps
    steps = shape.length // shape.directions
    chunks = min(_MAX_CHUNKS, enough, steps // _MIN_CHUNK_STEPS)
    if not (shape.tied or shape.alternating):
        chunks = min(chunks, max(_MIN_CHUNKS, steps // _MANY_CHUNKS_STEPS))
    if groups <= (192 if splits else 384) and chunks >= _MIN_CHUNKS:
        return ScanTiling(state_split=1, warps=4, stages=3, min_blocks_per_sm=3, chunks=chunks)
    rounds_end = 6 * _MULTIPROCESSORS if shape.tied else 1023  # blocks have two groups; tied, all of them run at once
    if groups <= rounds_end and splits:
        at_once = 3 if shape.tied and groups > 4 * _MULTIPROCESSORS else 2
        return ScanTiling(state_split=2, warps=4, stages=3, min_blocks_per_sm=at_once, chunks=1)
    if groups < 3072:
        return ScanTiling(state_split=1, warps=4, stages=3, min_blocks_per_sm=3, chunks=1)
    return ScanTiling(state_split=1, warps=8, stages=3, min_blocks_per_sm=2, chunks=1)


def usable(shape: Shape, tensors: dict[str, Tensor]) -> bool:
    """Whether this form serves: 8 channels of a step must lie in 16 aligned bytes, 4 values of p in 8."""
    x, p = tensors["x"], tensors["p"]
    if x.dtype not in MMA_TYPES or shape.states not in (8, 16) or shape.width % 16 or shape.taps > 5:
        return False
    if shape.rank % 4 or shape.rank > 64 or environment.lanes_per_channel() is not None:
        return False
    rows = [tensors[name] for name in ("x", "z", "y") if name in tensors]
    if p.data_ptr() % 8 or any(t.data_ptr() % 16 or any(stride % 8 for stride in t.stride()[:3]) for t in rows):
        return False
    if not x.is_cuda:
        return True
    device = x.device.index or 0
    shared = max(_shared(shape, choose_tiling(shape), phase, "z" in tensors) for phase in (0, 2))
    return nvrtc.multiplies_bfloat16(device) and shared <= dynamic_limit(device)


def _shared(shape: Shape, tiling: ScanTiling, phase: int, gate: bool) -> int:
    """Bytes of shared memory of a block: ``Stage`` and ``GroupShared`` of the source."""
    groups = tiling.warps // tiling.state_split
    rows = 20 + 16 * (gate and phase in (0, 2)) + 16 * (phase == 2)
    stage = 2 * rows * (16 * groups + 8) + 2 * 16 * (-(-shape.rank // 16) * 16 + 8) + 2 * shape.states // 4 * 138 * 8
    deltas, barrier = 64 * (36 if shape.tied else 20), 16
    alone = tiling.state_split == 1
    return tiling.stages * stage + groups * (deltas if alone else 2 * deltas + 3072) + (barrier if alone else 0)


def takes_states(shape: Shape, tensors: dict[str, Tensor]) -> bool:
    """Whether ``states`` can serve, and what starts from them: a lane holds four of 16 states in a row."""
    return shape.states == 16 and shape.lane_is_channel() and usable(shape, tensors)


def forward_saves_states(tiling: ScanTiling) -> bool:
    """Whether ``forward`` can write ``ckpt`` on the way, where it ``takes_states``."""
    return tiling.state_split == 1 and tiling.chunks == 1


def states(shape: Shape, tensors: dict[str, Tensor]) -> None:
    """Writes ``ckpt``, the states before every 8 steps, as kernels/scan_states.cu does."""
    x, count = tensors["x"], tensors["ckpt"].shape[2]
    warps, blocks = (4, 4) if shape.dir_blocks * shape.batch * shape.width // 16 < 3072 else (8, 2)
    tiling = ScanTiling(state_split=1, warps=warps, stages=3, min_blocks_per_sm=blocks, chunks=1)
    across, clips, directions = shape.grid(16 * warps)
    defines = shape.defines(PHASE=4, SPLIT=1, WARPS=warps, STAGES=3, MIN_BLOCKS=blocks, CHUNKED=0, GATE=0)
    with nvrtc.on(x):
        run = nvrtc.kernel(unit("scan_forward_mma.cu"), "scan_fragments", defines, x.device.index or 0)
        args = arguments(shape, count, aligned(tensors))
        run((across, clips, directions), 32 * warps, args, _shared(shape, tiling, 4, gate=False), True)


def aligned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, parameters that a kernel reads in 16 bytes at such addresses: a view may lie anywhere."""
    names = [n for n in ("conv_w", "dt_proj", "a_log") if tensors[n].data_ptr() % 16]
    return tensors | {name: tensors[name].clone() for name in names}


def chunk_ends(shape: Shape, chunks: int, x: Tensor) -> dict[str, Tensor]:
    """Room for the state at the end of each chunk of time and for its sum of delta."""
    sizes = shape.directions * chunks, shape.dir_blocks, shape.batch, shape.width
    wide: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    return {"da": torch.empty(*sizes, shape.states, **wide), "dvec": torch.empty(sizes, **wide)}


def forward(shape: Shape, tensors: dict[str, Tensor]) -> None:
    """Writes ``y``. ``tensors``: by the names of ``ScanArgs``; without ``z`` there is no gate.

    ``ckpt``, where it is given, is written, too, as by ``states``: then ``forward_saves_states`` must hold.
    """
    x, tiling = tensors["x"], choose_tiling(shape)
    passes = [(0, tiling.chunks)] if shape.directions == 1 else [(1, tiling.chunks), (2, tiling.chunks)]
    if tiling.chunks > 1:
        passes.insert(0, (3, shape.directions * tiling.chunks - 1))  # nothing comes after the last chunk
        tensors = tensors | chunk_ends(shape, tiling.chunks, x)
    tensors = aligned(tensors)
    saves = {"SAVES": 1, "DUE": -shape.length % 8 if shape.directions == 2 else 0} if "ckpt" in tensors else {}
    count = tensors["ckpt"].shape[2] if saves else tiling.chunks
    args, gate = arguments(shape, count, tensors), "z" in tensors
    with nvrtc.on(x):
        for phase, side_by_side in passes:
            defines = shape.defines(
                PHASE=phase, SPLIT=tiling.state_split, WARPS=tiling.warps, STAGES=tiling.stages,
                MIN_BLOCKS=tiling.min_blocks_per_sm, CHUNKED=int(tiling.chunks > 1), GATE=int(gate),
                **({} if tiling.adds else {"ADDS": 0}), **saves,
            )  # fmt: skip
            run = nvrtc.kernel(unit("scan_forward_mma.cu"), "scan_fragments", defines, x.device.index or 0)
            across, clips, directions = shape.grid(16 * tiling.warps // tiling.state_split)
            grid, shared = (across, clips, directions * side_by_side), _shared(shape, tiling, phase, gate)
            run(grid, 32 * tiling.warps, args, shared, tiling.chunks == 1)  # with few clips a wait costs more
