"""The decoder of pretraining, whose encoder reads the visible patches alone, as in MAE (arXiv 2111.06377).

The encoder reads the visible patches in their order. Only the decoder, a short chain of layers of the same kind, has a
token at each place of the grid: the encoder's at visible patches, one learned token at masked ones. The heads read its
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssamba.models.token_chain import TokenChain, with_positions


def visible_patches(mask_BM: Tensor, count: int) -> Tensor:
    """The indices that a mask leaves, sorted: (B, M) of ``count`` patches -> (B, count - M)."""
    masked_BQ = torch.zeros(len(mask_BM), count, dtype=torch.uint8, device=mask_BM.device)
    masked_BQ = masked_BQ.scatter(1, mask_BM, 1)
    # A stable sort puts the visible ones first without a size that depends on values.
    return masked_BQ.argsort(dim=1, stable=True)[:, : count - mask_BM.shape[1]]


class Decoder(nn.Module):
    """Tokens of the visible patches -> tokens of all patches. The token of masked patches is the encoder's."""

    def __init__(self, chain: TokenChain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, tokens_BVd: Tensor, visible_BV: Tensor, mask_embedding_11d: Tensor, columns: int) -> Tensor:
        """(B, V, d) at patch indices (B, V) -> (B, F*T, d) of a grid with ``columns`` patches along time."""
        chain = self.chain
        batch, _, d = tokens_BVd.shape
        fill = mask_embedding_11d.to(tokens_BVd.dtype).expand(batch, chain.config.grid[0] * columns, d)
        grid_BQd = fill.scatter(1, visible_BV[..., None].expand_as(tokens_BVd), tokens_BVd)
        return chain.encode_tokens(with_positions(chain, grid_BQd, columns))[:, chain.prefix_tokens :]
