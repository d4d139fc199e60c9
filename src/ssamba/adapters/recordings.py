"""What the adapters share: batches as other packages give them -> vectors of each recording, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio.checks import numbered
from ssamba.audio.constants import HOP_MILLISECONDS
from ssamba.audio.log_mel import to_waveform
from ssamba.inference.dense.shifts import PLAIN, hop_frames, shifts_of
from ssamba.inference.embed import embed_segments, embedding_plan
from ssamba.inference.model import Encoder
from ssamba.inference.pooling import MeanPooling, Moments
from ssamba.inference.windows import cut_recordings
from ssamba.models.config import Config
from ssamba.utils.errors import AudioError, ConfigError, nearest
from ssamba.utils.terminal import shorten

NEAR_MILLISECONDS = 50
"""Frames as near as HEAR asks for; the published patches are 160 ms apart."""


class _Rows(Moments):
    def result(self) -> Tensor:
        return self.rows()


VECTOR_POOLINGS: Mapping[str, type[MeanPooling] | type[Moments]] = {
    "mean": MeanPooling,
    "mean_std": Moments,
    "rows": _Rows,
}
"""From a recording's patches to one vector: the mean (d values), mean and standard deviation (2 d), and both over time
for each of the F rows of patches by itself (2 F d), the best features for a linear classifier (docs/results.md)."""


def near_shifts(hop_ms: float | None, config: Config) -> tuple[int, ...]:
    """The passes for a hop in milliseconds; None: the largest one up to 50 ms (40 for the published patches)."""
    if hop_ms is None:
        near = range(1, NEAR_MILLISECONDS // HOP_MILLISECONDS + 1)
        hop_ms = HOP_MILLISECONDS * max(n for n in near if config.stride_time % n == 0)
    return shifts_of(hop_ms, config)


def hop_milliseconds(shifts: Sequence[int], config: Config) -> float:
    """Distance between the frames of these passes."""
    return 1000 * config.front_end.seconds_between(hop_frames(shifts, config))


def check_pooling(pool: object) -> str:
    """The pooling's name. Raises ``ConfigError`` for one that is none."""
    if not isinstance(pool, str) or pool not in VECTOR_POOLINGS:
        hint = nearest(pool, list(VECTOR_POOLINGS)) if isinstance(pool, str) else ""
        raise ConfigError(f"pool is {shorten(pool)}: give one of {', '.join(VECTOR_POOLINGS)}{hint}")
    return pool


def pooled_values(pool: str, config: Config) -> int:
    """Length of the vector that a pooling gives."""
    return {"mean": 1, "mean_std": 2, "rows": 2 * config.grid[0]}[pool] * config.width


def waveforms_of(batch: Any, config: Config, expected: str) -> list[Tensor]:
    """Recordings at the model's rate, one channel each -> (samples,) float32 on the CPU, at least one frame (25 ms).

    ``batch`` is a tensor or an array (batch, samples), or a list of (samples,); shorter ones than a frame are filled up
    with zeros. Raises ``AudioError`` naming what was ``expected``: for other shapes, recordings without samples, NaN.
    """
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim != 2:
            raise AudioError(None, f"shape {tuple(batch.shape)}: give {expected}")
    elif not isinstance(batch, (list, tuple)):
        raise AudioError(None, f"{shorten(batch)}: give {expected}")
    if not len(batch):
        raise AudioError(None, f"no recording: give {expected}")
    found: list[Tensor] = []
    for item in batch:
        with numbered(len(found), len(batch)):
            if not isinstance(item, (Tensor, np.ndarray)):
                raise AudioError(None, f"{shorten(item)}: give {expected}")
            waveform = to_waveform(item, config.sample_rate, config.sample_rate)
            if not len(waveform):
                raise AudioError(None, "holds no samples")
            found.append(F.pad(waveform, (0, max(0, config.front_end.frame_length - len(waveform)))))
    return found


def frame_vectors(
    model: Encoder,
    waveforms: Sequence[Tensor],
    shifts: Sequence[int] = PLAIN,
    tokens: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """(T, values) of each waveform (samples,), the mean over frequency of its columns: ``frames`` of ``model.embed``.

    ``tokens`` are those of ``embed_segments``. Gradients flow where they are on.
    """
    segments = cut_recordings(model, enumerate([x] for x in waveforms), embedding_plan(model.config), shifts=shifts)
    parts: list[list[Tensor]] = [[] for _ in waveforms]
    for segment, columns_FTd in embed_segments(model, segments, shifts=shifts, tokens=tokens, frames=True):
        parts[segment.recording].append(columns_FTd[0])
    return [torch.cat(part) for part in parts]


@torch.no_grad()
def pooled_vectors(
    model: Encoder, recordings: Iterable[Tensor], pool: str = "mean", whole: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Number and vector (values,) float32 on the CPU of each recording; those of other lengths may come in between.

    ``recordings`` (samples,) at the model's rate are taken as they are needed; ``pool`` is of ``VECTOR_POOLINGS``.
    """
    open_ones: dict[int, MeanPooling | Moments] = {}
    segments = cut_recordings(model, enumerate([x] for x in recordings), embedding_plan(model.config, whole))
    for segment, columns_FTd in embed_segments(model, segments):
        pooling = open_ones.pop(segment.recording, None) or VECTOR_POOLINGS[pool]()
        if columns_FTd.shape[1]:
            pooling.add(columns_FTd)
        if segment.last:
            yield segment.recording, pooling.result().float().cpu()
        else:
            open_ones[segment.recording] = pooling
