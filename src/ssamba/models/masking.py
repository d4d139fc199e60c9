"""Which patches to hide in pretraining: cluster masks over the grid, and frame masks, from an explicit generator."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ssamba.utils.errors import ConfigError

CLUSTER_SIDES = (3, 4, 5)
"""Side of the masked squares, drawn per clip (SSAST, arXiv 2110.09784, section 3.2)."""


def _check_count(count: int, grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    if not 0 < count < patches:
        raise ConfigError(
            f"mask of {count} patches: the grid {grid[0]} x {grid[1]} has {patches}, mask 1 to {patches - 1}"
        )


def cluster_masks(
    batch: int, grid: tuple[int, int], count: int, generator: Generator, reference_quirks: bool = False
) -> Tensor:
    """Masks made of squares: (batch, count) sorted patch indices, frequency-major.

    Per clip a side C from {3, 4, 5} is drawn, then C x C squares fall at random places until more than ``count``
    patches are covered, and ``count`` of the covered ones stay, chosen at random. Squares may hang over the edges, so
    that every patch is equally likely. With ``reference_quirks`` the reference is followed (REFERENCE.md,
    "Pretraining"): squares start at a flat index and run on into the next row, patch 0 is never masked, and the
    surplus is taken from the highest indices. Raises ``ConfigError`` for a count that the grid cannot give.
    """
    _check_count(count, grid)
    patches = grid[0] * grid[1]
    sides = torch.randint(CLUSTER_SIDES[0], CLUSTER_SIDES[-1] + 1, (batch,), generator=generator)
    order = torch.full((batch, patches), torch.iinfo(torch.int64).max)
    squares, needed = 0, count + 1 if count + 1 < patches else count
    while True:
        cells, inside = _drop_squares(batch, grid, sides, generator, reference_quirks)
        round_of = torch.arange(squares, squares + cells.shape[1])[None, :, None].expand_as(cells)
        round_of = torch.where(inside, round_of, torch.iinfo(torch.int64).max)
        order = order.scatter_reduce(1, cells.flatten(1), round_of.flatten(1), "amin")
        squares += cells.shape[1]
        last = order.sort(dim=1).values[:, needed - 1]
        if int(last.max()) < squares:
            break
    covered = order <= last[:, None]
    keys = torch.arange(patches).expand(batch, -1).double()
    if not reference_quirks:
        keys = torch.rand(batch, patches, generator=generator, dtype=torch.float64)
    chosen = keys.masked_fill(~covered, float("inf")).argsort(dim=1)[:, :count]
    return chosen.sort(dim=1).values


def _drop_squares(
    batch: int, grid: tuple[int, int], sides: Tensor, generator: Generator, quirks: bool
) -> tuple[Tensor, Tensor]:
    """Cells of random squares: indices (batch, n_squares, 25) and which of them lie inside square and grid."""
    rows, cols = grid
    n_squares = max(16, rows * cols // 2)  # as a rule enough at once
    largest = CLUSTER_SIDES[-1]
    step = torch.arange(largest)
    in_square = (step[None, :, None] < sides[:, None, None]) & (step[None, None, :] < sides[:, None, None])
    if quirks:
        start = torch.randint(0, rows * cols, (batch, n_squares, 1, 1), generator=generator)
        cells = start + step[None, None, :, None] * cols + step
        inside = (cells > 0) & (cells < rows * cols)
    else:
        # Starts up to side-1 before the edge: with them the corner is covered as often as the middle.
        margin = sides[:, None] - 1
        row = (torch.rand(batch, n_squares, generator=generator) * (rows + margin)).long() - margin
        col = (torch.rand(batch, n_squares, generator=generator) * (cols + margin)).long() - margin
        row, col = row[..., None, None] + step[:, None], col[..., None, None] + step
        inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
        cells = row * cols + col
    inside = inside & in_square[:, None]
    return cells.clamp(0, rows * cols - 1).flatten(2), inside.flatten(2)


def frame_masks(batch: int, grid: tuple[int, int], count: int, generator: Generator) -> Tensor:
    """``count`` patches drawn uniformly without repetition: (batch, count) sorted indices (SSAST's frame mode)."""
    _check_count(count, grid)
    keys = torch.rand(batch, grid[0] * grid[1], generator=generator)
    return keys.argsort(dim=1)[:, :count].sort(dim=1).values
