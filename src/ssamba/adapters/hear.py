"""The common API of HEAR 2021 (Holistic Evaluation of Audio Representations): three functions (docs/adapters.md).

HEAR's programs take the name of this module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssamba.adapters.recordings import (
    check_pooling,
    frame_vectors,
    hop_milliseconds,
    near_shifts,
    pooled_values,
    pooled_vectors,
    waveforms_of,
)
from ssamba.inference.dense.shifts import hop_frames
from ssamba.inference.load import load
from ssamba.inference.model import Encoder
from ssamba.models.patches import column_times
from ssamba.utils.errors import ConfigError
from ssamba.utils.terminal import shorten

SAMPLE_RATES = (16000, 22050, 44100, 48000)
"""Rates of models that the API allows, Hz."""
EXPECTED = "a tensor (n_sounds, n_samples) at the model's rate"


class HearModel(nn.Module):
    """A model as the API wants it.

    Attributes:
        sample_rate: Hz of the audio that it takes.
        scene_embedding_size, timestamp_embedding_size: values in a vector.
        hop_ms: milliseconds between two timestamps.
        encoder: the model itself.
    """

    def __init__(self, encoder: Encoder, hop_ms: float | None = None, pool: str = "mean") -> None:
        super().__init__()
        config = encoder.config
        if config.sample_rate not in SAMPLE_RATES:
            raise ConfigError(
                f"{encoder.source or 'the model'}: reads audio of {config.sample_rate} Hz, and the API has only "
                f"{', '.join(map(str, SAMPLE_RATES))}: give another model"
            )
        self.encoder = encoder
        self.pool = check_pooling(pool)
        self.shifts = near_shifts(hop_ms, config)
        self.hop_ms = hop_milliseconds(self.shifts, config)
        self.sample_rate = config.sample_rate
        self.scene_embedding_size = pooled_values(self.pool, config)
        self.timestamp_embedding_size = config.width

    def forward(self, audio: Tensor) -> Tensor:
        """``get_scene_embeddings``."""
        return get_scene_embeddings(audio, self)


def load_model(model_file_path: str = "", hop_ms: float | None = None, pool: str = "mean") -> HearModel:
    """A model on the CPU; ``.to(device)`` moves it.

    ``model_file_path`` is anything that ``ssamba.load`` takes, "" the model in the package. ``hop_ms`` is the distance
    of timestamps (None: the largest up to the 50 ms that the API asks for, 40 for the published patches); each
    halving doubles the time that they take. ``pool``, of ``VECTOR_POOLINGS``, makes scene embeddings. Raises
    ``CheckpointError``, ``ConfigError``.
    """
    return HearModel(load(model_file_path or None, device="cpu"), hop_ms, pool)


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Vectors in time of ``audio`` (n_sounds, n_samples), values from -1 to 1.

    Returns embeddings (n_sounds, T, d) float32 and timestamps (n_sounds, T) float32 in milliseconds, at the centres of
    the patches, all of them within the recording (one is always there). Both on the audio's device. Sounds shorter
    than 25 ms are filled up with zeros. Raises ``AudioError``.
    """
    encoder, config = _encoder(model), _encoder(model).config
    waveforms = waveforms_of(audio, config, EXPECTED)
    vectors = torch.stack(frame_vectors(encoder, waveforms, model.shifts))
    times = 1000 * column_times(torch.arange(vectors.shape[1], device="cpu"), config, hop_frames(model.shifts, config))
    n = max(1, int((times <= 1000 * audio.shape[1] / config.sample_rate).sum()))
    place = audio.device if isinstance(audio, Tensor) else torch.device("cpu")
    return vectors[:, :n].float().to(place), times[:n].float().expand(len(vectors), -1).contiguous().to(place)


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """One vector for each sound of ``audio`` (n_sounds, n_samples): (n_sounds, scene_embedding_size) float32.

    With the pooling "mean" it is ``clip`` of ``model.embed``. On the audio's device. Raises ``AudioError``.
    """
    encoder = _encoder(model)
    found = dict(pooled_vectors(encoder, waveforms_of(audio, encoder.config, EXPECTED), model.pool))
    place = audio.device if isinstance(audio, Tensor) else torch.device("cpu")
    return torch.stack([found[i] for i in range(len(found))]).to(place)


def _encoder(model: Any) -> Encoder:
    if not isinstance(model, HearModel):
        raise ConfigError(f"model is {shorten(type(model).__name__)}: give what load_model of this module returns")
    return model.encoder
