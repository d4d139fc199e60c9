"""Weights of pairs, folded and converted in one launch: ops/cuda/kernels/prepare_weights.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssamba.ops.cuda import sources
from ssamba.ops.cuda.kernel_args import MAX_CONVERSIONS, MAX_PAIRS, prepare_weights_args
from ssamba.ops.cuda.sources import TYPE_CODES, defines, unit, values_at_once
from ssamba.ops.jit import nvrtc

_THREADS, _BLOCK = 256, 2048  # of a block: threads, and elements that it converts


def usable(
    in_proj_hKEd: Tensor,
    scale_Kd: Tensor,
    shift_Kd: Tensor,
    weight_hKEd: Tensor,
    bias_hKE: Tensor,
    given: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> bool:
    """Whether ``prepare`` takes these tensors."""
    if len(given) > MAX_CONVERSIONS or scale_Kd.dtype != shift_Kd.dtype or weight_hKEd.dtype != bias_hKE.dtype:
        return False
    return sources.usable(in_proj_hKEd, scale_Kd, weight_hKEd, *given, *targets)


def prepare(
    in_proj_hKEd: Tensor,
    scale_Kd: Tensor,
    shift_Kd: Tensor,
    weight_hKEd: Tensor,
    bias_hKE: Tensor,
    given: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> None:
    """``weight = in_proj scale``, ``bias = in_proj shift^T``, in float32 and rounded once; targets take the others.

    All contiguous. As ``ssamba.ops.mamba.triton.weights.prepare``.
    """
    prepare_pairs([(in_proj_hKEd, scale_Kd, shift_Kd, weight_hKEd, bias_hKE, given, targets)])


def prepare_pairs(pairs: Sequence[tuple[Any, ...]]) -> None:
    """``prepare`` of each pair's arguments, ``MAX_PAIRS`` of them a launch. All have the same shapes and types."""
    for start in range(0, len(pairs), MAX_PAIRS):
        _launch(pairs[start : start + MAX_PAIRS])


def _launch(pairs: Sequence[tuple[Any, ...]]) -> None:
    in_proj_hKEd, scale_Kd, _, weight_hKEd, bias_hKE, _, targets = pairs[0]
    _, blocks, inner, width = in_proj_hKEd.shape
    rows = bias_hKE.numel()
    grid = -(-rows // (_THREADS // 32)) + sum(-(-t.numel() // _BLOCK) for t in targets)
    if not grid:
        return
    args = prepare_weights_args(len(pairs)).ctype()
    args.rows, args.blocks, args.inner, args.width, args.count = rows, blocks, inner, width, len(targets)
    for place, pair in zip(args.pairs, pairs, strict=True):
        place.in_proj, place.scale, place.shift, place.weight, place.bias = (t.data_ptr() for t in pair[:5])
        for one, source, target in zip(place.conversions, *pair[5:], strict=False):
            one.source, one.target, one.count = source.data_ptr(), target.data_ptr(), target.numel()
            one.source_type, one.target_type = TYPE_CODES[source.dtype], TYPE_CODES[target.dtype]
    folded = (t for pair in pairs for t in pair[:4])
    macros = defines(
        I_DTYPE=TYPE_CODES[in_proj_hKEd.dtype], A_DTYPE=TYPE_CODES[scale_Kd.dtype],
        O_DTYPE=TYPE_CODES[weight_hKEd.dtype],
        VALUES=values_at_once(width, *folded), THREADS=_THREADS, BLOCK=_BLOCK, PAIRS=len(pairs),
    )  # fmt: skip
    with nvrtc.on(in_proj_hKEd):
        run = nvrtc.kernel(unit("prepare_weights.cu"), "prepare_weights", macros, in_proj_hKEd.device.index or 0)
        run((grid, len(pairs), 1), _THREADS, args)
