"""Normalised log-mel features of a waveform that comes in blocks, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ssamba.audio.front_end import FrontEnd
from ssamba.audio.log_mel import filter_bank
from ssamba.utils.torch_defaults import HOST_FLOAT32

FRAMES_TOGETHER = 2048
"""Log-mel frames (20 s) that have their common mean removed: the same for arrays and for files read in blocks."""


class FeatureStream:
    """Normalised log-mel of a waveform that comes in blocks: the same wherever the blocks' borders lie.

    The mean is removed from each stretch of ``FRAMES_TOGETHER`` frames instead of the recording, which has no end yet.
    Since the mean of each frame is removed as well, that only changes the rounding; with fixed stretches the rounding
    does not depend on the blocks either.

    Args:
        front_end: that of the model.
        device: where features are computed and returned.
    """

    def __init__(self, front_end: FrontEnd, device: torch.device) -> None:
        self._front_end, self._device = front_end, device
        self._held: list[Tensor] = []

    def feed(self, samples: Tensor) -> Tensor:
        """Take the next (samples,) at the front end's rate; gives the frames (n, mel_bins) of complete stretches."""
        self._held.append(samples)
        length = self._front_end.samples_of_frames(FRAMES_TOGETHER)
        step = FRAMES_TOGETHER * self._front_end.hop
        n = sum(map(len, self._held))
        if n < length:
            return self._nothing()
        held = torch.cat(self._held)
        self._held = [held[(1 + (n - length) // step) * step :].clone()]
        return self._normalised(held.unfold(0, length, step)).flatten(0, 1)

    def finish(self) -> Tensor:
        """The frames (n, mel_bins) that are left; n may be 0."""
        held, self._held = torch.cat([torch.empty(0, **HOST_FLOAT32), *self._held]), []
        if self._front_end.frame_count(len(held)) == 0:
            return self._nothing()
        return self._normalised(held)

    def _nothing(self) -> Tensor:
        return torch.empty(0, self._front_end.mel_bins, device=self._device, dtype=torch.float32)

    def _normalised(self, samples: Tensor) -> Tensor:
        return self._front_end.normalise(filter_bank(samples.to(self._device), self._front_end))
