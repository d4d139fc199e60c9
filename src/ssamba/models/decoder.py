"""The decoder of pretraining that leaves hidden patches out of the encoder, as in MAE (arXiv 2111.06377).

The encoder reads the patches that are shown, in their order. Only the decoder, a short chain of blocks of the same
kind, sees places: the encoder's tokens where patches were shown, one learned token where they were hidden. The heads
read its tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssamba.models import patches

if TYPE_CHECKING:
    from ssamba.models.encoder import Encoder


def shown_patches(mask_BM: Tensor, count: int) -> Tensor:
    """The indices that a mask leaves, sorted: (B, M) of ``count`` patches -> (B, count - M)."""
    hidden_BP = torch.zeros(len(mask_BM), count, dtype=torch.uint8, device=mask_BM.device)
    hidden_BP = hidden_BP.scatter(1, mask_BM, 1)
    # A stable sort puts the shown ones first without a size that depends on values.
    return hidden_BP.argsort(dim=1, stable=True)[:, : count - mask_BM.shape[1]]


class Decoder(nn.Module):
    """Tokens of the shown patches -> tokens of all patches.

    ``chain`` is an encoder that gives its positions, its tokens in front, its blocks and its norm. It has no patch
    layer here, and no mask embedding: the token of hidden patches is the encoder's.
    """

    def __init__(self, chain: Encoder) -> None:
        super().__init__()
        self.chain = chain
        chain.register_module("patch_embed", None)
        chain.register_parameter("mask_embedding", None)

    def forward(self, tokens_BSd: Tensor, shown_BS: Tensor, mask_embedding_11d: Tensor, columns: int) -> Tensor:
        """(B, S, d) at patch indices (B, S) -> (B, F*T, d) of a grid with ``columns`` patches along time."""
        chain = self.chain
        rows, cols = chain.config.grid
        batch, _, d = tokens_BSd.shape
        fill = mask_embedding_11d.to(tokens_BSd.dtype).expand(batch, rows * columns, d)
        grid_BPd = fill.scatter(1, shown_BS[..., None].expand_as(tokens_BSd), tokens_BSd)
        positions = patches.resize_positions(chain.positions, (rows, cols), (rows, columns))
        front = [token.expand(batch, -1, -1) for token in chain.prefix()]
        return chain.encode_tokens(torch.cat([*front, grid_BPd], dim=1) + positions)[:, chain.prefix_tokens :]
