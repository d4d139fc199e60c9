"""An upstream for s3prl (SUPERB): ``UpstreamExpert``, and the entry of a ``hubconf.py`` (docs/adapters.md)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ssamba.adapters.recordings import frame_vectors, near_shifts, waveforms_of
from ssamba.inference.dense.shifts import hop_frames
from ssamba.inference.load import load
from ssamba.utils.errors import ConfigError

UPSTREAM_RATE = 16000
"""Hz of s3prl's waveforms."""


class UpstreamExpert(nn.Module):
    """Waveforms of any lengths -> the hidden states of every layer, each recording as if it were alone.

    ``ckpt`` is anything that ``ssamba.load`` takes (None: the model in the package), ``hop_ms`` the distance of frames
    (40 for the published patches if nothing is said; 160 takes a quarter of the time). ``model_config`` and further
    arguments of s3prl have no effect. Raises ``CheckpointError``, and ``ConfigError`` for a model of another rate.
    """

    def __init__(
        self,
        ckpt: str | os.PathLike[str] | None = None,
        model_config: str | None = None,
        hop_ms: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.encoder = load(ckpt, device="cpu")
        config = self.encoder.config
        if config.sample_rate != UPSTREAM_RATE:
            raise ConfigError(f"{ckpt}: reads audio of {config.sample_rate} Hz, and s3prl gives 16000: another model")
        self.shifts = near_shifts(hop_ms, config)

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples from one frame to the next, the same for all layers."""
        config = self.encoder.config
        return hop_frames(self.shifts, config) * config.front_end.hop

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """``wavs``: (samples,) tensors at 16 kHz.

        Returns ``hidden_states``, a list of (B, T, d) for each layer, and ``last_hidden_state``, the last of them, on
        the model's device. A recording has ceil(samples / rate) frames: where audio ends before another whole one
        could begin, the last is repeated, as s3prl does. What lies beyond a shorter recording is 0. Raises
        ``AudioError``.
        """
        encoder = self.encoder
        layers, rate = encoder.n_layers, self.get_downsample_rates()
        waveforms = waveforms_of(wavs, encoder.config, "a list of (samples,) tensors at 16 kHz")
        found = [
            _filled_up(vectors, -(-len(wav) // rate))
            for vectors, wav in zip(frame_vectors(encoder, waveforms, self.shifts, self._tokens), wavs, strict=True)
        ]
        states = pad_sequence(found, batch_first=True).unflatten(2, (layers, -1)).unbind(dim=2)
        return {"hidden_states": list(states), "last_hidden_state": states[-1]}

    def _tokens(self, features: Tensor) -> Tensor:
        """(B, frames, mel_bins) -> (B, 1, T, layers * d), the mean over frequency."""
        rows, front = self.encoder.config.grid[0], self.encoder.prefix_tokens
        states = self.encoder.encode_layers(features)
        means = [x[:, front:].unflatten(1, (rows, -1)).float().mean(dim=1, keepdim=True) for x in states]
        return torch.cat(means, dim=-1)


def _filled_up(vectors_Tx: Tensor, frames: int) -> Tensor:
    return torch.cat([vectors_Tx, vectors_Tx[-1:].expand(frames - len(vectors_Tx), -1)])[:frames]


def ssamba(ckpt: str | os.PathLike[str] | None = None, *args: Any, **kwargs: Any) -> UpstreamExpert:
    """The entry of a ``hubconf.py``: an ``UpstreamExpert`` with these arguments."""
    return UpstreamExpert(ckpt, *args, **kwargs)
