# mypy: disable-error-code="no-untyped-def"
"""A pair's weights, folded, converted and padded in one launch: with short inputs each launch counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_VALUES = 2048  # of a program
_ROWS, _COLUMNS = 256, 16  # of a step of a program of the backward


@triton.jit
def _prepare(
    w_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, sources, targets, counts, rows, blocks, inner, width,
    BR: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # The first programs fold rows of the input product, the others convert, tensor after tensor.
    program = tl.program_id(0)
    folding = tl.cdiv(rows, BR)
    if program < folding:
        row = program * BR + tl.arange(0, BR)
        col = tl.arange(0, BD)
        ok = (row < rows)[:, None] & (col < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + col[None, :]
        of_block = (row // inner % blocks)[:, None] * width + col[None, :]
        w = tl.load(w_ptr + at, mask=ok, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + of_block, mask=ok, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + of_block, mask=ok, other=0.0).to(tl.float32)
        tl.store(weight_ptr + at, (w * scale).to(weight_ptr.dtype.element_ty), mask=ok)
        tl.store(bias_ptr + row, tl.sum(w * shift, 1).to(bias_ptr.dtype.element_ty), mask=row < rows)
    else:
        value = (program - folding) * BLOCK + tl.arange(0, BLOCK)
        for i in tl.static_range(len(sources)):
            there = (value >= 0) & (value < counts[i])
            converted = tl.load(sources[i] + value, mask=there, other=0.0).to(targets[i].dtype.element_ty)
            tl.store(targets[i] + value, converted, mask=there)
            value -= tl.cdiv(counts[i], BLOCK) * BLOCK


def prepare(
    in_proj_hKEd: Tensor,
    scale_Kd: Tensor,
    shift_Kd: Tensor,
    weight_hKEd: Tensor,
    bias_hKE: Tensor,
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> None:
    """``weight = in_proj scale``, ``bias = in_proj shift^T``, in float32 and rounded once; targets take the sources.

    All contiguous.
    """
    _, blocks, inner, width = in_proj_hKEd.shape
    rows = bias_hKE.numel()
    columns = triton.next_power_of_2(width)
    at_once = max(1, _VALUES // columns)
    if not sources:  # the compiler wants at least one
        sources, targets = [in_proj_hKEd[:0]], [weight_hKEd[:0]]
    counts = tuple(t.numel() for t in sources)
    programs = triton.cdiv(rows, at_once) + sum(triton.cdiv(n, _VALUES) for n in counts)
    _prepare[(programs,)](
        in_proj_hKEd, scale_Kd, shift_Kd, weight_hKEd, bias_hKE, tuple(sources), tuple(targets), counts,
        rows, blocks, inner, width, BR=at_once, BD=columns, BLOCK=_VALUES, num_warps=4,
    )  # fmt: skip


def prepare_pairs(pairs: Sequence[tuple[Any, ...]]) -> None:
    """``prepare`` of each pair's arguments."""
    for pair in pairs:
        prepare(*pair)


@triton.jit
def _fold_backward(
    dweight_ptr, dbias_ptr, w_ptr, scale_ptr, shift_ptr, dw_ptr, dscale_ptr, dshift_ptr,
    rows, blocks, inner, width, row_step, col_step,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    # A program has some columns of one block, all of whose rows it adds up.
    block = tl.program_id(1)
    col = tl.program_id(0) * BD + tl.arange(0, BD)
    col_ok = col < width
    scale = tl.load(scale_ptr + block * width + col, mask=col_ok, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + block * width + col, mask=col_ok, other=0.0).to(tl.float32)
    dscale = tl.zeros((BR, BD), tl.float32)
    dshift = tl.zeros((BR, BD), tl.float32)
    for start in range(0, rows, BR):
        i = start + tl.arange(0, BR)
        ok = (i < rows)[:, None] & col_ok[None, :]
        row = ((i // inner * blocks + block) * inner + i % inner).to(tl.int64)
        at = row[:, None] * width + col[None, :]
        of_product = dweight_ptr + row[:, None] * row_step + col.to(tl.int64)[None, :] * col_step
        dweight = tl.load(of_product, mask=ok, other=0.0).to(tl.float32)
        dbias = tl.load(dbias_ptr + row, mask=i < rows, other=0.0).to(tl.float32)[:, None]
        w = tl.load(w_ptr + at, mask=ok, other=0.0).to(tl.float32)
        dw = dweight * scale[None, :] + dbias * shift[None, :]
        tl.store(dw_ptr + at, dw.to(dw_ptr.dtype.element_ty), mask=ok)
        dscale += dweight * w
        dshift += dbias * w
    at = block * width + col
    tl.store(dscale_ptr + at, tl.sum(dscale, 0).to(dscale_ptr.dtype.element_ty), mask=col_ok)
    tl.store(dshift_ptr + at, tl.sum(dshift, 0).to(dshift_ptr.dtype.element_ty), mask=col_ok)


def fold_backward(
    dweight_hKEd: Tensor, dbias_hKE: Tensor, in_proj_hKEd: Tensor, scale_Kd: Tensor, shift_Kd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the last three from those of what ``prepare`` folds. All but ``dweight`` are contiguous.

    A product leaves ``dweight`` as a transposed matrix, which is read as it lies.
    """
    of_rows, blocks, inner, width = in_proj_hKEd.shape
    step = dweight_hKEd.stride(2)
    if dweight_hKEd.stride()[:2] != (blocks * inner * step, inner * step):
        dweight_hKEd = dweight_hKEd.contiguous()
        step = width
    found = tuple(w.new_empty(w.shape) for w in (in_proj_hKEd, scale_Kd, shift_Kd))
    if found[0].numel():
        _fold_backward[(triton.cdiv(width, _COLUMNS), blocks)](
            dweight_hKEd, dbias_hKE, in_proj_hKEd, scale_Kd, shift_Kd, *found,
            of_rows * inner, blocks, inner, width, step, dweight_hKEd.stride(3), BR=_ROWS, BD=_COLUMNS, num_warps=8,
        )  # fmt: skip
    return found  # type: ignore[return-value]


@triton.jit
def _pad(
    sources, targets, counts, rows, widths, source_rows, source_widths,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    for i in tl.static_range(len(sources)):
        value = program * BLOCK + tl.arange(0, BLOCK)
        there = (value >= 0) & (value < counts[i])
        row, w = value // widths[i], value % widths[i]
        matrix, h = row // rows[i], row % rows[i]
        given = there & (h < source_rows[i]) & (w < source_widths[i])
        at = (matrix * source_rows[i] + h) * source_widths[i] + w
        copied = tl.load(sources[i] + at, mask=given, other=0.0).to(targets[i].dtype.element_ty)
        tl.store(targets[i] + value, copied, mask=there)
        program -= tl.cdiv(counts[i], BLOCK)


def copy_padded(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """``naive.copy_padded`` in one launch. All are contiguous."""
    sources, targets = zip(*pairs, strict=True)
    programs = sum(triton.cdiv(t.numel(), _VALUES) for t in targets)
    if programs:
        _pad[(programs,)](
            sources, targets, tuple(t.numel() for t in targets),
            *(tuple(t.shape[axis] for t in of) for of in (targets, sources) for axis in (1, 2)),
            BLOCK=_VALUES, num_warps=4,
        )  # fmt: skip
