"""The SSAST encoder (arXiv 2110.09784): a distilled ViT on log-mel patches, SSAMBA's peer.

Two prefix tokens (CLS and distillation), blocks of attention and MLP, a final norm; key forms and norms are
those of docs/reference.md, "Official checkpoints". Shape letters: ``ssamba.ops.mamba.naive``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.token_chain import TokenChain
from ssamba.ops.derivatives import beyond_backward
from ssamba.ops.linear_layer.module import LinearLayer
from ssamba.utils.torch_defaults import HOST_FLOAT32, of_new_weights

BLOCK_NORM_EPS = 1e-6
BRANCHES = 2
"""Additions to the residual stream in one block: attention, MLP."""


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, (B, L, d) -> (B, L, d)."""

    written_out = False
    """Form the L x L matrix of weights in memory, as the published SSAST does, instead of the fused product."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.attention_heads
        self.qkv = LinearLayer(config.width, 3 * config.width, **of_new_weights())
        self.proj = LinearLayer(config.width, config.width, **of_new_weights())

    def forward(self, x_BLd: Tensor) -> Tensor:
        """Attention and its output product."""
        q, k, v = self.qkv(x_BLd).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.written_out or beyond_backward():  # the fused product has one backward and nothing else
            weights_BHLL = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
            out_BHLD = weights_BHLL @ v
        else:
            out_BHLD = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out_BHLD.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and an MLP with GELU, four times as wide, each added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.width
        self.norm1 = nn.LayerNorm(d, eps=BLOCK_NORM_EPS, **of_new_weights())
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(d, eps=BLOCK_NORM_EPS, **of_new_weights())
        self.fc1 = LinearLayer(d, 4 * d, **of_new_weights())
        self.fc2 = LinearLayer(4 * d, d, **of_new_weights())

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Truncated normal weights of deviation 0.02, biases 0."""
        for layer in (self.attn.qkv, self.attn.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)
        self.norm1.reset_parameters()
        self.norm2.reset_parameters()

    def forward(self, x_BLd: Tensor, keep_2B: Tensor | None) -> Tensor:
        """One block; ``keep_2B`` scales the two additions per clip (stochastic depth)."""
        added = self.attn(self.norm1(x_BLd))
        x_BLd = x_BLd + (added if keep_2B is None else added * keep_2B[0].to(added.dtype)[:, None, None])
        added = self.fc2(F.gelu(self.fc1(self.norm2(x_BLd))))
        return x_BLd + (added if keep_2B is None else added * keep_2B[1].to(added.dtype)[:, None, None])


class SSASTChain(TokenChain):
    """Prefix tokens CLS and distillation, transformer blocks, the final norm."""

    prefix_tokens: ClassVar[int] = 2
    chain: ClassVar[str] = "blocks"

    def _make_layers(self) -> None:
        d = self.config.width
        self.cls_token = nn.Parameter(torch.empty(1, 1, d, **of_new_weights()))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, d, **of_new_weights()))
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(self.config.depth))
        self.norm = nn.LayerNorm(d, eps=BLOCK_NORM_EPS, **of_new_weights())

    def _reset_layers(self, generator: Generator) -> None:
        for block in self.blocks:
            assert isinstance(block, Block)
            block.reset_parameters(generator)

    def prefix(self) -> list[nn.Parameter]:
        """The prefix tokens, each (1, 1, d)."""
        return [self.cls_token, self.distillation_token]

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return len(self.blocks)

    def _run_layers(
        self, tokens: Tensor, keep: Tensor | None, inplace: bool = False, collect: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """See ``TokenChain``; ``inplace`` changes nothing here, since each block makes new tokens."""
        layers: list[Tensor] = []
        keep = None if keep is None else keep.to(tokens.device, non_blocking=True)
        for i, block in enumerate(self.blocks):
            if collect and i > 0:
                layers.append(tokens)
            tokens = block(tokens, None if keep is None else keep[BRANCHES * i : BRANCHES * (i + 1)])
        tokens = self.norm(tokens)
        if collect:
            layers.append(tokens)
        return tokens, layers

    def draw_keep(self, batch: int, generator: Generator) -> Tensor | None:
        """Stochastic depth for one pass: (2 depth, batch) factors, 0 or 1 / (1 - rate), None when the rate is 0.

        The rate rises linearly from 0 in the first block to ``drop_path`` in the last.
        """
        if self.config.drop_path == 0:
            return None
        rates = torch.linspace(0, self.config.drop_path, self.config.depth, **HOST_FLOAT32).repeat_interleave(BRANCHES)
        kept = 1 - rates[:, None]
        draw = torch.rand(len(rates), batch, generator=generator, **HOST_FLOAT32)
        return (draw < kept) / kept


class SSAST(SSASTChain, Encoder):
    """A transformer on log-mel patches, with fused attention."""

    _chain_class = SSASTChain

    def write_out_attention(self, on: bool = True) -> None:
        """Form attention's weights in memory (quadratic), for comparisons and second backwards, with the same results.

        The fused product cannot be differentiated twice: torch raises RuntimeError.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn.written_out = on
