"""What all encoders share: patches, positions, pretraining losses, reconstruction, embedding, classification.

A kind of encoder adds its tokens in front, its chain of blocks and their initial weights; nothing outside
``ssamba.models`` knows which kind it holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Generator, Tensor, nn

from ssamba.models import patches
from ssamba.models.classifier import Classification, Classifier
from ssamba.models.config import Config
from ssamba.models.decoder import Decoder, shown_patches
from ssamba.models.heads import PretrainingHeads
from ssamba.models.losses import GENERATIVE_WEIGHT, OBJECTIVES, info_nce, reconstruction
from ssamba.utils.errors import ConfigError


class Seen(NamedTuple):
    """What a pass of pretraining made."""

    encoded_BPd: Tensor
    """The encoder's tokens of the patches that it read."""
    masked_BMd: Tensor
    """The tokens at the masked patches, which the heads read."""


class Encoder(nn.Module, ABC):
    """Log-mel patches -> tokens. ``heads=True`` adds the two pretraining heads, ``classification`` a classifier.

    A new model is initialised from ``generator``, or from seed 0 without one.
    """

    prefix_tokens: ClassVar[int]
    """Learned tokens in front of the patches."""
    chain: ClassVar[str]
    """Name of the list of modules that the tokens go through in turn."""
    norm: nn.LayerNorm

    def __init__(
        self,
        config: Config,
        heads: bool = False,
        classification: Classification | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        rows, cols = config.grid
        d = config.width
        self.patch_embed = nn.Conv2d(
            1, d, (config.patch_frequency, config.patch_time), (config.stride_frequency, config.stride_time)
        )
        self.positions = nn.Parameter(torch.empty(1, self.prefix_tokens + rows * cols, d))
        self.mask_embedding = nn.Parameter(torch.empty(1, 1, d))
        self._make_layers()
        self.heads = PretrainingHeads(config) if heads else None
        self.decoder: Decoder | None = None
        if heads and config.decoder_depth:
            self.decoder = Decoder(type(self)(config.decoder(), generator=generator))
        self.classifier = None if classification is None else Classifier(config, classification)
        if not self.positions.is_meta:
            self.reset_parameters(generator)

    @abstractmethod
    def _make_layers(self) -> None:
        """Create the tokens in front, the blocks and the final norm."""

    @abstractmethod
    def _reset_layers(self, generator: Generator) -> None:
        """Draw the weights that ``_make_layers`` made, but for the tokens in front and the norm."""

    @abstractmethod
    def prefix(self) -> list[nn.Parameter]:
        """The tokens in front, each (1, 1, d)."""

    @abstractmethod
    def encode_tokens(
        self, tokens: Tensor, keep: Tensor | None = None, layers: list[Tensor] | None = None, own: bool = False
    ) -> Tensor:
        """The chain of blocks and the final norm: (B, L, d) -> (B, L, d). ``keep`` comes from ``draw_keep``.

        ``layers`` takes the tokens as they leave each step of the chain, the last ones after the final norm. ``own``:
        the caller needs ``tokens`` no more, so they may be overwritten.
        """

    @abstractmethod
    def draw_keep(self, batch: int, generator: Generator) -> Tensor | None:
        """Stochastic depth for one pass, None when the rate is 0."""

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights anew (REFERENCE.md, "Initialisation")."""
        generator = generator or torch.Generator().manual_seed(0)
        bound = self.config.patch_size**-0.5
        self.patch_embed.weight.uniform_(-bound, bound, generator=generator)
        assert self.patch_embed.bias is not None
        self.patch_embed.bias.uniform_(-bound, bound, generator=generator)
        for token in self.prefix():
            nn.init.trunc_normal_(token, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.positions, std=0.02, generator=generator)
        nn.init.xavier_normal_(self.mask_embedding, generator=generator)
        self._reset_layers(generator)
        self.norm.reset_parameters()
        for part in (self.heads, self.classifier):
            if part is not None:
                part.reset_parameters(generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.positions.device

    def embed_patches(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens with positions: (B, frames, mel_bins) -> (B, prefix + F*T, d).

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
        positions = patches.resize_positions(self.positions, (rows, cols), (rows, self._columns(features.shape[1])))
        front = [token.expand(features.shape[0], -1, -1) for token in self.prefix()]
        return torch.cat([*front, tokens_BPd], dim=1) + positions

    def _check(self, features: Tensor) -> None:
        c = self.config
        if features.dim() != 3 or features.shape[2] != c.mel_bins or features.shape[1] < c.patch_time:
            raise ConfigError(
                f"features of shape {tuple(features.shape)}: give (batch, frames, {c.mel_bins}) with at least "
                f"{c.patch_time} frames"
            )

    def encode(self, features: Tensor) -> Tensor:
        """Normalised log-mel (B, frames, mel_bins) -> (B, prefix + F*T, d), the patches frequency-major.

        Frames beyond the last full patch column are left out. A length other than the model's grid has its positions
        cut or interpolated as for fine-tuning. Raises ``ConfigError`` for other shapes.
        """
        return self.encode_tokens(self.embed_patches(features.to(self.device)), own=True)

    forward = encode

    def encode_layers(self, features: Tensor) -> list[Tensor]:
        """As ``encode``, but the tokens after each step of the chain: a pair of blocks in SSAMBA, a block in SSAST.

        Each (B, prefix + F*T, d). All but the last are the residual stream as it is, without a norm; the last is what
        ``encode`` gives.
        """
        layers: list[Tensor] = []
        self.encode_tokens(self.embed_patches(features.to(self.device)), layers=layers)
        return layers

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """How many ``encode_layers`` gives."""

    def layer_of(self, name: str) -> int:
        """Where a parameter of that name acts, in the order of ``encode_layers``.

        0 for what comes before the first step of the chain (patches, tokens in front, positions), ``n_layers`` for the
        last step and what follows it (final norm, classifier).
        """
        first, _, rest = name.partition(".")
        if first == self.chain:
            return 1 + int(rest.partition(".")[0])
        return self.n_layers if first in ("norm", "classifier") else 0

    def losses(
        self,
        features: Tensor,
        mask_a: Tensor,
        mask_b: Tensor | None = None,
        objective: str = "joint",
        keep: tuple[Tensor | None, Tensor | None] = (None, None),
        seen: list[Seen] | None = None,
    ) -> dict[str, Tensor]:
        """Pretraining losses of masked patches, from features (B, frames, mel_bins).

        ``mask_a`` (B, M) hides patches for the discriminative head, ``mask_b`` for the generative one, each in its own
        pass; without ``mask_b`` one pass with ``mask_a`` serves both heads. Returns scalars: ``loss`` (nce + 10 mse for
        the joint objective), ``nce`` and ``accuracy``, ``mse``, as far as the objective has them. ``keep`` holds the
        stochastic depth of the two passes. ``seen`` takes what each pass made, for a loss of the caller's own.
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
            hidden = self._masked_tokens(features, mask_a, keep[0], seen)
            out["nce"], out["accuracy"] = info_nce(self.heads.discriminative(hidden), gather_patches(raw, mask_a))
        if objective != "discriminative":
            if mask_b is None:
                mask_b = mask_a
            else:
                hidden = None
            if hidden is None:
                hidden = self._masked_tokens(features, mask_b, keep[1], seen)
            out["mse"] = reconstruction(self.heads.generative(hidden), gather_patches(raw, mask_b))
        parts = [out[k] * w for k, w in (("nce", 1.0), ("mse", GENERATIVE_WEIGHT)) if k in out]
        out["loss"] = parts[0] + parts[1] if len(parts) == 2 else parts[0] if "nce" in out else out["mse"]
        return out

    def _masked_tokens(
        self, features: Tensor, mask: Tensor, keep: Tensor | None, seen: list[Seen] | None = None
    ) -> Tensor:
        """The masked patches' tokens (B, M, d): the encoder's, or the decoder's where there is one."""
        if self.decoder is None:
            encoded_BPd = self.encode_tokens(self.embed_patches(features, mask), keep)[:, self.prefix_tokens :]
            masked_BMd = gather_patches(encoded_BPd, mask)
        else:
            columns = self._columns(features.shape[1])
            shown_BS = shown_patches(mask.to(features.device), self.config.grid[0] * columns)
            all_BLd = self.embed_patches(features)
            front, patches_BPd = all_BLd[:, : self.prefix_tokens], all_BLd[:, self.prefix_tokens :]
            tokens_BLd = torch.cat([front, gather_patches(patches_BPd, shown_BS)], dim=1)
            encoded_BPd = self.encode_tokens(tokens_BLd, keep)[:, self.prefix_tokens :]
            grid_BPd = self.decoder(encoded_BPd, shown_BS, self.mask_embedding, columns)
            masked_BMd = gather_patches(grid_BPd, mask)
        if seen is not None:
            seen.append(Seen(encoded_BPd, masked_BMd))
        return masked_BMd

    def _columns(self, frames: int) -> int:
        """Patches along time of so many frames."""
        return (frames - self.config.patch_time) // self.config.stride_time + 1

    def classify(self, features: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits (B, classes), or (B, seconds, classes) of a model that labels each second, from normalised log-mel.

        Raises ``ConfigError`` without a classifier.
        """
        return self._logits(self.encode_tokens(self.embed_patches(features.to(self.device)), keep), features.shape[1])

    @torch.no_grad()
    def classifier_values(self, features: Tensor) -> Tensor:
        """What the classifier's linear layer reads of normalised log-mel: (B, values), or (B, seconds, d).

        Raises ``ConfigError`` without a classifier.
        """
        tokens_BLd = self.encode_tokens(self.embed_patches(features.to(self.device)))
        return self._classifier().normed(tokens_BLd, self.prefix_tokens, self._columns(features.shape[1]))

    def _logits(self, tokens_BLd: Tensor, frames: int) -> Tensor:
        """The classifier's logits (B, classes) from the tokens (B, L, d) of features with ``frames`` frames."""
        return self._classifier()(tokens_BLd, self.prefix_tokens, self._columns(frames))

    def _classifier(self) -> Classifier:
        if self.classifier is None:
            raise ConfigError("this model has no classifier: fine-tune it first")
        return self.classifier

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
        return patches.unpatchify(raw.scatter(1, index, drawn), self.config, self._columns(features.shape[1]))

    def with_grid(self, stride: int | None = None, frames: int | None = None, longer: str = "interpolate") -> Self:
        """The same weights on another patch grid, positions resized as for fine-tuning.

        ``stride`` is used along both axes. ``longer``: see ``patches.resize_positions``. Raises ``ConfigError`` when
        patches would not fit.
        """
        changes: dict[str, int] = {}
        if stride is not None:
            changes |= {"stride_frequency": stride, "stride_time": stride}
        if frames is not None:
            changes["frames"] = frames
        config = self.config.replace(**changes)
        with torch.device("meta"):
            task = None if self.classifier is None else self.classifier.task
            other = type(self)(config, heads=self.heads is not None, classification=task)
        state = self.state_dict()
        for name in [k for k in state if k.split(".")[-1] == "positions"]:  # the decoder has its own
            state[name] = patches.resize_positions(state[name], self.config.grid, config.grid, longer)
        other.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
        return other.train(self.training)


def gather_patches(values_BPx: Tensor, mask_BM: Tensor) -> Tensor:
    """Rows of (B, P, x) at patch indices (B, M) -> (B, M, x)."""
    index = mask_BM.to(values_BPx.device)[..., None].expand(-1, -1, values_BPx.shape[-1])
    return values_BPx.gather(1, index)
