"""The SSAMBA encoder: patches, CLS and positions, a chain of block pairs, the final norm, the pretraining losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from ssamba import patches
from ssamba.config import Config
from ssamba.errors import ConfigError
from ssamba.models.blocks import BLOCKS, NORM_EPS, BlockPair
from ssamba.models.embedding import Embeddings, embed_audio
from ssamba.models.heads import PretrainingHeads
from ssamba.objectives import GENERATIVE_WEIGHT, OBJECTIVES, info_nce, reconstruction


class SSAMBA(nn.Module):
    """Bidirectional Mamba on log-mel patches (arXiv 2405.11831).

    ``heads=True`` adds the two pretraining heads and the mask embedding's use in ``losses``. A new model is initialised
    from ``generator``, or from seed 0 without one.
    """

    def __init__(self, config: Config, heads: bool = False, generator: Generator | None = None) -> None:
        super().__init__()
        self.config = config
        rows, cols = config.grid
        d = config.width
        self.patch_embed = nn.Conv2d(
            1, d, (config.patch_frequency, config.patch_time), (config.stride_frequency, config.stride_time)
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, d))
        self.positions = nn.Parameter(torch.empty(1, 1 + rows * cols, d))
        self.mask_embedding = nn.Parameter(torch.empty(1, 1, d))
        self.pairs = nn.ModuleList(BlockPair(config) for _ in range(config.depth // BLOCKS))
        self.norm = nn.LayerNorm(d, eps=NORM_EPS)
        self.heads = PretrainingHeads(config) if heads else None
        if not self.positions.is_meta:
            self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights anew (REFERENCE.md, "Initialisation")."""
        generator = generator or torch.Generator().manual_seed(0)
        bound = self.config.patch_size**-0.5
        self.patch_embed.weight.uniform_(-bound, bound, generator=generator)
        assert self.patch_embed.bias is not None
        self.patch_embed.bias.uniform_(-bound, bound, generator=generator)
        nn.init.trunc_normal_(self.cls_token, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.positions, std=0.02, generator=generator)
        nn.init.xavier_normal_(self.mask_embedding, generator=generator)
        for pair in self.pairs:
            assert isinstance(pair, BlockPair)
            pair.reset_parameters(generator)
        self.norm.reset_parameters()
        if self.heads is not None:
            self.heads.reset_parameters(generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.positions.device

    def embed_patches(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens with positions: (B, frames, mel_bins) -> (B, 1 + F*T, d).

        ``mask`` (B, M) patch indices: those patches are replaced by the mask embedding before the positions are added.
        """
        self._check(features)
        features = features.to(self.positions)
        tokens_BPd = self.patch_embed(features.transpose(1, 2)[:, None]).flatten(2).transpose(1, 2)
        if mask is not None:
            index = mask.to(tokens_BPd.device)[..., None].expand(-1, -1, tokens_BPd.shape[-1])
            fill = self.mask_embedding.to(tokens_BPd.dtype).expand(index.shape)
            tokens_BPd = tokens_BPd.scatter(1, index, fill)
        rows, cols = self.config.grid
        here = (features.shape[1] - self.config.patch_time) // self.config.stride_time + 1
        positions = patches.resize_positions(self.positions, (rows, cols), (rows, here))
        cls = self.cls_token.expand(features.shape[0], -1, -1)
        return torch.cat([cls, tokens_BPd], dim=1) + positions

    def _check(self, features: Tensor) -> None:
        c = self.config
        if features.dim() != 3 or features.shape[2] != c.mel_bins or features.shape[1] < c.patch_time:
            raise ConfigError(
                f"features of shape {tuple(features.shape)}: give (batch, frames, {c.mel_bins}) with at least "
                f"{c.patch_time} frames"
            )

    def encode_tokens(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """The chain of blocks and the final norm: (B, L, d) -> (B, L, d). ``keep`` comes from ``draw_keep``."""
        x, residual = tokens, None
        for i, pair in enumerate(self.pairs):
            x, residual = pair(x, residual, None if keep is None else keep[BLOCKS * i : BLOCKS * (i + 1)])
        assert residual is not None
        x = x if keep is None else x * keep[-1].to(x.dtype)[:, None, None]
        # The final norm acts twice, with the same weights: official checkpoints were trained so.
        return self.norm(self.norm(residual + x))

    def draw_keep(self, batch: int, generator: Generator) -> Tensor | None:
        """Stochastic depth for one pass: (depth + 1, batch) factors, 0 or 1 / (1 - rate), None when the rate is 0.

        The rate rises linearly from 0 to ``drop_path``; the last row belongs to the last addition.
        """
        if self.config.drop_path == 0:
            return None
        rates = torch.linspace(0, self.config.drop_path, self.config.depth)
        kept = 1 - torch.cat([rates.new_zeros(1), rates])[:, None]
        draw = torch.rand(self.config.depth + 1, batch, generator=generator)
        return ((draw < kept) / kept).to(self.device, non_blocking=True)

    def encode(self, features: Tensor) -> Tensor:
        """Normalised log-mel (B, frames, mel_bins) -> (B, 1 + F*T, d): CLS, then patches, frequency-major.

        Frames beyond the last full patch column are left out. A length other than the model's grid has its positions
        cut or interpolated as for fine-tuning. Raises ``ConfigError`` for other shapes.
        """
        return self.encode_tokens(self.embed_patches(features.to(self.device)))

    forward = encode

    def losses(
        self,
        features: Tensor,
        mask_a: Tensor,
        mask_b: Tensor | None = None,
        objective: str = "joint",
        keep: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> dict[str, Tensor]:
        """Pretraining losses of masked patches, from features (B, frames, mel_bins).

        ``mask_a`` (B, M) hides patches for the discriminative head, ``mask_b`` for the generative one, each in its own
        pass; without ``mask_b`` one pass with ``mask_a`` serves both heads. Returns scalars: ``loss`` (nce + 10 mse for
        the joint objective), ``nce`` and ``accuracy``, ``mse``, as far as the objective has them. ``keep`` holds the
        stochastic depth of the two passes.
        """
        if self.heads is None:
            raise ConfigError("this model has no pretraining heads: load it with heads=True")
        if objective not in OBJECTIVES:
            raise ConfigError(f"objective '{objective}': choose one of {', '.join(OBJECTIVES)}")
        features = features.to(self.device)
        raw = patches.patchify(features, self.config)
        out: dict[str, Tensor] = {}
        hidden: Tensor | None = None
        if objective != "generative":
            hidden = self._masked_tokens(features, mask_a, keep[0])
            out["nce"], out["accuracy"] = info_nce(self.heads.discriminative(hidden), gather_patches(raw, mask_a))
        if objective != "discriminative":
            if mask_b is None:
                mask_b = mask_a
            else:
                hidden = None
            if hidden is None:
                hidden = self._masked_tokens(features, mask_b, keep[1])
            out["mse"] = reconstruction(self.heads.generative(hidden), gather_patches(raw, mask_b))
        parts = [out[k] * w for k, w in (("nce", 1.0), ("mse", GENERATIVE_WEIGHT)) if k in out]
        out["loss"] = parts[0] + parts[1] if len(parts) == 2 else parts[0] if "nce" in out else out["mse"]
        return out

    def _masked_tokens(self, features: Tensor, mask: Tensor, keep: Tensor | None) -> Tensor:
        tokens = self.encode_tokens(self.embed_patches(features, mask), keep)
        return gather_patches(tokens[:, 1:], mask)

    @torch.no_grad()
    def reconstruct(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features with the masked patches replaced by the generative head's drawing: (B, frames, mel_bins).

        Frames and bins beyond the last full patch are left out. Raises ``ConfigError`` without heads, and for patches
        that overlap.
        """
        if self.heads is None:
            raise ConfigError("this model has no pretraining heads: load it with heads=True")
        if not self.config.tiles:
            raise ConfigError("patches of this model do not tile the features: load it without another stride")
        features = features.to(self.device)
        raw = patches.patchify(features, self.config)
        drawn = self.heads.generative(self._masked_tokens(features, mask, None)).to(raw.dtype)
        index = mask.to(raw.device)[..., None].expand_as(drawn)
        n_columns = (features.shape[1] - self.config.patch_time) // self.config.stride_time + 1
        return patches.unpatchify(raw.scatter(1, index, drawn), self.config, n_columns)

    def embed(self, audio: Any, sample_rate: int = 16000, whole: bool = False) -> Embeddings:
        """Embeddings of recordings in memory; see ``ssamba.models.embedding.embed_audio``."""
        return embed_audio(self, audio, sample_rate, whole)

    def with_grid(self, stride: int | None = None, frames: int | None = None) -> SSAMBA:
        """The same weights on another patch grid, positions resized as for fine-tuning.

        ``stride`` is used along both axes. Raises ``ConfigError`` when patches would not fit.
        """
        changes: dict[str, int] = {}
        if stride is not None:
            changes |= {"stride_frequency": stride, "stride_time": stride}
        if frames is not None:
            changes["frames"] = frames
        config = self.config.replace(**changes)
        with torch.device("meta"):
            other = SSAMBA(config, heads=self.heads is not None)
        state = self.state_dict()
        state["positions"] = patches.resize_positions(state["positions"], self.config.grid, config.grid)
        other.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
        return other.train(self.training)


def gather_patches(values_BPx: Tensor, mask_BM: Tensor) -> Tensor:
    """Rows of (B, P, x) at patch indices (B, M) -> (B, M, x)."""
    index = mask_BM.to(values_BPx.device)[..., None].expand(-1, -1, values_BPx.shape[-1])
    return values_BPx.gather(1, index)
