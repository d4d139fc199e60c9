"""A chain of layers that tokens go through: what an encoder and the decoder of pretraining share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from ssamba.models import patches
from ssamba.models.config import Config
from ssamba.ops.derivatives import beyond_backward
from ssamba.utils.torch_defaults import HOST_FLOAT32, of_new_weights


class TokenChain(nn.Module, ABC):
    """Prefix tokens, positions, layers and a final norm, without anything that reads or writes patches.

    A kind of chain names its prefix tokens, makes its layers and runs them. An encoder of that kind adds the patch
    layer (``ssamba.models.encoder``); the decoder of pretraining needs no more than the chain.
    """

    prefix_tokens: ClassVar[int]
    """Number of learned tokens before the patches (CLS, distillation)."""
    chain: ClassVar[str]
    """Name of the list of modules that the tokens go through in turn."""
    norm: nn.LayerNorm

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._make_inputs()
        self._make_layers()

    def _make_inputs(self) -> None:
        """Create what comes before the layers."""
        rows, cols = self.config.grid
        self.positions = nn.Parameter(
            torch.empty(1, self.prefix_tokens + rows * cols, self.config.width, **of_new_weights())
        )

    @abstractmethod
    def _make_layers(self) -> None:
        """Create the prefix tokens, the layers and the final norm."""

    @abstractmethod
    def _reset_layers(self, generator: Generator) -> None:
        """Draw the weights that ``_make_layers`` made, but for the prefix tokens and the norm."""

    @abstractmethod
    def prefix(self) -> list[nn.Parameter]:
        """The prefix tokens, each (1, 1, d)."""

    @abstractmethod
    def _run_layers(
        self, tokens: Tensor, keep: Tensor | None, inplace: bool = False, collect: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The layers and the final norm: (B, L, d) -> (B, L, d), and with ``collect`` the tokens after each layer.

        Those of the last layer come after the final norm. ``inplace``: ``tokens`` may be overwritten.
        """

    @abstractmethod
    def draw_keep(self, batch: int, generator: Generator) -> Tensor | None:
        """Stochastic depth for one pass, None when the rate is 0."""

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Steps of the chain: pairs of blocks in SSAMBA, blocks in SSAST."""

    def encode_tokens(
        self, tokens: Tensor, keep: Tensor | None = None, layers: list[Tensor] | None = None, own: bool = False
    ) -> Tensor:
        """The layers and the final norm: (B, L, d) -> (B, L, d). ``keep`` comes from ``draw_keep``.

        ``layers`` is extended by the tokens as they leave each layer, the last ones after the final norm. ``own``:
        ``tokens`` may be overwritten.
        """
        out, collected = self._run_layers(tokens, keep, own, layers is not None)
        if layers is not None:
            layers.extend(collected)
        return out

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights anew (docs/reference.md, "Initialisation")."""
        generator = generator or torch.Generator().manual_seed(0)
        weight, bias, mask_embedding = self._input_weights()
        bound = self.config.patch_size**-0.5
        weight.uniform_(-bound, bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
        for token in self.prefix():
            nn.init.trunc_normal_(token, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.positions, std=0.02, generator=generator)
        nn.init.xavier_normal_(mask_embedding, generator=generator)
        self._reset_layers(generator)
        self.norm.reset_parameters()

    def _input_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight and bias of the patch layer, and the mask embedding.

        A chain without them draws and drops them, so that a seed gives a decoder the same weights as in version 0.1.
        """
        c = self.config
        return (
            torch.empty(c.width, c.patch_size, **HOST_FLOAT32),
            torch.empty(c.width, **HOST_FLOAT32),
            torch.empty(1, 1, c.width, **HOST_FLOAT32),
        )


def with_positions(chain: TokenChain, patches_BQd: Tensor, columns: int) -> Tensor:
    """Patch tokens (B, F*T, d) behind the chain's prefix tokens, all with their positions, for T = ``columns``."""
    rows, cols = chain.config.grid
    positions = patches.resize_positions(chain.positions, (rows, cols), (rows, columns))
    if torch.is_grad_enabled() or beyond_backward() or torch.compiler.is_compiling():
        front = [token.expand(patches_BQd.shape[0], -1, -1) for token in chain.prefix()]
        return torch.cat([*front, patches_BQd], dim=1) + positions
    batch, n = patches_BQd.shape[0], chain.prefix_tokens
    dtype = torch.promote_types(patches_BQd.dtype, positions.dtype)
    tokens_BLd = patches_BQd.new_empty(batch, *positions.shape[1:], dtype=dtype)
    torch.add(patches_BQd, positions[:, n:], out=tokens_BLd[:, n:])  # one pass over memory instead of two
    for i, token in enumerate(chain.prefix()):
        tokens_BLd[:, i] = token[:, 0] + positions[:, i]
    return tokens_BLd
