"""Masked patches in pretraining: which ones (cluster masks over the grid, and frame masks), and passes over them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from ssamba.models import patches
from ssamba.models.config import Config
from ssamba.models.decoder import Decoder, visible_patches
from ssamba.models.patches import gather_patches
from ssamba.utils.errors import ConfigError
from ssamba.utils.torch_defaults import HOST_FLOAT32

CLUSTER_SIDES = (3, 4, 5)
"""Side of the masked squares, drawn per clip (SSAST, arXiv 2110.09784, section 3.2)."""


def _check_count(count: int, grid: tuple[int, int]) -> None:
    size = grid[0] * grid[1]
    if not 0 < count < size:
        raise ConfigError(f"mask of {count} patches: the grid {grid[0]} x {grid[1]} has {size}, mask 1 to {size - 1}")


def cluster_masks(
    batch: int, grid: tuple[int, int], count: int, generator: Generator, reference_quirks: bool = False
) -> Tensor:
    """Masks made of squares: (batch, count) sorted patch indices, frequency-major.

    Per clip a side C from {3, 4, 5} is drawn, then C x C squares fall at random places until more than ``count``
    patches are covered, and ``count`` of the covered ones stay, chosen at random. Squares may hang over the edges, so
    that every patch is equally likely. With ``reference_quirks`` the reference is followed (docs/reference.md,
    "Pretraining"): squares start at a flat index and run on into the next row, patch 0 is never masked, and the
    surplus is taken from the highest indices. Raises ``ConfigError`` for a count that the grid cannot give.
    """
    _check_count(count, grid)
    size = grid[0] * grid[1]
    sides = torch.randint(CLUSTER_SIDES[0], CLUSTER_SIDES[-1] + 1, (batch,), generator=generator, device="cpu")
    order = torch.full((batch, size), torch.iinfo(torch.int64).max, dtype=torch.int64, device="cpu")
    squares, needed = 0, count + 1 if count + 1 < size else count
    while True:
        cells, inside = _drop_squares(batch, grid, sides, generator, reference_quirks)
        round_of = torch.arange(squares, squares + cells.shape[1], device="cpu")[None, :, None].expand_as(cells)
        round_of = torch.where(inside, round_of, torch.iinfo(torch.int64).max)
        order = order.scatter_reduce(1, cells.flatten(1), round_of.flatten(1), "amin")
        squares += cells.shape[1]
        last = order.sort(dim=1).values[:, needed - 1]
        if int(last.max()) < squares:
            break
    covered = order <= last[:, None]
    keys = torch.arange(size, device="cpu").expand(batch, -1).double()
    if not reference_quirks:
        keys = torch.rand(batch, size, generator=generator, dtype=torch.float64, device="cpu")
    chosen = keys.masked_fill(~covered, float("inf")).argsort(dim=1)[:, :count]
    return chosen.sort(dim=1).values


def _drop_squares(
    batch: int, grid: tuple[int, int], sides: Tensor, generator: Generator, quirks: bool
) -> tuple[Tensor, Tensor]:
    """Cells of random squares: indices (batch, n_squares, 25) and which of them lie inside square and grid."""
    rows, cols = grid
    n_squares = max(16, rows * cols // 2)  # as a rule enough at once
    largest = CLUSTER_SIDES[-1]
    step = torch.arange(largest, device="cpu")
    in_square = (step[None, :, None] < sides[:, None, None]) & (step[None, None, :] < sides[:, None, None])
    if quirks:
        start = torch.randint(0, rows * cols, (batch, n_squares, 1, 1), generator=generator, device="cpu")
        cells = start + step[None, None, :, None] * cols + step
        inside = (cells > 0) & (cells < rows * cols)
    else:
        # Starts up to side-1 before the edge: with them the corner is covered as often as the middle.
        margin = sides[:, None] - 1
        row = (torch.rand(batch, n_squares, generator=generator, **HOST_FLOAT32) * (rows + margin)).long() - margin
        col = (torch.rand(batch, n_squares, generator=generator, **HOST_FLOAT32) * (cols + margin)).long() - margin
        row, col = row[..., None, None] + step[:, None], col[..., None, None] + step
        inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
        cells = row * cols + col
    inside = inside & in_square[:, None]
    return cells.clamp(0, rows * cols - 1).flatten(2), inside.flatten(2)


def frame_masks(batch: int, grid: tuple[int, int], count: int, generator: Generator) -> Tensor:
    """``count`` patches drawn uniformly without repetition: (batch, count) sorted indices (SSAST's frame mode)."""
    _check_count(count, grid)
    keys = torch.rand(batch, grid[0] * grid[1], generator=generator, **HOST_FLOAT32)
    return keys.argsort(dim=1)[:, :count].sort(dim=1).values


class PatchEncoder(Protocol):
    """What masked passes need of an ``Encoder``."""

    config: Config
    decoder: Decoder | None

    @property
    def prefix_tokens(self) -> int:
        """Learned prefix tokens (CLS, distillation)."""

    @property
    def mask_embedding(self) -> Tensor:
        """The token that stands for a masked patch, (1, 1, d)."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def embed_patches(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens with positions: (B, frames, mel_bins) -> (B, prefix + F*T, d)."""

    def encode_tokens(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """The chain of blocks and the final norm: (B, L, d) -> (B, L, d)."""


class MaskedForward(NamedTuple):
    """What one masked pass gives."""

    encoded_BQd: Tensor
    """The encoder's tokens of the patches that it read: all of them, or with a decoder the visible ones."""
    masked_BMd: Tensor
    """The tokens at the masked patches, which the heads read."""


def masked_forward(model: PatchEncoder, features: Tensor, mask: Tensor, keep: Tensor | None = None) -> MaskedForward:
    """A pass over features (B, frames, mel_bins) whose patches at ``mask`` (B, M) are masked.

    The tokens at these patches are the encoder's, or the decoder's where there is one. ``keep`` is the pass's
    stochastic depth, as ``draw_keep`` gives it.
    """
    prefix = model.prefix_tokens
    if model.decoder is None:
        encoded_BQd = model.encode_tokens(model.embed_patches(features, mask), keep)[:, prefix:]
        return MaskedForward(encoded_BQd, gather_patches(encoded_BQd, mask))
    columns = patches.full_columns(features.shape[1], model.config)
    visible_BV = visible_patches(mask.to(features.device), model.config.grid[0] * columns)
    all_BLd = model.embed_patches(features)
    front, patches_BQd = all_BLd[:, :prefix], all_BLd[:, prefix:]
    tokens_BLd = torch.cat([front, gather_patches(patches_BQd, visible_BV)], dim=1)
    encoded_BQd = model.encode_tokens(tokens_BLd, keep)[:, prefix:]
    grid_BQd = model.decoder(encoded_BQd, visible_BV, model.mask_embedding, columns)
    return MaskedForward(encoded_BQd, gather_patches(grid_BQd, mask))


class MaskedPasses:
    """The masked passes of one batch, run when an objective first asks for them.

    ``mask_a`` and ``mask_b`` (B, M) are the masks of two passes, ``keep`` their stochastic depth. Without ``mask_b``
    there is one pass with ``mask_a``.

    Attributes:
        made: what the passes gave that were run so far, in their order.
    """

    def __init__(
        self,
        model: PatchEncoder,
        features: Tensor,
        mask_a: Tensor,
        mask_b: Tensor | None = None,
        keep: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        self.model, self.made = model, list[MaskedForward]()
        self._features = features.to(model.device)
        self._raw_BQp = patches.patchify(self._features, model.config)
        self._mask_a, self._mask_b, self._keep = mask_a, mask_b, keep

    def first(self) -> tuple[Tensor, Tensor]:
        """Tokens (B, M, d) and raw values (B, M, values) of the patches at ``mask_a``, from a pass of its own."""
        return self._run(self._mask_a, self._keep[0])

    def second(self) -> tuple[Tensor, Tensor]:
        """The same at ``mask_b``; without one the patches at ``mask_a``, from the first pass where it was run."""
        if self._mask_b is not None:
            return self._run(self._mask_b, self._keep[1])
        if self.made:
            return self.made[0].masked_BMd, gather_patches(self._raw_BQp, self._mask_a)
        return self._run(self._mask_a, self._keep[1])

    def _run(self, mask: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        self.made.append(masked_forward(self.model, self._features, mask, keep))
        return self.made[-1].masked_BMd, gather_patches(self._raw_BQp, mask)
