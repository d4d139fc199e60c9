"""A whole data set kept on the model's device, decoded once: for sets that fit, no step waits for audio.

The samples are int16 scaled by each clip's peak, as in :class:`ssamba.data.loaders.audio_cache.AudioCache`, and crops
are cut out where they lie. A step then costs the host a few numbers for each clip.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssamba.audio.checks import check_length
from ssamba.audio.front_end import PUBLISHED
from ssamba.data.loaders.audio_cache import read_quantised
from ssamba.data.loaders.workers import MAX_ATTEMPTS, decode_ahead
from ssamba.data.manifest import Clip
from ssamba.data.samplers.pretraining import PretrainPlan, rows_of
from ssamba.data.scan import SkipList
from ssamba.utils.errors import AudioError, DataError

__all__ = ["CropOffsets", "ResidentAudio", "ResidentLoader", "resident_bytes"]

FULL_SCALE = 32767
CLIPS_AT_ONCE = 16


def resident_bytes(clips: Sequence[Clip], sample_rate: int = PUBLISHED.sample_rate) -> int:
    """What the clips, with known lengths, would take on the device at that rate."""
    seconds = {clip.path: clip.seconds or 0.0 for clip in clips}
    return sum(2 * (int(s * sample_rate) + 1) for s in seconds.values())


class CropOffsets(NamedTuple):
    """Where a step's crops are: first sample (B,), samples (B,) int64, value of a full scale (B,) float32."""

    step: int
    first: Tensor
    lengths: Tensor
    scale: Tensor


class ResidentAudio:
    """Decodes every clip at ``sample_rate``, with all cores, and keeps it on ``device``.

    Clips that cannot be read are remembered with their reason and left out. ``progress(done, total, note)`` is called
    as clips are decoded; the unit is clips.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        device: torch.device,
        progress: Callable[[float, float, str], None] | None = None,
        sample_rate: int = PUBLISHED.sample_rate,
    ) -> None:
        self.sample_rate = sample_rate
        self._seconds = {clip.path: clip.seconds or math.inf for clip in clips}
        paths = list(self._seconds)
        blocks = [paths[i : i + CLIPS_AT_ONCE] for i in range(0, len(paths), CLIPS_AT_ONCE)]
        self.failed: dict[str, str] = {}
        self._clips: dict[str, tuple[int, int, float]] = {}
        parts, end = [], 0
        decoded = decode_ahead(range(len(blocks)), lambda i: blocks[i], self._decode, os.cpu_count() or 1, 8)
        for number, results in decoded:
            for path, result in zip(blocks[number], results, strict=True):
                if isinstance(result, str):
                    self.failed[path] = result
                    continue
                samples, peak = result
                self._clips[path] = (end, len(samples), peak / FULL_SCALE)
                parts.append(torch.from_numpy(samples))
                end += len(samples)
            if progress is not None:
                done = min(len(paths), (number + 1) * CLIPS_AT_ONCE)
                progress(done, len(paths), f"{done}/{len(paths)} recordings, {end / sample_rate / 3600:.2f} hours")
        self.samples = torch.cat(parts).to(device) if parts else torch.zeros(0, dtype=torch.int16, device=device)

    def _decode(self, path: str) -> tuple[np.ndarray, float] | str:
        """A clip as int16 and its peak, or why not."""
        try:
            return read_quantised(path, self.sample_rate, self._seconds[path])
        except AudioError as error:
            return error.reason

    def locate(self, path: str, start: float, seconds: float) -> tuple[int, int, float]:
        """First sample, number of samples and scale of a crop. Raises ``AudioError`` for what cannot be read."""
        if path not in self._clips:
            raise AudioError(path, self.failed.get(path, "was not among the clips"))
        begin, total, scale = self._clips[path]
        first = min(round(start * self.sample_rate), total)
        length = min(round(seconds * self.sample_rate), total - first)
        check_length(length, path, self.sample_rate)
        return begin + first, length, scale

    def cut(self, first: Tensor, lengths: Tensor, scale: Tensor, samples: int, repeat: bool = False) -> Tensor:
        """Crops (B, samples) float32 on the device, from the ``first``, ``lengths`` and ``scale`` (B,).

        Behind a shorter clip come zeros, or with ``repeat`` the clip again.
        """
        here = torch.arange(samples, device=self.samples.device)
        offset = here % lengths[:, None] if repeat else here.minimum(lengths[:, None] - 1)
        crops = self.samples[first[:, None] + offset].float() * scale[:, None]
        return crops if repeat else crops * (here < lengths[:, None])


class ResidentLoader:
    """As ``loaders.pretraining.CropLoader``, but gives each step's :class:`CropOffsets` in a :class:`ResidentAudio`.

    The crops, and the replacements of unreadable files, are the same.
    """

    def __init__(
        self,
        plan: PretrainPlan,
        audio: ResidentAudio,
        start_step: int,
        stop_step: int | None,
        skip: SkipList,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.plan, self.audio, self.skip = plan, audio, skip
        self.start_step, self.stop_step, self.part = start_step, stop_step, part
        self._clips = len({clip.path for clip in plan.clips})

    def __iter__(self) -> Iterator[CropOffsets]:
        steps = count(self.start_step) if self.stop_step is None else range(self.start_step, self.stop_step)
        for step in steps:
            first, rows = step * self.plan.batch_size, rows_of(self.plan.batch_size, self.part)
            found = [self._locate(position) for position in (first + row for row in rows)]
            self.skip.check(final=self.skip.tried >= self._clips)
            begins, lengths, scales = zip(*found, strict=True)
            scale = np.asarray(scales, np.float32)
            yield CropOffsets(
                step, torch.tensor(begins, device="cpu"), torch.tensor(lengths, device="cpu"), torch.from_numpy(scale)
            )

    def _locate(self, position: int) -> tuple[int, int, float]:
        first: tuple[str, str] | None = None
        for attempt in range(MAX_ATTEMPTS + 1):
            spec = self.plan.crop(position, attempt)
            try:
                crop = self.audio.locate(spec.path, spec.start, spec.seconds)
            except AudioError as error:
                first = first or (spec.path, error.reason)
                self.skip.record(spec.path, error.reason)
                continue
            self.skip.succeeded((spec.path,))
            return crop
        assert first is not None
        raise DataError(f"{first[0]}: {first[1]}; {MAX_ATTEMPTS} other clips of the same source cannot be read either")
