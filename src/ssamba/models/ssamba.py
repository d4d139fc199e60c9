"""The SSAMBA encoder: a CLS token, a chain of block pairs, the final norm.

``MIXERS`` names what mixes the tokens in a pair. Another mixer is a subclass of ``BlockPair``, a row here, and its
operators in ``ssamba.ops``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from ssamba.models.bimamba import MambaPair
from ssamba.models.block_pair import (
    BLOCKS,
    NORM_EPS,
    BlockPair,
    InferencePlan,
    ResidualState,
    add_to_stream,
    prepare_together,
)
from ssamba.models.encoder import Encoder
from ssamba.models.token_chain import TokenChain
from ssamba.utils.torch_defaults import HOST_FLOAT32, of_new_weights

MIXERS: dict[str, type[BlockPair]] = {"ssamba": MambaPair}
"""The pair of blocks of each value of ``Config.encoder`` that is a chain of pairs."""


class SSAMBAChain(TokenChain):
    """A CLS token, pairs of bidirectional Mamba blocks, the final norm."""

    prefix_tokens: ClassVar[int] = 1
    chain: ClassVar[str] = "pairs"
    plan: InferencePlan
    """How inference spends memory and time: the defaults in a new model. Not part of its state."""

    def _make_layers(self) -> None:
        d = self.config.width
        self.plan = InferencePlan()
        self.cls_token = nn.Parameter(torch.empty(1, 1, d, **of_new_weights()))
        pair_of, count = MIXERS[self.config.encoder], self.config.depth // BLOCKS
        pairs = [pair_of(self.config) for _ in range(count)]
        for pair in pairs[count - pair_of.pairs_that_keep_states(self.config) :]:
            pair.keep_states = True
        self.pairs = nn.ModuleList(pairs)
        self.norm = nn.LayerNorm(d, eps=NORM_EPS, **of_new_weights())

    def _reset_layers(self, generator: Generator) -> None:
        for pair in self.pairs:
            assert isinstance(pair, BlockPair)
            pair.reset_parameters(generator)

    def prefix(self) -> list[nn.Parameter]:
        """The CLS token, (1, 1, d)."""
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
        drop_scale = None if keep is None else keep.to(tokens.device, non_blocking=True)
        state, scale = ResidualState(tokens), self.config.residual_scale
        pairs = [pair for pair in self.pairs if isinstance(pair, BlockPair)]
        prepared = prepare_together(pairs, tokens, self.plan.prepare_together_bytes)
        del tokens  # in inference the first pair may then free them
        for i, pair in enumerate(self.pairs):
            if collect and state.stream_BLd is not None:
                stream = state.stream_BLd
                layers.append(stream.clone() if state.normed else scale * stream + state.x_BLd)
            # From the second pair on both tensors were made here, and in inference nothing else needs them.
            overwrite = (inplace or i > 0) and not torch.is_grad_enabled()
            # The final norm reads the last sum before it is rounded.
            fuse_next_norm = drop_scale is None and i + 1 < len(self.pairs)
            of_pair = None if drop_scale is None else drop_scale[BLOCKS * i : BLOCKS * (i + 1)]
            following = self.pairs[i + 1] if fuse_next_norm else None
            state = pair(state, of_pair, overwrite, fuse_next_norm, self.plan, following, prepared)
        x, residual, *_ = state
        weight, bias = self.norm.weight, self.norm.bias
        x, residual = add_to_stream(x, residual, None if drop_scale is None else drop_scale[-1], weight, bias, scale)
        del residual, state, prepared
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
        rates = torch.linspace(0, self.config.drop_path, self.config.depth, **HOST_FLOAT32)
        kept = 1 - torch.cat([rates.new_zeros(1), rates])[:, None]
        draw = torch.rand(self.config.depth + 1, batch, generator=generator, **HOST_FLOAT32)
        return (draw < kept) / kept


class SSAMBA(SSAMBAChain, Encoder):
    """Bidirectional Mamba on log-mel patches (arXiv 2405.11831)."""

    _chain_class = SSAMBAChain
