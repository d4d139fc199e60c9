"""Recordings of any length and rate -> embeddings in time order.

Recordings that fit the model's grid go through in one pass with their own number of patch columns. Longer ones are cut
into overlapping windows of the grid's length, whose tokens are cross-faded, or with ``whole=True`` go through in one
pass with interpolated positions. Only recordings with the same number of columns share a batch, so no padding ever
reaches the scan and a batch gives what its members give alone.

Cutting, encoding and cross-fading each work on a stream, so that recordings in memory and files of any length
(``ssamba.embed_files``) share them: ``WindowCutter`` -> ``encode_windows`` -> ``CrossFade``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.audio.feature_stream import FeatureStream
from ssamba.models import patches

if TYPE_CHECKING:
    from ssamba.inference.model import Encoder
    from ssamba.models.config import Config

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 262144}
"""Tokens in one pass: enough to fill the device, little enough to keep the memory flat."""
PASSES_WAITING = 4
"""Passes' worth of windows that may wait for others of their width, before the fullest batch runs as it is."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of B recordings. T is the longest one's number of frames, F the number of frequency rows.

    clip (B, d): mean over a recording's patch tokens. frames (B, T, d): time-ordered, mean over frequency. times (T,):
    seconds at the centre of each frame. patches (B, F, T, d). lengths (B,): how many frames each recording has; what
    lies beyond is 0.
    """

    clip: Tensor
    frames: Tensor
    times: Tensor
    patches: Tensor
    lengths: Tensor


def frame_times(n_columns: int, config: Config) -> Tensor:
    """Seconds at the centre of each patch column, (n_columns,) float64."""
    first = config.front_end.seconds_of_frame((config.patch_time - 1) / 2)
    step = config.front_end.seconds_between(config.stride_time)
    return first + step * torch.arange(n_columns, dtype=torch.float64)


def window_starts(n_columns: int, window: int) -> list[int]:
    """First columns of half-overlapping windows that cover ``n_columns``; the last one ends with the recording."""
    if n_columns <= window:
        return [0]
    last, hop = n_columns - window, max(window // 2, 1)
    return [*range(0, last, hop), last]


@torch.no_grad()
def embed_audio(model: Encoder, audio: Any, sample_rate: int = 16000, whole: bool = False) -> Embeddings:
    """Embed recordings in memory.

    ``audio`` is (samples,), (batch, samples) or a list of different lengths, numpy or torch, at ``sample_rate``.
    Recordings longer than the grid are cut into overlapping windows, or with ``whole`` read in one pass. Raises
    ``AudioError`` for NaN, wrong shapes and recordings under 25 ms.
    """
    waveforms = log_mel.to_waveforms(audio, sample_rate, model.config.sample_rate)
    features = [waveform_features(waveform, model) for waveform in waveforms]
    return embed_features(features, model, whole)


def waveform_features(waveform: Tensor, model: Encoder) -> Tensor:
    """Normalised log-mel (frames, mel_bins) of a (samples,) waveform at the model's rate.

    Raises ``AudioError`` under 25 ms.
    """
    front_end = model.config.front_end
    log_mel.require_frames(len(waveform), front_end)
    stream = FeatureStream(front_end, model.device)
    return torch.cat([stream.feed(waveform), stream.finish()])


@dataclass(frozen=True)
class Window:
    """One piece of a recording for the model: which recording, its first patch column, features (frames, mel_bins).

    ``last`` marks the window that ends with the recording.
    """

    recording: int
    start: int
    features: Tensor
    last: bool


class WindowCutter:
    """Cuts one recording's normalised features, fed in pieces of any size, into windows.

    The starts are those of ``window_starts``; with ``whole`` there is one window, however long. Holds little more than
    two windows (or everything, with ``whole``).
    """

    def __init__(self, config: Config, recording: int = 0, whole: bool = False) -> None:
        self._config = config
        self._recording = recording
        self._window = None if whole else config.grid[1]
        self._base = 0  # column at which the held frames begin: that of the latest window
        self._next = 0  # column at which the next regular window begins
        self._frames = 0
        self._held: list[Tensor] = []

    def feed(self, features: Tensor) -> Iterator[Window]:
        """Take the next (frames, mel_bins); gives the windows that are complete and not the recording's last."""
        self._held.append(features)
        self._frames += features.shape[0]
        if self._window is None:
            return
        step = self._config.stride_time
        length = patches.covered_frames(self._window, self._config)
        # One frame beyond a window shows that it is not the last.
        while self._frames > self._next * step + length:
            held = self._joined()
            first = (self._next - self._base) * step
            self._held = [held[first:]]
            self._base = self._next
            self._next += max(self._window // 2, 1)
            yield Window(self._recording, self._base, held[first : first + length], last=False)

    def finish(self) -> Window:
        """The window that ends with the recording; its last column is filled up with padding."""
        n = patches.columns(self._frames, self._config)
        width = n if self._window is None else min(n, self._window)
        start = n - width
        held = self._joined()[(start - self._base) * self._config.stride_time :]
        missing = patches.covered_frames(width, self._config) - held.shape[0]
        padded = F.pad(held, (0, 0, 0, missing), value=self._config.front_end.pad_value)
        return Window(self._recording, start, padded, last=True)

    def _joined(self) -> Tensor:
        if len(self._held) > 1:
            self._held = [torch.cat(self._held)]
        return self._held[0]


class CrossFade:
    """Joins the tokens of one recording's windows, in their order, by triangular weights.

    Holds only columns that a later window may still touch. Results are (F, columns, d) in time order.
    """

    def __init__(self, config: Config) -> None:
        self._window = config.grid[1]
        self._first = 0  # column at which the sums begin
        self._total: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, window: Window, tokens_FTd: Tensor) -> Tensor:
        """Add a window's tokens; gives the next columns that are final, after the last window all that are left."""
        width = tokens_FTd.shape[1]
        if self._total is None or self._weight is None:
            self._total, self._weight = tokens_FTd[:, :0], tokens_FTd.new_zeros(0)
        done = self._take(window.start - self._first)
        fade = torch.ones(width)
        if width == self._window:
            fade = torch.minimum(torch.arange(1, width + 1), torch.arange(width, 0, -1))
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


def group_windows(model: Encoder, windows: Iterable[Window], batch: int | None = None) -> Iterator[list[Window]]:
    """Windows of many recordings in full batches, each of equal width, for one pass.

    ``batch`` is windows in a pass (None: as many as the device takes well). The windows of one recording keep their
    order; those of different recordings may change theirs.
    """
    rows = model.config.grid[0]
    limit = TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cpu"])
    groups: dict[int, list[Window]] = defaultdict(list)
    waiting = 0
    for window in windows:
        frames = window.features.shape[0]
        tokens = 1 + rows * patches.columns(frames, model.config)
        groups[frames].append(window)
        waiting += frames
        full = len(groups[frames]) >= (batch or max(1, limit // tokens))
        crowded = waiting // model.config.stride_time * rows > PASSES_WAITING * limit
        if full or crowded:
            if not full:
                frames = max(groups, key=lambda k: k * len(groups[k]))
            group = groups.pop(frames)
            waiting -= frames * len(group)
            yield group
    yield from groups.values()


def encode_windows(
    model: Encoder, windows: Iterable[Window], batch: int | None = None
) -> Iterator[tuple[Window, Tensor]]:
    """Encode windows in the batches of ``group_windows``: pairs of a window and its tokens (F, T, d) float32."""
    for group in group_windows(model, windows, batch):
        tokens_BLd = model.infer(torch.stack([window.features for window in group]))
        tokens_BFTd = tokens_BLd[:, model.prefix_tokens :].unflatten(1, (model.config.grid[0], -1)).float()
        yield from zip(group, tokens_BFTd, strict=True)


def embed_features(features: Sequence[Tensor], model: Encoder, whole: bool = False) -> Embeddings:
    """Embed normalised log-mel features of different lengths, a list of (frames, mel_bins), without their padding."""
    config = model.config
    fades = [CrossFade(config) for _ in features]
    parts: list[list[Tensor]] = [[] for _ in features]
    for window, tokens_FTd in encode_windows(model, _cut_all(features, config, whole)):
        parts[window.recording].append(fades[window.recording].add(window, tokens_FTd))
    grids_FTd = [torch.cat(part, dim=1) for part in parts]
    counts = [grid.shape[1] for grid in grids_FTd]
    longest = max(counts)
    patches_BFTd = torch.stack([F.pad(grid, (0, 0, 0, longest - grid.shape[1])) for grid in grids_FTd])
    lengths = torch.tensor(counts, device=model.device)
    clip = patches_BFTd.sum(dim=(1, 2)) / (lengths * config.grid[0])[:, None]
    times = frame_times(longest, config).to(model.device)
    return Embeddings(clip, patches_BFTd.mean(dim=1), times, patches_BFTd, lengths)


def _cut_all(features: Sequence[Tensor], config: Config, whole: bool) -> Iterator[Window]:
    for i, x in enumerate(features):
        cutter = WindowCutter(config, i, whole)
        yield from cutter.feed(x)
        yield cutter.finish()
