"""What all encoders share: patches, positions, pretraining losses, reconstruction, embedding, classification.

A kind of encoder adds its chain of layers (``ssamba.models.token_chain``); nothing outside ``ssamba.models`` knows
which kind it holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor, nn

from ssamba.models import patches
from ssamba.models.classifier import Classification, Classifier
from ssamba.models.config import Config
from ssamba.models.decoder import Decoder
from ssamba.models.heads import PretrainingHeads
from ssamba.models.losses import OBJECTIVES
from ssamba.models.masking import MaskedForward, MaskedPasses, masked_forward
from ssamba.models.token_chain import TokenChain, with_positions
from ssamba.utils.errors import ConfigError
from ssamba.utils.torch_defaults import of_new_weights

if TYPE_CHECKING:
    from typing import Self


class Encoder(TokenChain):
    """Log-mel patches -> tokens. ``heads=True`` adds the two pretraining heads, ``classification`` a classifier.

    A new model is initialised from ``generator``, or from seed 0 without one.
    """

    _chain_class: ClassVar[type[TokenChain]]
    """The chain of layers of this kind of encoder, which the decoder of pretraining consists of."""

    def __init__(
        self,
        config: Config,
        heads: bool = False,
        classification: Classification | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(config)
        self.heads = PretrainingHeads(config) if heads else None
        self.decoder: Decoder | None = None
        if heads and config.decoder_depth:
            self.decoder = Decoder(self._chain_class(config.decoder()))
        self.classifier = None if classification is None else Classifier(config, classification)
        if not self.positions.is_meta:
            if self.decoder is not None:
                self.decoder.chain.reset_parameters(generator)
            self.reset_parameters(generator)

    def _make_inputs(self) -> None:
        c = self.config
        self.patch_embed = patches.PatchEmbedding(c)
        super()._make_inputs()
        self.mask_embedding = nn.Parameter(torch.empty(1, 1, c.width, **of_new_weights()))

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights anew (docs/reference.md, "Initialisation")."""
        generator = generator or torch.Generator().manual_seed(0)
        super().reset_parameters(generator)
        for part in (self.heads, self.classifier):
            if part is not None:
                part.reset_parameters(generator)

    def _input_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.patch_embed.bias is not None
        return self.patch_embed.weight, self.patch_embed.bias, self.mask_embedding

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
        tokens_BQd = self.patch_embed(features)
        if mask is not None:
            index = mask.to(tokens_BQd.device)[..., None].expand(-1, -1, tokens_BQd.shape[-1])
            fill = self.mask_embedding.to(tokens_BQd.dtype).expand(index.shape)
            tokens_BQd = tokens_BQd.scatter(1, index, fill)
        return with_positions(self, tokens_BQd, self._columns(features.shape[1]))

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
        return self._run_layers(self.embed_patches(features.to(self.device)), None, inplace=True)[0]

    forward = encode

    def encode_layers(self, features: Tensor) -> list[Tensor]:
        """As ``encode``, but the tokens after each step of the chain: a pair of blocks in SSAMBA, a block in SSAST.

        Each (B, prefix + F*T, d). All but the last are the residual stream as it is, without a norm; the last is what
        ``encode`` gives.
        """
        return self._run_layers(self.embed_patches(features.to(self.device)), None, collect=True)[1]

    def layer_of(self, name: str) -> int:
        """Where a parameter of that name acts, in the order of ``encode_layers``.

        0 for what comes before the first step of the chain (patches, prefix tokens, positions), ``n_layers`` for the
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
        seen: list[MaskedForward] | None = None,
    ) -> dict[str, Tensor]:
        """Pretraining losses of masked patches, from features (B, frames, mel_bins).

        ``mask_a`` (B, M) hides patches for the discriminative head, ``mask_b`` for the generative one, each in its own
        pass; without ``mask_b`` one pass with ``mask_a`` serves both heads. Returns scalars: ``loss`` (nce + 10 mse for
        the joint objective), ``nce`` and ``accuracy``, ``mse``, as far as the objective has them. ``keep`` holds the
        stochastic depth of the two passes. ``seen`` is extended by what each pass gave, for a loss of the caller's
        own; ``masked_losses`` returns it.
        """
        losses, passes = masked_losses(self, features, mask_a, mask_b, objective, keep)
        if seen is not None:
            seen.extend(passes)
        return losses

    def _columns(self, frames: int) -> int:
        """Patches along time of ``frames`` frames."""
        return patches.full_columns(frames, self.config)

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
        return self._values(self.encode_tokens(self.embed_patches(features.to(self.device))), features.shape[1])

    def _logits(self, tokens_BLd: Tensor, frames: int) -> Tensor:
        """The classifier's logits (B, classes) from the tokens (B, L, d) of features with ``frames`` frames."""
        return self._classifier()(tokens_BLd, self.prefix_tokens, self._columns(frames))

    def _values(self, tokens_BLd: Tensor, frames: int) -> Tensor:
        """What the classifier's linear layer reads of the tokens of features with ``frames`` frames."""
        return self._classifier().pool_and_norm(tokens_BLd, self.prefix_tokens, self._columns(frames))

    def _classifier(self) -> Classifier:
        if self.classifier is None:
            raise ConfigError("this model has no classifier: fine-tune it first")
        return self.classifier

    @torch.no_grad()
    def reconstruct(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features with the masked patches replaced by what the generative head predicts: (B, frames, mel_bins).

        Frames and bins beyond the last full patch are left out. Raises ``ConfigError`` without heads, and for patches
        that overlap.
        """
        heads = pretraining_heads(self)
        if patches.patches_overlap(self.config):
            raise ConfigError("patches of this model do not tile the features: load it without another stride")
        features = features.to(self.device)
        raw = patches.patchify(features, self.config)
        predicted = heads.generative(masked_forward(self, features, mask).masked_BMd).to(raw.dtype)
        index = mask.to(raw.device)[..., None].expand_as(predicted)
        return patches.unpatchify(raw.scatter(1, index, predicted), self.config, self._columns(features.shape[1]))

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


def pretraining_heads(model: Encoder) -> PretrainingHeads:
    """The model's pretraining heads. Raises ``ConfigError`` without them."""
    if model.heads is None:
        raise ConfigError("this model has no pretraining heads: load it with heads=True")
    return model.heads


def masked_losses(
    model: Encoder,
    features: Tensor,
    mask_a: Tensor,
    mask_b: Tensor | None = None,
    objective: str = "joint",
    keep: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[dict[str, Tensor], tuple[MaskedForward, ...]]:
    """The losses of ``Encoder.losses``, and what each pass gave. Raises ``ConfigError`` as it does."""
    heads = pretraining_heads(model)
    if objective not in OBJECTIVES:
        raise ConfigError(f"objective '{objective}': choose one of {', '.join(OBJECTIVES)}")
    passes = MaskedPasses(model, features, mask_a, mask_b, keep)
    losses = OBJECTIVES[objective].losses(heads, passes)
    return losses, tuple(passes.made)
