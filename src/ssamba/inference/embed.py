"""Recordings of any length and rate -> embeddings in time order.

Recordings that fit the model's grid go through in one pass with their own number of patch columns. Longer ones are cut
into overlapping windows of the grid's length, whose tokens are cross-faded, or with ``whole=True`` go through in one
pass with interpolated positions.

The way is that of predictions (``ssamba.inference.predict``) up to the model: ``cut_recordings`` ->
``group_segments`` -> ``run_passes``; then ``CrossFade`` joins a recording's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.inference.batches import by_recording, group_segments, run_passes
from ssamba.inference.dense.shifts import PLAIN, hop_frames, interleave, shifts_of
from ssamba.inference.outputs.excerpt import Excerpt, take_excerpts
from ssamba.inference.pooling import mean_of_padded
from ssamba.inference.windows import Plan, Segment, WholeRecording, column_windows, cut_recordings
from ssamba.models.patches import column_times
from ssamba.utils.errors import ConfigError
from ssamba.utils.torch_defaults import HOST_FLOAT32

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssamba.inference.cuda_graphs import GraphedEncoder
    from ssamba.models.config import Config

PLAYERS = 3
"""Recordings of a batch that a notebook can play."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of B recordings. T is the longest one's number of frames, F the number of frequency rows.

    clip (B, d): mean over a recording's patch tokens. frames (B, T, d): time-ordered, mean over frequency. times (T,):
    seconds at the centre of each frame. patches (B, F, T, d). lengths (B,): how many frames each recording has; what
    lies beyond is 0. excerpts: the beginnings of the first recordings, for pictures and notebooks.
    """

    clip: Tensor
    frames: Tensor
    times: Tensor
    patches: Tensor
    lengths: Tensor
    excerpts: tuple[Excerpt, ...] = field(default=(), repr=False, compare=False)

    def __repr__(self) -> str:
        count, rows, _, width = self.patches.shape
        return (
            f"Embeddings({count} recording{'s' * (count != 1)}, width {width}, {rows} rows x {_extent(self.lengths)} "
            f"frames, {self.clip.device})"
        )

    def _repr_html_(self) -> str:
        from ssamba.inference.outputs import html

        parts = [html.player(excerpt) for excerpt in self.excerpts[:PLAYERS]]
        parts.append(html.picture(self.plot, "spectrogram, and the similarity of frames below it"))
        return html.page_part(repr(self), parts)

    def plot(self, recording: int = 0) -> Figure:
        """One recording's spectrogram (Hz against s) and, below it, the similarity of its frames (s against s).

        The spectrogram is that of the beginning, and only of the first recordings (``Excerpt``). Raises
        ``ConfigError`` for a recording that is none, ``SsambaError`` without matplotlib.
        """
        from ssamba.inference.outputs.figures import frames_figure

        count = len(self.lengths)
        if not 0 <= recording < count:
            raise ConfigError(f"recording is {recording}: give 0 to {count - 1}")
        n = int(self.lengths[recording])
        excerpt = self.excerpts[recording] if recording < len(self.excerpts) else None
        times = self.times[:n].cpu().double().numpy()
        return frames_figure(self.frames[recording, :n].detach().cpu().float().numpy(), times, excerpt)


def _extent(lengths: Tensor) -> str:
    low, high = int(lengths.min()), int(lengths.max())
    return str(low) if low == high else f"{low} to {high}"


@torch.no_grad()
def embed_audio(
    model: GraphedEncoder,
    audio: Any,
    sample_rate: int | None = None,
    whole: bool = False,
    hop_ms: float | None = None,
) -> Embeddings:
    """Embed recordings.

    ``audio`` is (samples,), (batch, samples) or a list of different lengths, numpy or torch, at ``sample_rate``; or
    encoded audio, at its own rate: paths, bytes, binary file objects (``ssamba.audio.log_mel.to_waveforms``).
    Recordings longer than the grid are cut into overlapping windows, or with ``whole`` read in one pass. ``hop_ms`` is
    the distance of two frames, by default that of the patches (160 ms): for 40 the recording is read four times, from
    0, 40, 80 and 120 ms on, and ``clip`` is the mean over all of it. Raises ``AudioError`` for NaN, wrong shapes and
    recordings under 25 ms, ``ConfigError`` for a hop that does not divide the patches' step.
    """
    shifts = shifts_of(hop_ms, model.config)
    waveforms = log_mel.to_waveforms(audio, sample_rate, model.config.sample_rate, model.config.front_end)
    blocks = enumerate([waveform] for waveform in waveforms)
    segments = cut_recordings(model, blocks, embedding_plan(model.config, whole), shifts=shifts)
    parts: list[list[Tensor]] = [[] for _ in waveforms]
    for segment, columns_FTd in embed_segments(model, segments, shifts=shifts):
        parts[segment.recording].append(columns_FTd)
    excerpts = take_excerpts(audio, waveforms, model.config.front_end)
    hop = hop_frames(shifts, model.config)
    return replace(pad_embeddings([torch.cat(part, dim=1) for part in parts], model, hop), excerpts=excerpts)


def pad_embeddings(grids_FTd: list[Tensor], model: GraphedEncoder, hop: int) -> Embeddings:
    """The embeddings of recordings whose tokens are (F, T, d) with a T of their own, columns ``hop`` frames apart."""
    counts = [grid.shape[1] for grid in grids_FTd]
    longest = max(counts)
    patches_BFTd = torch.stack([F.pad(grid, (0, 0, 0, longest - grid.shape[1])) for grid in grids_FTd])
    lengths = torch.tensor(counts, device=model.device)
    times = column_times(torch.arange(longest, device="cpu"), model.config, hop).to(model.device)
    clip = mean_of_padded(patches_BFTd, lengths)
    return Embeddings(clip, _frames(patches_BFTd, model.config.stride_time // hop), times, patches_BFTd, lengths)


def _frames(patches_BFTd: Tensor, passes: int) -> Tensor:
    """The mean over frequency (B, T, d), of each pass by itself: sums of other sizes round differently."""
    means = patches_BFTd.new_empty(*patches_BFTd.shape[:1], *patches_BFTd.shape[2:])
    for first in range(passes):
        means[:, first::passes] = patches_BFTd[:, :, first::passes].contiguous().mean(dim=1)
    return means


def embedding_plan(config: Config, whole: bool = False) -> Plan:
    """How recordings are cut for embedding: windows of the grid's length, or with ``whole`` not at all."""
    return WholeRecording(config) if whole else column_windows(config)


def embed_segments(
    model: GraphedEncoder,
    segments: Iterable[Segment],
    batch: int | None = None,
    failed: Collection[int] = (),
    shifts: Sequence[int] = PLAIN,
    tokens: Callable[[Tensor], Tensor] | None = None,
    frames: bool = False,
) -> Iterator[tuple[Segment, Tensor]]:
    """Segments of ``embedding_plan`` and the columns (F, n, d) of their recording that are final with them.

    A recording's columns come in time order, all that are left with its last segment. ``batch`` is segments in a pass
    (None: as many as the device takes well); those of recordings in ``failed`` are left out. The columns of passes at
    several ``shifts``, with which the recordings were cut, are interleaved. ``tokens`` gives what is taken for the
    tokens (B, F, T, values) of features (B, frames, mel_bins); None: those of the last layer. With
    ``frames`` a piece is (1, n, d), the mean over frequency.
    """
    rows = model.config.grid[0]

    def last_layer(features: Tensor) -> Tensor:
        return model.infer(features)[:, model.prefix_tokens :].unflatten(1, (rows, -1)).float()

    passes = run_passes(group_segments(model, segments, batch), tokens or last_layer)
    columns: Iterator[tuple[Segment, Tensor]] = (
        (segment, fade.add(segment, tokens_FTd))
        for segment, tokens_FTd, fade in by_recording(passes, lambda: CrossFade(model.config), failed)
    )
    if frames:  # before passes are interleaved: sums of other sizes round differently
        columns = ((segment, columns_FTd.mean(dim=0, keepdim=True)) for segment, columns_FTd in columns)
    return columns if len(shifts) == 1 else interleave(columns, shifts, failed)


class CrossFade:
    """Joins the tokens of one recording's windows, in their order, by triangular weights.

    Holds only columns that a later window may still touch. Results are (F, columns, d) in time order.
    """

    def __init__(self, config: Config) -> None:
        self._window = config.grid[1]
        self._first = 0  # column at which the sums begin
        self._total: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, window: Segment, tokens_FTd: Tensor) -> Tensor:
        """Add a window's tokens; gives the next columns that are final, after the last window all that are left."""
        width = tokens_FTd.shape[1]
        if self._total is None or self._weight is None:
            self._total, self._weight = tokens_FTd[:, :0], tokens_FTd.new_zeros(0)
        done = self._take(window.position - self._first)
        fade = torch.ones(width, **HOST_FLOAT32)
        if width == self._window:
            fade = torch.minimum(torch.arange(1, width + 1, device="cpu"), torch.arange(width, 0, -1, device="cpu"))
        fade = fade.to(tokens_FTd)
        missing = width - self._total.shape[1]
        self._total = F.pad(self._total, (0, 0, 0, missing)) + tokens_FTd * fade[:, None]
        self._weight = F.pad(self._weight, (0, missing)) + fade
        return torch.cat([done, self._take(width)], dim=1) if window.last else done

    def _take(self, n_columns: int) -> Tensor:
        assert self._total is not None
        assert self._weight is not None
        done = self._total[:, :n_columns] / self._weight[:n_columns, None]
        self._total, self._weight = self._total[:, n_columns:], self._weight[n_columns:]
        self._first += n_columns
        return done
