"""Audio files of any number and length -> class scores of a fine-tuned model for each, in bounded memory.

Files stream through ``ssamba.inference.file_stream`` as for embedding; the segments of all files share full passes.
Of a long recording only its scores are kept, until its last one is known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssamba.audio.decode import audio_info, stream_audio
from ssamba.audio.feature_stream import FeatureStream
from ssamba.inference.events.merge import EventOptions
from ssamba.inference.events.write import EventWriter, plan_event_output
from ssamba.inference.file_stream import BLOCK_SECONDS, FileStream, Progress, check_request
from ssamba.inference.load import load
from ssamba.inference.model import Encoder
from ssamba.inference.outputs.file_names import name_in_output
from ssamba.inference.outputs.provenance import provenance_of
from ssamba.inference.outputs.score_writers import PredictionWriter
from ssamba.inference.plots import timeline
from ssamba.inference.predict import PredictOptions, check_options, default_every, predict_segments, prediction_plan
from ssamba.inference.windows import cut_recordings
from ssamba.models.pretrained.load import ModelSource
from ssamba.utils.device import device_memory
from ssamba.utils.errors import CheckpointError, ConfigError
from ssamba.utils.lock import lock_output
from ssamba.utils.plots import require_matplotlib
from ssamba.utils.torch_defaults import HOST_FLOAT32

PICTURE_COLUMNS = 1600
"""Most columns of a timeline's spectrogram: more than its pixels would only take memory."""


@dataclass
class PredictReport:
    """Summary of a prediction run.

    ``written`` of them were classified; ``failures`` holds (path, reason) of those that could not be read; ``text`` is
    the table for the reader when there was no output file.
    """

    written: int
    failures: list[tuple[str, str]]
    text: str


def load_classifier(
    source: ModelSource, device: str | torch.device = "auto", dtype: str | torch.dtype = "fp32"
) -> Encoder:
    """A fine-tuned model. Raises ``CheckpointError`` naming the source for one without a classifier, as ``load``."""
    model = load(source, device, dtype=dtype)
    if model.classifier is None:
        raise CheckpointError(f"{source}: has no classifier, so it cannot name classes: give a fine-tuned run")
    return model


def predict_files(
    files: Sequence[str],
    model: Encoder,
    out: Path | None = None,
    picture: Path | None = None,
    top: int | None = 5,
    every: float | None = None,
    window: float | None = None,
    batch: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    events: EventOptions | None = None,
    format: str | None = None,
    reject: bool = False,
    threshold: float | None = None,
    paths: str = "given",
) -> PredictReport:
    """Classify audio files; ``top``, ``every``, ``window``, ``reject``, ``threshold`` are those of ``predict_audio``.

    Writes the ``top`` classes (None: all) to ``out`` (.json or .csv; docs/prediction.md has the layouts), or without
    it into the report's text, and draws the one file's timeline to ``picture`` (.png, with ``every``). Files that
    cannot be read are left out and reported.

    With ``events``, events are written instead, in ``format`` (``LABEL_FORMATS``; None: that of ``out``'s ending), to a
    file or into a folder (``plan_event_output``); without ``every`` rows are as long as ``default_every`` says.
    ``paths`` is how files are named in the output: as ``given``, ``absolute``, or ``relative`` to its folder.

    Raises ``ConfigError`` for settings that do not fit (``check_options``) or output names that cannot be,
    ``DataError`` when no file can be read, ``SsambaError`` when the output cannot be written; then nothing is left
    behind.
    """
    if events is not None and every is None:
        every = default_every(model)
    options = check_options(model, every, window, reject, threshold)
    check_request(files, batch)
    if picture is not None:
        _check_picture(picture, files, options)
    with (
        device_memory("a smaller --batch"),
        lock_output(out),
        FileStream(files, threads, progress, model.config.sample_rate) as stream,
        make_writer(out, model, options, files, events, format, top, paths) as writer,
    ):
        written = 0
        segments = cut_recordings(model, stream.recordings(), prediction_plan(model, options), stream.failed)
        for file, prediction in predict_segments(model, segments, options, batch, top, stream.failed):
            name = stream.files[file]
            # Events know their recordings by the names that they came with.
            writer.add(name if events is not None else name_in_output(name, out, paths), prediction)
            written += 1
            if picture is not None:
                nyquist = model.config.front_end.nyquist
                found = None if events is None else prediction.find_events(events)
                timeline(prediction, spectrogram(name, model), name, picture, nyquist=nyquist, events=found)
        stream.readable_files()
    return PredictReport(written, stream.failures, writer.text)


def make_writer(
    out: Path | None,
    model: Encoder,
    options: PredictOptions,
    files: Sequence[str],
    events: EventOptions | None = None,
    format: str | None = None,
    top: int | None = None,
    paths: str = "given",
) -> PredictionWriter | EventWriter:
    """The writer of rows, or of events. Raises ``ConfigError`` for an output that cannot be."""
    if files:
        name_in_output(files[0], out, paths)
    asked = asdict(options) | ({"top": top} if events is None else asdict(events))
    provenance = {} if out is None else provenance_of(model, "scores" if events is None else "events", asked)
    if events is not None:
        return EventWriter(plan_event_output(out, format, files), model, events, provenance, paths)
    if format is not None:
        raise ConfigError(f"format is {format}: it is one of events; give them as well")
    return PredictionWriter(out, model, options.every is not None, provenance)


def _check_picture(picture: Path, files: Sequence[str], options: PredictOptions) -> None:
    if options.every is None:
        raise ConfigError(f"{picture}: a timeline shows scores in time: give --every SECONDS as well")
    if len(files) > 1:
        raise ConfigError(f"{picture}: a timeline shows one recording, and {len(files)} files are given: give one")
    require_matplotlib(picture)


def spectrogram(path: str | os.PathLike[str], model: Encoder) -> npt.NDArray[np.float32]:
    """Log-mel of a file, (columns, mel_bins), averaged over stretches of time to at most ``PICTURE_COLUMNS``."""
    front_end = model.config.front_end
    frames = max(1, front_end.frame_count(round(audio_info(path).seconds * front_end.sample_rate)))
    width = -(-frames // PICTURE_COLUMNS)
    stream = FeatureStream(front_end, model.device)
    columns: list[Tensor] = []
    held = torch.empty(0, front_end.mel_bins, **HOST_FLOAT32)

    def pooled(features: Tensor, final: bool = False) -> Tensor:
        features = torch.cat([held, features.cpu()])
        n = len(features) if final else len(features) // width * width
        columns.extend(part.mean(dim=0) for part in features[:n].split(width) if len(part))
        return features[n:].clone()

    for block in stream_audio(path, BLOCK_SECONDS, front_end.sample_rate):
        held = pooled(stream.feed(torch.from_numpy(block)))
    pooled(stream.finish(), final=True)
    return np.asarray(front_end.denormalise(torch.stack(columns)).numpy(), dtype=np.float32)
