"""Audio files of any number and length as a stream of blocks, decoded ahead by threads, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba import ops
from ssamba.audio.decode import Waveform, audio_info, stream_audio
from ssamba.audio.front_end import PUBLISHED
from ssamba.data.folders import Problems
from ssamba.data.manifest import read_source
from ssamba.inference.model import Encoder
from ssamba.models import patches
from ssamba.utils.errors import AudioError, ConfigError, DataError
from ssamba.utils.threads import PoolJob, ThreadPool

BLOCK_SECONDS = 30.0
"""Audio decoded at a time; files up to this length are decoded whole, ahead of the model."""

Progress = Callable[[float, float, str], None]
"""Called as progress(done, total, note) from the thread that asked for the work; the unit is bytes of the files."""


def list_files(arguments: Sequence[str], problems: Problems | None = None) -> tuple[list[str], int]:
    """Audio files of folders (recursive), manifests and names, each once, and how many were named again.

    Folders that may not be read are added to ``problems`` as (path, reason), or without such a list logged. Raises
    ``DataError`` for a missing path, a folder without audio, or an ending that is no audio's.
    """
    files: dict[str, str] = {}
    again = 0
    for argument in arguments:
        for clip in read_source(argument, problems):
            again += os.path.abspath(clip.path) in files
            files.setdefault(os.path.abspath(clip.path), clip.path)
    return list(files.values()), again


@contextlib.contextmanager
def prefer_reference_if_short(files: Sequence[str], model: Encoder) -> Iterator[None]:
    """For a process that makes one pass over these files and ends: see ``ops.short_work``."""
    tokens = ops.SHORT + 1
    if len(files) == 1:
        with contextlib.suppress(AudioError):  # reported where the file is read
            front_end = model.config.front_end
            frames = front_end.frame_count(int(audio_info(files[0]).seconds * front_end.sample_rate))
            tokens = model.config.grid[0] * patches.columns(frames, model.config)
    with ops.short_work(model.device, tokens):
        yield


class _Opened(NamedTuple):
    """A file's first block, and where the others come from when there are any."""

    first: Waveform
    second: Waveform | None
    rest: Iterator[Waveform]
    seconds: float


def _open(path: str, sample_rate: int) -> _Opened:
    rest = stream_audio(path, BLOCK_SECONDS, sample_rate)
    first, second = next(rest), next(rest, None)
    seconds = len(first) / sample_rate if second is None else audio_info(path).seconds
    return _Opened(first, second, rest, seconds)


def check_request(files: Sequence[str], batch: int | None) -> None:
    """Refuse what no command on recordings takes. Raises ``ConfigError``, ``DataError``."""
    if batch is not None and batch < 1:
        raise ConfigError(f"batch is {batch}: give a whole number above 0")
    if not files:
        raise DataError("no audio files given")


class FileStream:
    """Blocks of many files, one file after the other. A context manager: its threads end with the block.

    Attributes:
        sample_rate: of the blocks, Hz: the model's.
        failed: numbers of the files that could not be read, perhaps after some blocks.
        failures: (path, reason) of these.
        audio_seconds: audio that came through.
    """

    def __init__(
        self,
        files: Sequence[str],
        threads: int | None = None,
        progress: Progress | None = None,
        sample_rate: int = PUBLISHED.sample_rate,
    ) -> None:
        self.files, self.sample_rate = list(files), sample_rate
        self.failed: set[int] = set()
        self.failures: list[tuple[str, str]] = []
        self.audio_seconds = 0.0
        threads = threads or min(8, os.cpu_count() or 1)
        self._ahead = 2 * threads
        self._pool = ThreadPool(threads, "ssamba-decode")
        self._progress = progress
        self._bytes = [_size(path) for path in files]
        self._bytes_done = 0
        self._begin = time.monotonic()

    def __enter__(self) -> FileStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def recordings(self) -> Iterator[tuple[int, Iterator[Tensor]]]:
        """Pairs of a file's number and its blocks (samples,) at ``sample_rate``; use these up before the next pair.

        Blocks of a file that cannot be read end early, and its number is in ``failed`` from then on.
        """
        waiting: deque[PoolJob[_Opened]] = deque()
        todo = iter(self.files)
        for i in range(len(self.files)):
            while len(waiting) <= self._ahead and (path := next(todo, None)) is not None:
                waiting.append(self._pool.submit(_open, path, self.sample_rate))
            yield i, self._blocks(i, waiting.popleft())

    def _blocks(self, file: int, opening: PoolJob[_Opened]) -> Iterator[Tensor]:
        seconds = 0.0
        try:
            opened = opening.result()
            for block in self._decoded(opened):
                yield torch.from_numpy(block)
                seconds += len(block) / self.sample_rate
                self._tell(file, seconds, opened.seconds)
        except AudioError as error:
            self.failed.add(file)
            self.failures.append((self.files[file], error.reason))
        self.audio_seconds += seconds
        self._bytes_done += self._bytes[file]
        self._tell(file + 1, 0.0, 1.0)

    def _decoded(self, opened: _Opened) -> Iterator[Waveform]:
        """All blocks of one file, the next one being decoded while the present one is in use."""
        yield opened.first
        block = opened.second
        while block is not None:
            following = self._pool.submit(next, opened.rest, None)
            yield block
            block = following.result()

    def _tell(self, file: int, seconds: float, of: float) -> None:
        if self._progress is None:
            return
        within = min(1.0, seconds / of) * self._bytes[file] if seconds else 0.0
        audio = self.audio_seconds + seconds
        rate = audio / max(time.monotonic() - self._begin, 1e-3)
        note = f"{file}/{len(self.files)} files, {rate:,.0f} x real time"
        self._progress(self._bytes_done + within, sum(self._bytes), note)

    def readable_files(self) -> list[int]:
        """Numbers of the files that were read. Raises ``DataError`` when there are none."""
        readable = [i for i in range(len(self.files)) if i not in self.failed]
        if not readable:
            path, reason = self.failures[0]
            more = (
                f" (none of the {len(self.files)} files can be read, this is the first)" if len(self.files) > 1 else ""
            )
            raise DataError(f"{path}: {reason}{more}")
        return readable


def _size(path: str) -> int:
    try:
        return max(1, os.stat(path).st_size)
    except OSError:
        return 1
