# mypy: disable-error-code="no-untyped-def"
"""Sums of the parts that kernels and products leave behind, all of a backward pass in one launch; sums of columns.

The former are small and take longer to start than to add up, so they go together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEW = 16
"""Parts up to which a program takes more results at once."""
_VALUES = 2048  # of a step of a program
_ROWS, _COLUMNS = 64, 64  # of a step of a program that adds up columns: four loads of 16 bytes for each thread
_PROGRAMS = 1056  # about as many of these as an H100 runs at once


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


@triton.jit
def _columns(
    x_ptr, part_ptr, rows, width, rows_per_part,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    col = tl.program_id(0) * BC + tl.arange(0, BC)
    first = tl.program_id(1).to(tl.int64) * rows_per_part
    total = tl.zeros((BR, BC), tl.float32)
    for start in range(0, rows_per_part, BR):
        row = first + start + tl.arange(0, BR)
        ok = (row < rows)[:, None] & (col < width)[None, :]
        total += tl.load(x_ptr + row[:, None] * width + col[None, :], mask=ok, other=0.0).to(tl.float32)
    tl.store(part_ptr + tl.program_id(1).to(tl.int64) * width + col, tl.sum(total, 0), mask=col < width)


def column_sums(x_Tm: Tensor) -> Tensor:
    """``x.sum(0)`` of contiguous x, added in float32, in an order that its size alone decides, and rounded once."""
    rows, width = x_Tm.shape
    tiles = max(1, triton.cdiv(width, _COLUMNS))
    parts = max(1, min(triton.cdiv(_PROGRAMS, tiles), triton.cdiv(rows, _ROWS)))
    per_part = triton.cdiv(triton.cdiv(rows, parts), _ROWS) * _ROWS
    parts = triton.cdiv(rows, per_part) if per_part else 0
    part_x11m = torch.empty(parts, 1, 1, width, device=x_Tm.device, dtype=torch.float32)
    if part_x11m.numel():
        _columns[(tiles, parts)](x_Tm, part_x11m, rows, width, per_part, BR=_ROWS, BC=_COLUMNS, num_warps=4)
    total = x_Tm.new_empty(width)
    add_parts([(part_x11m, total[None, None])])
    return total
