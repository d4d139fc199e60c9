"""The public models: a network of ``ssamba.models`` together with the methods that take recordings."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ssamba.audio.log_mel import features_of
from ssamba.inference.cuda_graphs import GraphedEncoder
from ssamba.inference.embed import Embeddings, embed_audio
from ssamba.inference.predict import Prediction, predict_audio
from ssamba.models import ssamba, ssast
from ssamba.models.config import WIDTHS
from ssamba.models.registry import make_as
from ssamba.utils.terminal import printable


class Encoder(GraphedEncoder):
    """A network that also embeds and classifies recordings. Same weights and state dict as the network alone.

    Attributes:
        source: what it was loaded from, a path or a name; "" for a model made in memory.
    """

    source: str = ""

    def __repr__(self) -> str:
        """One line; ``torch.nn.Module.__repr__(model)`` gives torch's tree of modules."""
        c, heads = self.config, "" if self.heads is None else ", pretraining heads"
        size = next((name for name, width in WIDTHS.items() if width == c.width), "")
        size = f"{size}, " if size and size != self.source else ""
        parameters = sum(p.numel() for p in self.parameters()) / 1e6
        count = 0 if self.classifier is None else len(self.classifier.task.classes)
        classes = f"{count or 'no'} class{'es' * (count != 1)}"
        return (
            f"{type(self).__name__}({printable(self.source) or 'in memory'}: {size}width {c.width}, depth {c.depth}, "
            f"{parameters:.3g} M parameters, window {c.window_seconds:.4g} s at {c.sample_rate} Hz, {classes}{heads})"
        )

    def features(self, audio: Any, sample_rate: int | None = None, target_length: int | None = None) -> Tensor:
        """Normalised log-mel of recordings as this model reads it -> (B, frames, mel_bins).

        What ``encode``, ``classify`` and ``losses`` take: of the model's own rate, mel bins, mean and std, where
        ``ssamba.features`` has those of the published models. Audio and ``target_length`` as there; on the CPU.
        """
        return features_of(audio, sample_rate, target_length, self.config.front_end)

    def embed(
        self, audio: Any, sample_rate: int | None = None, whole: bool = False, hop_ms: float | None = None
    ) -> Embeddings:
        """Embeddings of recordings; see ``ssamba.inference.embed.embed_audio``."""
        return embed_audio(self, audio, sample_rate, whole, hop_ms)

    def predict(
        self,
        audio: Any,
        sample_rate: int | None = None,
        top: int | None = None,
        every: float | None = None,
        window: float | None = None,
        reject: bool = False,
        threshold: float | None = None,
    ) -> list[Prediction]:
        """Class scores of recordings; see ``ssamba.inference.predict.predict_audio``."""
        return predict_audio(self, audio, sample_rate, top, every, window, reject, threshold)


class SSAMBA(Encoder, ssamba.SSAMBA):
    """Bidirectional Mamba on log-mel patches (arXiv 2405.11831)."""


class SSAST(Encoder, ssast.SSAST):
    """The transformer of SSAST (arXiv 2110.09784), as a peer to compare with."""


KINDS: dict[str, type[Encoder]] = {"ssamba": SSAMBA, "ssast": SSAST}
"""The public class of each kind of encoder."""

make_encoder = partial(make_as, KINDS)
"""A new public model of the kind that ``config.encoder`` names, with random weights: see ``make_as``."""
