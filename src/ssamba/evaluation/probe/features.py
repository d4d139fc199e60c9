"""Frozen features of every example: pooled patch tokens, layer by layer, and log-mel statistics.

A recording that fits the model's grid goes through in one pass with its number of columns, a longer one in windows
as for embedding, whose tokens are pooled together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssamba.audio.decode import Waveform
from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.data.examples import Example
from ssamba.data.loaders.read_example import example_seconds, is_long, read_example, stream_example
from ssamba.data.loaders.workers import decode_ahead
from ssamba.evaluation.knn import ColumnSums, log_mel_statistics
from ssamba.inference.batches import by_recording, group_segments, run_passes
from ssamba.inference.embed import embedding_plan
from ssamba.inference.file_stream import Progress
from ssamba.inference.model import Encoder
from ssamba.inference.pooling import Moments, column_moments
from ssamba.inference.windows import cut_recordings
from ssamba.utils.errors import ConfigError
from ssamba.utils.torch_defaults import HOST_FLOAT32

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
        out[LOG_MEL] = torch.empty(len(examples), 2 * front_end.mel_bins, **HOST_FLOAT32)
    if model is None:
        for _, blocks in _recordings(examples, front_end, out, progress):
            for _ in blocks:
                pass
        return out
    width = model.config.width
    out |= {layer_name(layer): torch.empty(len(examples), 2 * width, **HOST_FLOAT32) for layer in wanted.layers}
    if wanted.rows:
        values = 2 * width * model.config.grid[0]
        out |= {rows_name(layer): torch.empty(len(examples), values, **HOST_FLOAT32) for layer in wanted.layers}
    segments = cut_recordings(model, _recordings(examples, front_end, out, progress), embedding_plan(model.config))
    with torch.no_grad():
        passes = run_passes(group_segments(model, segments), lambda features: _pool(model, features, wanted.layers))
        for segment, (mean, square, count), moments in by_recording(passes, Moments):
            moments.add_moments(mean, square, count)
            if not segment.last:
                continue
            for layer, values in zip(wanted.layers, moments.result(), strict=True):
                out[layer_name(layer)][segment.recording] = values
            if wanted.rows:
                for layer, values in zip(wanted.layers, moments.rows(), strict=True):
                    out[rows_name(layer)][segment.recording] = values
    return out


def _recordings(
    examples: Sequence[Example], front_end: FrontEnd, out: dict[str, Tensor], progress: Progress | None
) -> Iterator[tuple[int, Iterable[Tensor]]]:
    """Each example's number and the blocks of its waveform; where they are asked for, log-mel statistics go to ``out``.

    Examples are read whole and ahead, long ones in blocks.
    """
    begin, seconds, sample_rate = time.monotonic(), 0.0, front_end.sample_rate

    def read(example: Example) -> Waveform | None:
        return None if is_long(example) else read_example(example, sample_rate=sample_rate)

    def blocks(i: int, waveform: Waveform | None) -> Iterator[Tensor]:
        nonlocal seconds
        whole = example_seconds(examples[i]) if waveform is None else len(waveform) / sample_rate
        before, sums = seconds, ColumnSums()
        for block in stream_example(examples[i], sample_rate) if waveform is None else [waveform]:
            if LOG_MEL in out:
                if waveform is None:
                    sums.add(block, front_end)
                else:
                    out[LOG_MEL][i] = torch.from_numpy(log_mel_statistics([waveform], front_end)[0])
            yield torch.from_numpy(block)
            seconds += len(block) / sample_rate
            if progress is not None:
                rate = seconds / max(time.monotonic() - begin, 1e-3)
                done = i + min(1.0, (seconds - before) / whole)
                progress(done, len(examples), f"{int(done)}/{len(examples)} recordings, {rate:,.0f} x real time")
        if waveform is None and LOG_MEL in out:
            out[LOG_MEL][i] = torch.from_numpy(sums.result())

    for i, (waveform,) in decode_ahead(range(len(examples)), lambda i: [examples[i]], read, THREADS, AHEAD):
        yield i, blocks(i, waveform)


def _pool(model: Encoder, features: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor, int]]:
    """Of each of B segments the moments of its columns: mean and mean square (layers, F, d), and their number."""
    # The last layer is what inference gives, which repeats passes of one shape quickly on a GPU.
    hidden = {model.n_layers: model.infer(features)} if list(layers) == [model.n_layers] else None
    hidden = hidden or dict(enumerate(model.encode_layers(features), start=1))
    rows = model.config.grid[0]
    grids = [hidden[layer][:, model.prefix_tokens :].float().unflatten(1, (rows, -1)) for layer in layers]
    moments = [column_moments(grid_BFTd) for grid_BFTd in grids]
    mean_BYFd, square_BYFd = (torch.stack(x, dim=1) for x in zip(*moments, strict=True))
    count = grids[0].shape[2]
    return [(mean, square, count) for mean, square in zip(mean_BYFd, square_BYFd, strict=True)]
