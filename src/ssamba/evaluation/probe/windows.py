"""What a classifier reads of every example, in the windows that ``ssamba predict`` reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ssamba.audio.decode import Waveform
from ssamba.data.examples import Example
from ssamba.data.loaders.read_example import example_seconds, is_long, read_example, stream_example
from ssamba.data.loaders.workers import decode_ahead
from ssamba.data.scan import SkipList
from ssamba.evaluation.probe.features import THREADS
from ssamba.inference.batches import by_recording, group_segments, run_passes
from ssamba.inference.model import Encoder
from ssamba.inference.predict import PredictOptions, prediction_plan
from ssamba.inference.windows import cut_recordings
from ssamba.utils.errors import AudioError
from ssamba.utils.progress import Bar

DECODED_AHEAD = 8


def classifier_windows(
    examples: Sequence[Example], model: Encoder, skip: SkipList, batch: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Pairs of an example's number and what the classifier's linear layer reads of it, (windows, values) on the CPU.

    In the examples' order. One that cannot be read is noted in ``skip`` and left out. ``batch`` is windows in a pass
    (None: as many as the device takes well). Raises ``DataError`` where ``skip`` has too many of them, ``ConfigError``
    for a model without classifier or one that labels each second.
    """
    failed: set[int] = set()
    plan = prediction_plan(model, PredictOptions())
    segments = cut_recordings(model, _recordings(examples, model, skip, failed), plan, failed)
    groups = group_segments(model, segments, batch, passes_waiting=math.inf)
    for segment, values, rows in by_recording(run_passes(groups, model.infer_values), list[Tensor], failed):
        rows.append(values)
        if segment.last:
            yield segment.recording, torch.stack(rows).cpu()
    skip.check(final=True)


def _recordings(
    examples: Sequence[Example], model: Encoder, skip: SkipList, failed: set[int]
) -> Iterator[tuple[int, Iterable[Tensor]]]:
    rate = model.config.sample_rate

    def read(example: Example) -> Waveform | AudioError | None:
        try:
            return None if is_long(example) else read_example(example, sample_rate=rate)
        except AudioError as error:
            return error

    for i, (found,) in decode_ahead(range(len(examples)), lambda i: [examples[i]], read, THREADS, DECODED_AHEAD):
        if isinstance(found, AudioError):
            failed.add(i)
            skip.record(found.path or examples[i].key, found.reason)
            yield i, []
        elif found is None:
            yield i, _long(examples[i], i, rate, skip, failed)
        else:
            skip.succeeded(part.path for part in examples[i].parts)
            yield i, [torch.from_numpy(found)]
        skip.check()


def _long(example: Example, number: int, rate: int, skip: SkipList, failed: set[int]) -> Iterator[Tensor]:
    """The blocks of a long example with a progress bar; they end early, and it is noted, where it cannot be read."""
    try:
        whole = example_seconds(example)
        with Bar(example.key, "s") as bar:
            done = 0
            for block in stream_example(example, rate):
                yield torch.from_numpy(block)
                done += len(block)
                bar.update(done / rate, whole)
    except AudioError as error:
        failed.add(number)
        skip.record(error.path or example.key, error.reason)
    else:
        skip.succeeded(part.path for part in example.parts)
