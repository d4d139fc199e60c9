"""Audio files of any number and length -> one file of embeddings, in bounded memory.

Files are decoded ahead by threads, in blocks; log-mel frames, windows and the cross-fade follow the stream, windows of
all files share full batches, and finished rows go to a temporary file at once. So neither a long recording nor a long
list of them is ever held as a whole, unless ``whole`` asks for one pass over each recording.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ssamba.audio.feature_stream import FeatureStream
from ssamba.inference.embed import CrossFade, Window, WindowCutter, encode_windows
from ssamba.inference.embedding_writer import LEVELS, Spool, Times, check_output, write_output
from ssamba.inference.file_stream import FileStream, Progress
from ssamba.inference.model import Encoder
from ssamba.utils.errors import ConfigError, DataError, SsambaError
from ssamba.utils.suggest import nearest


@dataclass
class Report:
    """What became of the files.

    ``written`` files gave ``rows`` rows of ``width`` values; ``failures`` holds (path, reason) of those that could not
    be read; ``audio_seconds`` is the audio that went through the model.
    """

    width: int
    written: int = 0
    rows: int = 0
    audio_seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)


def embed_files(
    files: Sequence[str],
    model: Encoder,
    out: Path,
    level: str = "clip",
    whole: bool = False,
    batch: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Embed audio files and write the result to ``out`` (.npz or .parquet; docs/embedding.md has the layouts).

    ``level`` is clip (one row per file), frame (one per patch column) or patch (one per patch). ``batch`` is
    windows per pass (None: what suits the device), ``threads`` decode. Files that cannot be read are left out and
    reported. Rows equal ``model.embed`` of each whole recording but for rounding.

    Raises ``ConfigError`` for a bad level, batch or output name, ``DataError`` when no file can be read, and
    ``SsambaError`` when the output cannot be written; then nothing is left behind.
    """
    if level not in LEVELS:
        raise ConfigError(f"level '{level}': choose one of {', '.join(LEVELS)}{nearest(level, list(LEVELS))}")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch is {batch}: give a whole number above 0")
    check_output(out)
    if not files:
        raise DataError("no audio files given")
    spool = Spool(out, model.config.width, model.config.grid[0] if level == "patch" else 1)
    try:
        with FileStream(files, threads, progress, model.config.sample_rate) as stream:
            run = _Run(stream, model, spool, level, whole)
            run.encode(batch)
        return run.write()
    except torch.OutOfMemoryError:
        mend = "shorter recordings, or no --whole" if whole else "a smaller --batch"
        raise SsambaError(f"the device's memory does not suffice: give {mend}") from None
    finally:
        spool.close()


class _Run:
    """One call of ``embed_files``: the files, the open cross-fades and what is known so far."""

    def __init__(self, stream: FileStream, model: Encoder, spool: Spool, level: str, whole: bool) -> None:
        self.stream, self.model, self.spool, self.level, self.whole = stream, model, spool, level, whole
        self._clip_sums: dict[int, tuple[Tensor, int]] = {}

    def encode(self, batch: int | None) -> None:
        """Run all files through the model into the spool."""
        fades: dict[int, CrossFade] = {}
        for window, tokens_FTd in encode_windows(self.model, self._windows(), batch):
            i = window.recording
            fade = fades.pop(i, None) or CrossFade(self.model.config)
            if i in self.stream.failed:
                continue
            self._store(window, fade.add(window, tokens_FTd))
            if not window.last:
                fades[i] = fade

    def _windows(self) -> Iterator[Window]:
        """Windows of all files, one file after the other; those of a file that fails end early."""
        config = self.model.config
        for i, blocks in self.stream.recordings():
            cutter = WindowCutter(config, i, self.whole)
            features = FeatureStream(config.front_end, self.model.device)
            for block in blocks:
                yield from cutter.feed(features.feed(block))
            if i not in self.stream.failed:
                yield from cutter.feed(features.finish())
                yield cutter.finish()

    def _store(self, window: Window, columns_FTd: Tensor) -> None:
        """Spool the final columns (F, n, d) of a file at the wanted level."""
        i = window.recording
        if self.level == "patch":
            rows = columns_FTd.transpose(0, 1).flatten(0, 1)
        elif self.level == "frame":
            rows = columns_FTd.mean(dim=0)
        else:
            total, count = self._clip_sums.pop(i, (torch.zeros(()), 0))
            # Double precision: hours have hundreds of thousands of columns.
            total = total.to(columns_FTd.device) + columns_FTd.double().mean(dim=0).sum(dim=0)
            count += columns_FTd.shape[1]
            if not window.last:
                self._clip_sums[i] = total, count
                return
            rows = (total / count)[None]
        self.spool.append(i, rows.float().cpu().numpy())

    def write(self) -> Report:
        """Write the output from the spool. Raises ``DataError`` when no file could be read."""
        stream, config = self.stream, self.model.config
        good = stream.good()
        times = Times(
            config.front_end.seconds_of_frame((config.patch_time - 1) / 2),
            config.front_end.seconds_between(config.stride_time),
        )
        write_output(self.spool, good, [stream.files[i] for i in good], self.level, times)
        rows = self.spool.rows_of(good)
        return Report(config.width, len(good), rows, stream.audio_seconds, stream.failures)
