"""Chooses the form of the scan's backward and its launch: channels in lanes, or in tensor-core fragments."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit import nvrtc
from ssamba.ops.jit.limits import dynamic_limit
from ssamba.ops.mamba.cuda import scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape, arguments
from ssamba.ops.mamba.cuda.sources import unit


class BackwardTiling(NamedTuple):
    """How the form with tensor-core fragments is spread over the GPU. dev/KERNEL-NOTES.md has what was measured."""

    warps: int = 8
    """Warps of a block, 16 channels each: at least 2."""
    blocks: int = 1
    """Blocks that a multiprocessor shall hold, which bounds the registers."""
    movm: int = 3
    """For which gradients states and channels are exchanged in registers instead of shared memory: 0 none, 1 that of C,
    2 that of B, 3 both."""
    keep: int = 17
    """How many of a lane's decays of eight steps of two channels are kept from the states to the adjoint, instead of
    computed again: with free decays, 0 to 16 times four in shared memory; 17: all of them in registers."""
    windows: int = 0
    """Whether weights of one step among zeros, with which products add up channels, come from shared memory instead of
    selections in registers: by default where decays are tied and the low-rank dt has more than ``_NARROW_RANK`` values.
    """
    states: int = 1
    """With free decays, whether saved states come from tensor-core fragments, too."""
    clips: int = 0
    """Clips that a block has one after another, the last block fewer; 0: by size (``clips_of_block``)."""


_MULTIPROCESSORS = 132
"""Of an H100 and an H200."""
_NARROW_RANK = 32
"""Up to here, as with free decays, ``windows`` takes longer."""
_STEPS_BEFORE = 10
"""Steps that take as long as what a block does before its first one."""
FORM, TILING = "mma", BackwardTiling()
"""The form where both take the call, ``lanes`` or ``mma``, and the tiling of the latter. ``SSAMBA_BACKWARD`` replaces
either, for measurements."""


def choose(shape: Shape, tensors: dict[str, Tensor]) -> BackwardTiling | None:
    """The tiling of kernels/scan_backward_mma.cu, None where channels lie in lanes.

    Raises ValueError for a form or a name in ``SSAMBA_BACKWARD`` that does not exist.
    """
    form, given = environment.scan_backward()
    form = form or FORM
    if form not in ("lanes", "mma"):
        raise ValueError(f"SSAMBA_BACKWARD: no form of the backward is called {form!r}; use lanes or mma")
    tiling = TILING._replace(**{"windows": int(shape.tied and shape.rank > _NARROW_RANK), **given})
    return tiling if form == "mma" and _usable(shape, tensors, tiling) else None


def takes_states(shape: Shape, tensors: dict[str, Tensor]) -> bool:
    """Whether ``scan_mma.states`` saves the states: where decays are tied, and for the backward in fragments."""
    if shape.tied:
        return scan_mma.takes_states(shape, tensors)
    tiling = choose(shape, tensors)
    return tiling is not None and bool(tiling.states)


def _usable(shape: Shape, tensors: dict[str, Tensor], tiling: BackwardTiling) -> bool:
    """Saved states must be every 8 steps, and rows that are copied or stored aligned."""
    if not scan_mma.takes_states(shape, tensors):
        return False
    dy, dz = tensors["dy"], tensors["dz"]
    if dy.data_ptr() % 16 or dz.data_ptr() % 4 or any(stride % 2 for stride in dz.stride()[:3]):
        return False
    if not dy.is_cuda:
        return True
    return shared_bytes(shape, tiling) <= dynamic_limit(dy.device.index or 0)


def shared_bytes(shape: Shape, tiling: BackwardTiling) -> int:
    """Bytes of shared memory of a block: ``BackwardStage``, ``WarpShared`` and the sums of the source."""
    row = 16 * tiling.warps + 8
    stage = 2 * (20 + 3 * 16) * row + 2 * 16 * (-(-shape.rank // 16) * 16 + 8) + 2 * 4 * 138 * 8
    sums, weights, rows = 16 * 36 * 4, 4096 if tiling.windows else 16, 16 if tiling.movm == 3 else 2 * 512
    if shape.tied:
        own = 4 * 16 * 20 + 2 * sums
    else:
        own = 4 * 16 * 12 + 8 * 32 + (512 * tiling.keep if 0 < tiling.keep <= 16 else 16) + sums
    return 2 * stage + tiling.warps * (own + weights + rows)


def clips_of_block(shape: Shape, tiling: BackwardTiling, tensors: dict[str, Tensor]) -> int:
    """Clips of a block: ``tiling.clips``, or as many as ``even_clips`` finds, all in reach of 32-bit offsets."""
    strides = [max(t.stride(0), shape.length * t.stride(1)) for t in (tensors[name] for name in ("x", "z", "dz"))]
    values = max(*strides, shape.length * shape.blocks * shape.width, -(-shape.length // 8) * shape.width * 16)
    most = max(min(shape.batch, 2**31 // (values + 1)), 1)
    if tiling.clips:
        return min(tiling.clips, most)
    across, _, directions = shape.grid(16 * tiling.warps)
    places = _MULTIPROCESSORS * tiling.blocks
    return even_clips(shape.batch, shape.length, across * shape.blocks * directions, places, most)


@lru_cache
def even_clips(batch: int, length: int, side_by_side: int, places: int, most: int) -> int:
    """Clips of a block, at most ``most``, so that all blocks end soonest, with what each does at first.

    ``side_by_side``: blocks of one clip; ``places``: blocks that run at once. Of as good choices the most clips: fewer
    parts are to be added up.
    """

    def steps(clips: int) -> int:
        rounds = -(-side_by_side * -(-batch // clips) // places)
        return rounds * (clips * length + _STEPS_BEFORE)

    return min(range(most, 0, -1), key=steps)


def run_mma(shape: Shape, tiling: BackwardTiling, clips: int, tensors: dict[str, Tensor], more: dict[str, int]) -> None:
    """Launches kernels/scan_backward_mma.cu.

    ``clips``: of a block; ``tensors``: by the names of ``ScanArgs``; ``more``: further macros.
    """
    x = tensors["x"]
    defines = shape.defines(
        WARPS=tiling.warps, MIN_BLOCKS=tiling.blocks, MOVM=tiling.movm, KEEP=tiling.keep, WINDOWS=tiling.windows,
        **more,
    )  # fmt: skip
    with nvrtc.on(x):
        run = nvrtc.kernel(unit("scan_backward_mma.cu"), "scan_backward_mma", defines, x.device.index or 0)
        args = arguments(shape, clips, scan_mma.aligned(tensors))
        grid = shape.grid(16 * tiling.warps)[0], -(-shape.batch // clips), shape.dir_blocks
        run(grid, 32 * tiling.warps, args, shared_bytes(shape, tiling))


def run_lanes(shape: Shape, warps: int, tensors: dict[str, Tensor], more: dict[str, int]) -> None:
    """Launches kernels/scan_backward_lanes.cu, or scan_backward.cu where several lanes share a channel."""
    x, per_channel, fast = tensors["x"], shape.lanes_per_channel(), shape.lane_is_channel()
    sizes, shared = shape.backward_sizes(warps)
    with nvrtc.on(x):
        defines = shape.defines(
            LPC=per_channel, SPT=shape.padded // per_channel, WARPS=warps, TT=shape.tile(),
            MIN_BLOCKS=3 if fast else 2, WHOLE=int(shape.fills(warps * 32)), **sizes, **more,
        )  # fmt: skip
        source = unit("scan_backward_lanes.cu" if fast else "scan_backward.cu")
        run = nvrtc.kernel(source, "scan_backward", defines, x.device.index or 0)
        args = arguments(shape, tensors["ckpt"].shape[2], tensors)
        run(shape.grid(warps * 32 // per_channel), warps * 32, args, shared)


def lanes_warps(shape: Shape, x: Tensor) -> int:
    """Warps of a block of the form with channels in lanes: as many as shared memory holds, at most 4."""
    warps = 4
    if x.is_cuda:
        while warps > 1 and shape.backward_sizes(warps)[1] > dynamic_limit(x.device.index or 0):
            warps //= 2
    return warps


def channels_of_block(shape: Shape, tiling: BackwardTiling | None, warps: int) -> int:
    """Channels whose sums for B and C a block adds up; each block leaves a part of its own."""
    return 16 * tiling.warps if tiling else warps * 32 // shape.lanes_per_channel()


def launch(shape: Shape, tensors: dict[str, Tensor], token_sums: bool) -> tuple[int, int, Any]:
    """The number of parts of the gradients of B and C, that of the parts of sums over time (``da`` and ``dvec``), and
    what computes the backward from its tensors.

    ``token_sums``: whether that leaves the sums of dz as well.
    """
    more = {"TOKEN_SUMS": 1} if token_sums else {}
    tiling, warps = choose(shape, tensors), lanes_warps(shape, tensors["x"])
    parts = shape.grid(channels_of_block(shape, tiling, warps))[0]
    if tiling is None:
        return parts, shape.batch, lambda filled: run_lanes(shape, warps, filled, more)
    clips = clips_of_block(shape, tiling, tensors)
    return parts, -(-shape.batch // clips), lambda filled: run_mma(shape, tiling, clips, filled, more)
