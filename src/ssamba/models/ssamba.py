"""The SSAMBA encoder: a CLS token, a chain of block pairs, the final norm."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from ssamba.models.bimamba import BLOCKS, NORM_EPS, BlockPair, Passed, add_to_stream
from ssamba.models.encoder import Encoder
from ssamba.models.token_chain import TokenChain


class SSAMBAChain(TokenChain):
    """A CLS token, pairs of bidirectional Mamba blocks, the final norm."""

    prefix_tokens: ClassVar[int] = 1
    chain: ClassVar[str] = "pairs"

    def _make_layers(self) -> None:
        d = self.config.width
        self.cls_token = nn.Parameter(torch.empty(1, 1, d))
        self.pairs = nn.ModuleList(BlockPair(self.config) for _ in range(self.config.depth // BLOCKS))
        self.norm = nn.LayerNorm(d, eps=NORM_EPS)

    def _reset_layers(self, generator: Generator) -> None:
        for pair in self.pairs:
            assert isinstance(pair, BlockPair)
            pair.reset_parameters(generator)

    def prefix(self) -> list[nn.Parameter]:
        """The prefix tokens, each (1, 1, d)."""
        return [self.cls_token]

    @property
    def n_layers(self) -> int:
        """Pairs of blocks."""
        return len(self.pairs)

    def _run_layers(
        self, tokens: Tensor, keep: Tensor | None, inplace: bool = False, collect: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``TokenChain``; with ``collect`` the tokens as they leave each pair."""
        layers: list[Tensor] = []
        keep = None if keep is None else keep.to(tokens.device, non_blocking=True)
        passed, scale = Passed(tokens), self.config.residual_scale
        del tokens  # in inference the first pair may then free them
        for i, pair in enumerate(self.pairs):
            if collect and passed.stream_BLd is not None:
                stream = passed.stream_BLd
                layers.append(stream.clone() if passed.joined else scale * stream + passed.x_BLd)
            # From the second pair on both are the chain's own, and in inference nothing else needs them.
            reuse = (inplace or i > 0) and not torch.is_grad_enabled()
            join = keep is None and i + 1 < len(self.pairs)  # the final norm reads the last sum before it is rounded
            passed = pair(passed, None if keep is None else keep[BLOCKS * i : BLOCKS * (i + 1)], reuse, join)
        x, residual, _ = passed
        weight, bias = self.norm.weight, self.norm.bias
        x, residual = add_to_stream(x, residual, None if keep is None else keep[-1], weight, bias, scale)
        del residual, passed
        # The final norm acts twice, with the same weights: official checkpoints were trained so.
        tokens = add_to_stream(x, None, None, weight, bias)[0]
        if collect:
            layers.append(tokens)
        return tokens, layers

    def draw_keep(self, batch: int, generator: Generator) -> Tensor | None:
        """Stochastic depth for one pass: (depth + 1, batch) factors, 0 or 1 / (1 - rate), None when the rate is 0.

        The rate rises linearly from 0 to ``drop_path``; the last row belongs to the last addition.
        """
        if self.config.drop_path == 0:
            return None
        rates = torch.linspace(0, self.config.drop_path, self.config.depth)
        kept = 1 - torch.cat([rates.new_zeros(1), rates])[:, None]
        draw = torch.rand(self.config.depth + 1, batch, generator=generator)
        return (draw < kept) / kept


class SSAMBA(SSAMBAChain, Encoder):
    """Bidirectional Mamba on log-mel patches (arXiv 2405.11831)."""

    _chain_class = SSAMBAChain
