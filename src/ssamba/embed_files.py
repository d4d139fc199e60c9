"""Audio files of any number and length -> one file of embeddings, in bounded memory.

Files are decoded ahead by threads, in blocks; log-mel frames, windows and the cross-fade follow the stream, windows of
all files share full batches, and finished rows go to a temporary file at once. So neither a long recording nor a long
list of them is ever held as a whole, unless ``whole`` asks for one pass over each recording.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba import frontend
from ssamba.config import nearest
from ssamba.data.audio import SAMPLE_RATE, Waveform, audio_info, stream_audio
from ssamba.data.manifest import read_source
from ssamba.embed_output import LEVELS, Spool, Times, check_output, write_output
from ssamba.errors import AudioError, ConfigError, DataError, SsambaError
from ssamba.models.embedding import CrossFade, FeatureStream, Window, WindowCutter, encode_windows
from ssamba.models.encoder import Encoder

BLOCK_SECONDS = 30.0
"""Audio decoded at a time; files up to this length are decoded whole, ahead of the model."""

Progress = Callable[[float, float, str], None]
"""Called as progress(done, total, note) from the thread that asked for the work; the unit is bytes of the files."""


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


def list_files(arguments: Sequence[str]) -> tuple[list[str], int]:
    """Audio files of folders (recursive), manifests and names, each once, and how many were named again.

    Raises ``DataError`` for a missing path, a folder without audio, or an ending that is no audio's.
    """
    files: dict[str, str] = {}
    again = 0
    for argument in arguments:
        for clip in read_source(argument):
            again += os.path.abspath(clip.path) in files
            files.setdefault(os.path.abspath(clip.path), clip.path)
    return list(files.values()), again


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
        run = _Run(list(files), model, spool, level, whole, progress)
        run.encode(batch, threads or min(8, os.cpu_count() or 1))
        return run.write()
    except torch.OutOfMemoryError:
        mend = "shorter recordings, or no --whole" if whole else "a smaller --batch"
        raise SsambaError(f"the device's memory does not suffice: give {mend}") from None
    finally:
        spool.close()


class _Opened(NamedTuple):
    """A file's first block, and where the others come from when there are any."""

    first: Waveform
    second: Waveform | None
    rest: Iterator[Waveform]
    seconds: float


def _open(path: str) -> _Opened:
    rest = stream_audio(path, BLOCK_SECONDS)
    first, second = next(rest), next(rest, None)
    seconds = len(first) / SAMPLE_RATE if second is None else audio_info(path).seconds
    return _Opened(first, second, rest, seconds)


def _read_ahead(files: Sequence[str], pool: ThreadPoolExecutor, ahead: int) -> Iterator[Future[_Opened]]:
    waiting: deque[Future[_Opened]] = deque()
    for path in files:
        waiting.append(pool.submit(_open, path))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _blocks(opened: _Opened, pool: ThreadPoolExecutor) -> Iterator[Waveform]:
    """All blocks of one file, the next one being decoded while the present one is in use."""
    yield opened.first
    block = opened.second
    while block is not None:
        future = pool.submit(next, opened.rest, None)
        yield block
        block = future.result()


class _Run:
    """One call of ``embed_files``: the files, the open cross-fades and what is known so far."""

    def __init__(
        self, files: list[str], model: Encoder, spool: Spool, level: str, whole: bool, progress: Progress | None
    ) -> None:
        self.files, self.model, self.spool, self.level, self.whole = files, model, spool, level, whole
        self.report = Report(model.config.width)
        self.failed: set[int] = set()
        self._progress = progress
        self._bytes = [_size(path) for path in files]
        self._bytes_done = 0
        self._begin = time.monotonic()
        self._clip_sums: dict[int, tuple[Tensor, int]] = {}

    def encode(self, batch: int | None, threads: int) -> None:
        """Run all files through the model into the spool."""
        fades: dict[int, CrossFade] = {}
        with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="ssamba-decode") as pool:
            try:
                for window, tokens_FTd in encode_windows(self.model, self._windows(pool, 2 * threads), batch):
                    i = window.recording
                    fade = fades.pop(i, None) or CrossFade(self.model.config)
                    if i in self.failed:
                        continue
                    self._store(window, fade.add(window, tokens_FTd))
                    if not window.last:
                        fades[i] = fade
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _windows(self, pool: ThreadPoolExecutor, ahead: int) -> Iterator[Window]:
        """Windows of all files, one file after the other; a file that fails ends early and is noted."""
        config = self.model.config
        for i, future in enumerate(_read_ahead(self.files, pool, ahead)):
            cutter = WindowCutter(config, i, self.whole)
            stream = FeatureStream(config, self.model.device)
            seconds = 0.0
            try:
                opened = future.result()
                for block in _blocks(opened, pool):
                    yield from cutter.feed(stream.feed(torch.from_numpy(block)))
                    seconds += len(block) / SAMPLE_RATE
                    self._tell(i, seconds, opened.seconds)
                yield from cutter.feed(stream.finish())
                yield cutter.finish()
            except AudioError as error:
                self.failed.add(i)
                self.report.failures.append((self.files[i], error.reason))
            self.report.audio_seconds += seconds
            self._bytes_done += self._bytes[i]
            self._tell(i + 1, 0.0, 1.0)

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

    def _tell(self, file: int, seconds: float, of: float) -> None:
        if self._progress is None:
            return
        within = min(1.0, seconds / of) * self._bytes[file] if seconds else 0.0
        audio = self.report.audio_seconds + seconds
        rate = audio / max(time.monotonic() - self._begin, 1e-3)
        note = f"{file}/{len(self.files)} files, {audio / 3600:.2f} h of audio, {rate:,.0f} x real time"
        self._progress(self._bytes_done + within, sum(self._bytes), note)

    def write(self) -> Report:
        """Write the output from the spool."""
        good = [i for i in range(len(self.files)) if i not in self.failed]
        if not good:
            path, reason = self.report.failures[0]
            more = (
                f" (none of the {len(self.files)} files can be read, this is the first)" if len(self.files) > 1 else ""
            )
            raise DataError(f"{path}: {reason}{more}")
        config = self.model.config
        times = Times(
            frontend.seconds_of_frame((config.patch_time - 1) / 2),
            config.stride_time * frontend.FRAME_SHIFT / frontend.SAMPLE_RATE,
        )
        write_output(self.spool, good, [self.files[i] for i in good], self.level, times)
        self.report.written, self.report.rows = len(good), self.spool.rows_of(good)
        return self.report


def _size(path: str) -> int:
    try:
        return max(1, os.stat(path).st_size)
    except OSError:
        return 1
