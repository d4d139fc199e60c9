"""Recordings -> one vector for each patch column, of level-normalised features and of one layer of the model.

A column's vector holds the tokens of all its frequency rows one behind the other: noise and missing bands then touch
some of its values and leave the others as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssamba.inference.batches import by_recording, group_segments, run_passes
from ssamba.inference.embed import CrossFade, embedding_plan
from ssamba.inference.search.arrays import FloatArray
from ssamba.inference.windows import Segment, cut_recordings
from ssamba.utils.torch_defaults import HOST_FLOAT32

if TYPE_CHECKING:
    from ssamba.inference.model import Encoder
    from ssamba.models.config import Config


SILENT_POWER = -14.0
"""Mean power (natural logarithm, as log-mels) below which a window is digital silence: zeros have -15.9."""


@dataclasses.dataclass(frozen=True)
class Level:
    """How windows are brought to one level before the model reads them.

    ``power`` is the mean power that each window gets (natural logarithm, as log-mels); what lies more than ``range_db``
    below it is raised to that floor. Gain then changes nothing, and faint noise little.
    """

    power: float = -3.0
    range_db: float = 40.0

    @property
    def floor(self) -> float:
        """The lowest log-mel that is left."""
        return self.power - self.range_db * math.log(10) / 10


def level_segment(segment: Segment, config: Config, level: Level) -> Segment:
    """The segment with its features brought to ``level``; its padding and digital silence lie at the floor."""
    front_end = config.front_end
    length = segment.features.shape[0]
    if segment.end is not None:
        length = min(length, segment.end.frames - segment.position * config.stride_time)
    log_mels = front_end.denormalise(segment.features.float())
    power = torch.logsumexp(log_mels[:length].flatten(), 0) - math.log(length * config.mel_bins)
    shift = level.power - power if power > SILENT_POWER else torch.tensor(-math.inf, **HOST_FLOAT32)
    levelled = (log_mels + shift.to(log_mels)).clamp_min(level.floor)
    levelled[length:] = level.floor
    return dataclasses.replace(segment, features=front_end.normalise(levelled))


def audible_columns(features: Tensor, config: Config, level: Level) -> Tensor:
    """1.0 for each patch column of levelled (B, frames, mel_bins) in which anything lies above the floor, else 0."""
    floor = config.front_end.normalise(torch.tensor(level.floor, **HOST_FLOAT32)).item()
    above = (features > floor + 1e-4).any(dim=2)
    return above.unfold(1, config.patch_time, config.stride_time).any(dim=2).float()


def shortened(model: Encoder, layer: int) -> Encoder:
    """The model with the layers up to the one after ``layer`` alone, with the same weights in the same memory.

    One more is kept, since the last one has the final norm behind it.
    """
    if layer + 1 >= model.n_layers:
        return model
    config = model.config.replace(depth=model.config.depth // model.n_layers * (layer + 1))
    with torch.device("meta"):
        short = type(model)(config)
    state = model.state_dict()
    short.load_state_dict({name: state[name] for name in short.state_dict()}, assign=True)
    return short.eval()


@torch.no_grad()
def column_vectors(
    model: Encoder,
    recordings: Iterable[tuple[int, Iterable[Tensor]]],
    layer: int,
    level: Level | None,
    batch: int | None = None,
    failed: Collection[int] = (),
) -> Iterator[tuple[Segment, FloatArray, FloatArray]]:
    """Column vectors of recordings as they come: the segment, (n, rows * width), and (n,) 1 where audible, else 0.

    ``recordings`` and ``failed`` are those of ``cut_recordings``; ``layer`` counts as ``encode_layers`` does, from 1.
    """
    model = shortened(model, layer)
    config = model.config
    segments: Iterable[Segment] = cut_recordings(model, recordings, embedding_plan(config), failed)
    if level is not None:
        segments = (level_segment(segment, config, level) for segment in segments)
    rows = config.grid[0]

    def tokens(features: Tensor) -> Tensor:
        """(B, rows + 1, T, d): the last row repeats whether the column is audible."""
        hidden = model.encode_layers(features)[layer - 1][:, model.prefix_tokens :].unflatten(1, (rows, -1)).float()
        audible = torch.ones_like(hidden[:, 0, :, 0])
        if level is not None:
            audible = audible_columns(features.to(hidden.device), config, level)
        return torch.cat([hidden, audible[:, None, :, None].expand_as(hidden[:, :1])], dim=1)

    passes = run_passes(group_segments(model, segments, batch), tokens)
    for segment, tokens_FTd, fade in by_recording(passes, lambda: CrossFade(config), failed):
        columns = fade.add(segment, tokens_FTd).transpose(0, 1)
        vectors = columns[:, :rows].flatten(1).cpu().numpy()
        yield segment, vectors, (columns[:, rows, 0] > 0).float().cpu().numpy()
