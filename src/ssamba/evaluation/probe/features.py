"""Frozen features of every example: pooled patch tokens, layer by layer, and log-mel statistics.

A recording that fits the model's grid goes through in one pass with its number of columns, a longer one in windows
as for embedding, whose tokens are pooled together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssamba.audio.decode import Waveform
from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.data.examples import Example
from ssamba.data.loaders.read_example import read_example
from ssamba.data.loaders.workers import decode_ahead
from ssamba.evaluation.knn import log_mel_statistics
from ssamba.inference.embed import Window, WindowCutter, group_windows, waveform_features
from ssamba.inference.file_stream import Progress
from ssamba.inference.model import Encoder
from ssamba.utils.errors import ConfigError

THREADS = 4
AHEAD = 64
"""Recordings decoded ahead, at most."""

LOG_MEL = "log_mel"


def layer_name(layer: int) -> str:
    """Name of a layer's features in what ``extract`` gives."""
    return f"layer.{layer}"


def rows_name(layer: int) -> str:
    """Name of a layer's features with each row of patches pooled by itself."""
    return f"layer.{layer}.rows"


def choose_layers(text: str, model: Encoder) -> tuple[int, ...]:
    """``last``, ``all`` or a number from 1 -> layers, ascending. Raises ``ConfigError``."""
    n = model.n_layers
    if text in ("last", "all"):
        return (n,) if text == "last" else tuple(range(1, n + 1))
    if not text.isdecimal() or not 1 <= int(text) <= n:
        raise ConfigError(f"layer '{text}': give 1 to {n}, last or all")
    return (int(text),)


@dataclass
class Wanted:
    """What to compute: these layers of a model (none without a model), log-mel statistics or not, rows or not.

    Log-mel statistics are of the model's front end, without a model of ``front_end``.
    """

    model: Encoder | None
    layers: tuple[int, ...]
    log_mel: bool
    rows: bool = False
    front_end: FrontEnd = PUBLISHED


def extract(examples: Sequence[Example], wanted: Wanted, progress: Progress | None = None) -> dict[str, Tensor]:
    """Features of all examples in one pass over the audio, float32 on the CPU.

    ``layer.K`` (N, 2 d): mean, then deviation, over the patch tokens as they leave step K of the chain. With ``rows``
    also ``layer.K.rows`` (N, 2 F d): the same over time alone, for each of the F rows of patches by itself, as in the
    linear evaluation of M2D (arXiv 2210.14648). ``log_mel`` (N, 2 mel_bins): mean and deviation over time of
    the log-mel bands. Raises ``AudioError`` for audio that cannot be read.
    """
    model = wanted.model
    front_end = wanted.front_end if model is None else model.config.front_end
    out: dict[str, Tensor] = {}
    if wanted.log_mel:
        out[LOG_MEL] = torch.empty(len(examples), 2 * front_end.mel_bins)
    if model is None:
        for i, waveform in _waveforms(examples, front_end.sample_rate, progress):
            _log_mel(out, i, waveform, front_end)
        return out
    width = model.config.width
    out |= {layer_name(layer): torch.empty(len(examples), 2 * width) for layer in wanted.layers}
    if wanted.rows:
        values = 2 * width * model.config.grid[0]
        out |= {rows_name(layer): torch.empty(len(examples), values) for layer in wanted.layers}
    open_sums: dict[int, _Moments] = {}
    with torch.no_grad():
        for group in group_windows(model, _windows(examples, model, out, progress)):
            pooled = _pool(model, group, wanted.layers)
            for window, moments in zip(group, pooled, strict=True):
                total = open_sums.pop(window.recording, None)
                total = moments if total is None else total.plus(moments)
                if not window.last:
                    open_sums[window.recording] = total
                    continue
                for layer, values in zip(wanted.layers, total.result(), strict=True):
                    out[layer_name(layer)][window.recording] = values
                if wanted.rows:
                    for layer, values in zip(wanted.layers, total.rows(), strict=True):
                        out[rows_name(layer)][window.recording] = values
    return out


def _waveforms(
    examples: Sequence[Example], sample_rate: int, progress: Progress | None
) -> Iterator[tuple[int, Waveform]]:
    begin, seconds = time.monotonic(), 0.0

    def read(example: Example) -> Waveform:
        return read_example(example, sample_rate=sample_rate)

    for i, (waveform,) in decode_ahead(range(len(examples)), lambda i: [examples[i]], read, THREADS, AHEAD):
        yield i, waveform
        seconds += len(waveform) / sample_rate
        if progress is not None:
            rate = seconds / max(time.monotonic() - begin, 1e-3)
            progress(i + 1, len(examples), f"{i + 1}/{len(examples)} recordings, {rate:,.0f} x real time")


def _log_mel(out: dict[str, Tensor], i: int, waveform: Waveform, front_end: FrontEnd) -> None:
    if LOG_MEL in out:
        out[LOG_MEL][i] = torch.from_numpy(log_mel_statistics([waveform], front_end)[0])


def _windows(
    examples: Sequence[Example], model: Encoder, out: dict[str, Tensor], progress: Progress | None
) -> Iterator[Window]:
    front_end = model.config.front_end
    for i, waveform in _waveforms(examples, front_end.sample_rate, progress):
        _log_mel(out, i, waveform, front_end)
        cutter = WindowCutter(model.config, i)
        yield from cutter.feed(waveform_features(torch.from_numpy(waveform), model))
        yield cutter.finish()


@dataclass
class _Moments:
    """Columns so far, and the mean of each value and of its square over them, (layers, F, d) float64."""

    count: int
    mean: Tensor
    square: Tensor

    def plus(self, other: _Moments) -> _Moments:
        n = self.count + other.count
        share = other.count / n
        return _Moments(n, torch.lerp(self.mean, other.mean, share), torch.lerp(self.square, other.square, share))

    def result(self) -> Tensor:
        """Mean and deviation over all tokens, (layers, 2 d) float32."""
        return _mean_and_deviation(self.mean.mean(dim=1), self.square.mean(dim=1))

    def rows(self) -> Tensor:
        """Means of all rows, then their deviations, (layers, 2 F d) float32."""
        return _mean_and_deviation(self.mean.flatten(1), self.square.flatten(1))


def _mean_and_deviation(mean: Tensor, square: Tensor) -> Tensor:
    return torch.cat([mean, (square - mean.square()).clamp_min(0).sqrt()], dim=1).float()


def _pool(model: Encoder, group: list[Window], layers: Sequence[int]) -> list[_Moments]:
    features = torch.stack([window.features for window in group])
    # The last layer is what inference gives, which repeats passes of one shape quickly on a GPU.
    hidden = {model.n_layers: model.infer(features)} if list(layers) == [model.n_layers] else None
    hidden = hidden or dict(enumerate(model.encode_layers(features), start=1))
    means, squares, count = [], [], 0
    for layer in layers:
        patches_BFTd = hidden[layer][:, model.prefix_tokens :].float().unflatten(1, (model.config.grid[0], -1))
        variance, mean = torch.var_mean(patches_BFTd, dim=2, correction=0)
        means.append(mean.double())
        squares.append(variance.double() + mean.double().square())
        count = patches_BFTd.shape[2]
    mean_BKFd, square_BKFd = (torch.stack(x, dim=1).cpu() for x in (means, squares))
    return [_Moments(count, mean, square) for mean, square in zip(mean_BKFd, square_BKFd, strict=True)]
