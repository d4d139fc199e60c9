"""Audio files -> the classes of several models with one encoder, as a table, JSON or CSV with a field for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ssamba.inference.file_stream import FileStream, Progress, check_request
from ssamba.inference.model import Encoder
from ssamba.inference.outputs.file_names import name_in_output
from ssamba.inference.outputs.provenance import provenance_of
from ssamba.inference.predict import prediction_plan
from ssamba.inference.predict_files import PredictReport
from ssamba.inference.several.predict import check_options_of_each, check_shared, predict_segments_of_each
from ssamba.inference.several.writer import EachWriter
from ssamba.inference.windows import cut_recordings
from ssamba.utils.device import device_memory
from ssamba.utils.lock import lock_output


def predict_files_with_each(
    files: Sequence[str],
    models: dict[str, Encoder],
    out: Path | None = None,
    top: int | None = 5,
    every: float | None = None,
    window: float | None = None,
    batch: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    reject: bool = False,
    threshold: float | None = None,
    paths: str = "given",
) -> PredictReport:
    """Classify audio files with several models of one encoder, by name; as ``predict_files`` for the rest.

    Raises ``ConfigError`` for models whose encoders differ, and as ``predict_files``.
    """
    check_shared(models)
    loaded = list(models.values())
    options = check_options_of_each(loaded, every, window, reject, threshold)
    check_request(files, batch)
    if files:
        name_in_output(files[0], out, paths)
    asked = asdict(options) | {"top": top}
    of_each = [] if out is None else [provenance_of(model, "scores", asked) for model in loaded]
    with (
        device_memory("a smaller --batch"),
        lock_output(out),
        FileStream(files, threads, progress, loaded[0].config.sample_rate) as stream,
        EachWriter(out, models, every is not None, of_each) as writer,
    ):
        plan, written = prediction_plan(loaded[0], options), 0
        segments = cut_recordings(loaded[0], stream.recordings(), plan, stream.failed)
        for file, each in predict_segments_of_each(loaded, segments, options, batch, top, stream.failed):
            writer.add(name_in_output(stream.files[file], out, paths), each)
            written += 1
        stream.readable_files()
    return PredictReport(written, stream.failures, writer.text)
