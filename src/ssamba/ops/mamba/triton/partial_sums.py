# mypy: disable-error-code="no-untyped-def"
"""Sums of the parts that kernels and products leave behind, all of a backward pass in one launch.

Each sum is small and takes longer to start than to add up, so they go together.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

_FEW = 16
"""Parts up to which a program takes more results at once."""
_VALUES = 2048  # of a step of a program


@triton.jit
def _add_one(
    source, total, program, parts, count, height, width, s_part, s_o, s_h, s_w, t_o, t_h, t_w,
    BS: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    # One sum, if the program is one of its own. Returns the program's number among those of the sums after it.
    programs = tl.cdiv(count, BO)
    if (program >= 0) & (program < programs):
        at = program * BO + tl.arange(0, BO)
        there = at < count
        row, w = at // width, at % width
        o, h = (row // height).to(tl.int64), row % height
        first = (o * s_o + h * s_h + w * s_w)[None, :]
        found = tl.zeros((BS, BO), tl.float32)
        for start in range(0, parts, BS):
            part = start + tl.arange(0, BS)
            ok = (part < parts)[:, None] & there[None, :]
            found += tl.load(source + part.to(tl.int64)[:, None] * s_part + first, mask=ok, other=0.0).to(tl.float32)
        to = total + (o * t_o + h * t_h + w * t_w)
        tl.store(to, tl.sum(found, 0).to(total.dtype.element_ty), mask=there)
    return program - programs


@triton.jit
def _add(
    sources, totals, parts, counts, heights, widths, s_part, s_o, s_h, s_w, t_o, t_h, t_w,
    MANY: tl.constexpr, FEW: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    # Programs go through the sums in turn, a program to a stretch of results. The first MANY sums have many parts.
    program = tl.program_id(0)
    for i in tl.static_range(len(sources)):
        if i < MANY:
            program = _add_one(
                sources[i], totals[i], program, parts[i], counts[i], heights[i], widths[i],
                s_part[i], s_o[i], s_h[i], s_w[i], t_o[i], t_h[i], t_w[i], 4 * FEW, VALUES // (4 * FEW),
            )  # fmt: skip
        else:
            program = _add_one(
                sources[i], totals[i], program, parts[i], counts[i], heights[i], widths[i],
                s_part[i], s_o[i], s_h[i], s_w[i], t_o[i], t_h[i], t_w[i], FEW, VALUES // FEW,
            )  # fmt: skip


def add_parts(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """``total = parts.sum(0)`` for each pair of ``parts`` (S, O, H, W) and ``total`` (O, H, W), whatever their strides.

    Added in float32, in an order that the sizes alone decide, and rounded once.
    """
    wanted = [pair for pair in sums if pair[1].numel()]
    if not wanted:
        return
    ordered = sorted(wanted, key=lambda pair: pair[0].shape[0] <= _FEW)
    many = sum(parts.shape[0] > _FEW for parts, _ in ordered)
    sources, totals = zip(*ordered, strict=True)
    results = [_VALUES // (4 * _FEW)] * many + [_VALUES // _FEW] * (len(ordered) - many)
    programs = sum(triton.cdiv(t.numel(), each) for t, each in zip(totals, results, strict=True))
    _add[(programs,)](
        sources, totals, tuple(s.shape[0] for s in sources), tuple(t.numel() for t in totals),
        *(tuple(t.shape[axis] for t in totals) for axis in (1, 2)),
        *(tuple(s.stride(axis) for s in sources) for axis in range(4)),
        *(tuple(t.stride(axis) for t in totals) for axis in range(3)),
        MANY=many, FEW=_FEW, VALUES=_VALUES, num_warps=4,
    )  # fmt: skip
