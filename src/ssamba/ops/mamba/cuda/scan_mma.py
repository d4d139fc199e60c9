"""Chooses how the forward by fragments (``nvrtc_fragments``) is cut, and launches it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda.scan_shape import Shape, arguments, dynamic_limit
from ssamba.ops.mamba.cuda.sources import unit

_FEWEST_CHUNKS, _MOST_CHUNKS, _BLOCKS = 4, 16, 384
_CHUNK_STEPS = 256  # the least; with fewer or shorter chunks, the pass that finds their first states does not pay


class Cut(NamedTuple):
    """How a call is spread over the GPU. dev/KERNEL-NOTES.md has the measurements behind ``choose_cut``."""

    split: int
    """Warps that share the states of 16 channels: 1 or 2."""
    warps: int
    """Warps of a block."""
    stages: int
    """Batches of 16 steps in shared memory at once, at least 3."""
    blocks: int
    """Blocks that a multiprocessor shall hold, which bounds the registers."""
    chunks: int
    """Chunks of each half of the time that run side by side."""


def choose_cut(shape: Shape) -> Cut:
    """From how many groups of 16 channels there are over all lanes and clips.

    ``SSAMBA_CUT`` in the environment puts other values in its place, for measurements: ``warps=8,stages=4``.
    """
    return _best_cut(shape)._replace(**environment.scan_tiling())


def _best_cut(shape: Shape) -> Cut:
    groups = shape.lanes * shape.batch * shape.width // 16
    enough = max(1, 4 * _BLOCKS // groups)  # chunks for so many blocks of 4 warps
    chunks = min(_MOST_CHUNKS, enough, shape.length // (shape.directions * _CHUNK_STEPS))
    if groups <= 192 and chunks >= _FEWEST_CHUNKS:
        return Cut(split=1, warps=4, stages=3, blocks=3, chunks=chunks)
    if groups < 1024:
        return Cut(split=2, warps=4, stages=3, blocks=2, chunks=1)
    if groups < 3072:
        return Cut(split=1, warps=4, stages=3, blocks=3, chunks=1)
    return Cut(split=1, warps=8, stages=3, blocks=2, chunks=1)


def usable(shape: Shape, tensors: dict[str, Tensor]) -> bool:
    """Whether this form serves: 8 channels of a step must lie in 16 aligned bytes, 4 values of p in 8."""
    x, p = tensors["x"], tensors["p"]
    if x.dtype != torch.bfloat16 or shape.states != 16 or shape.width % 16 or shape.taps > 5:
        return False
    if shape.rank % 4 or shape.rank > 64 or environment.lanes_per_channel() is not None:
        return False
    rows = [tensors[name] for name in ("x", "z", "y") if name in tensors]
    if p.data_ptr() % 8 or any(t.data_ptr() % 16 or any(stride % 8 for stride in t.stride()[:3]) for t in rows):
        return False
    if not x.is_cuda:
        return True
    device = x.device.index or 0
    shared = max(_shared(shape, choose_cut(shape), phase, "z" in tensors) for phase in (0, 2))
    return nvrtc.multiplies_bfloat16(device) and shared <= dynamic_limit(device)


def _shared(shape: Shape, cut: Cut, phase: int, gate: bool) -> int:
    """Bytes of shared memory of a block: ``Stage`` and ``Shared`` of the source."""
    groups = cut.warps // cut.split
    rows = 20 + 16 * (gate and phase in (0, 2)) + 16 * (phase == 2)
    stage = 2 * rows * (16 * groups + 8) + 2 * 16 * (-(-shape.rank // 16) * 16 + 8) + 2 * 4 * 136 * 8
    return cut.stages * stage + groups * (1280 if cut.split == 1 else 5632)


def forward(shape: Shape, tensors: dict[str, Tensor]) -> None:
    """Writes ``y``. ``tensors``: as ``nvrtc_scan`` names them; without ``z`` there is no gate."""
    x, cut = tensors["x"], choose_cut(shape)
    passes = [(0, cut.chunks)] if shape.directions == 1 else [(1, cut.chunks), (2, cut.chunks)]
    if cut.chunks > 1:
        passes.insert(0, (3, shape.directions * cut.chunks - 1))  # nothing comes after the last chunk
        sizes = shape.directions * cut.chunks, shape.lanes, shape.batch, shape.width
        wide: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
        tensors = tensors | {"da": torch.empty(*sizes, 16, **wide), "dvec": torch.empty(sizes, **wide)}
    for name in ("conv_w", "dt_proj", "a_log"):  # as a view into other memory such a tensor may lie anywhere
        if tensors[name].data_ptr() % 16:
            tensors = tensors | {name: tensors[name].clone()}
    args, gate = arguments(shape, cut.chunks, tensors), "z" in tensors
    with nvrtc.on(x):
        for phase, side_by_side in passes:
            defines = shape.defines(
                PHASE=phase, SPLIT=cut.split, WARPS=cut.warps, STAGES=cut.stages, MIN_BLOCKS=cut.blocks,
                CHUNKED=int(cut.chunks > 1), GATE=int(gate),
            )  # fmt: skip
            run = nvrtc.kernel(unit("scan_forward_mma.cu"), "scan_fragments", defines, x.device.index or 0)
            across, clips, directions = shape.grid(16 * cut.warps // cut.split)
            run((across, clips, directions * side_by_side), 32 * cut.warps, args, _shared(shape, cut, phase, gate))
