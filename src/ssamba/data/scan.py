"""Lengths of clips from their headers, and the record of files that cannot be read."""

from __future__ import annotations

import contextlib
import csv
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ssamba.audio.checks import check_length
from ssamba.audio.decode import AudioInfo, audio_info
from ssamba.data.lengths import FileVersion, LengthStore, open_lengths
from ssamba.data.manifest import Clip, Source
from ssamba.utils.errors import AudioError, DataError
from ssamba.utils.threads import ThreadPool

__all__ = ["CountProgress", "SkipList", "cached_info", "scan_clips", "scan_sources"]

CountProgress = Callable[[int, int], None]
"""Called as progress(done, total), from the thread that asked for the work."""

KEPT_FROM = 1000
"""Clips from which on their lengths are kept on disk: fewer are read in a second."""
SLICE = 64
"""Clips that a thread takes at a time."""
_HEADER_CACHE: dict[FileVersion, AudioInfo] = {}  # (path, bytes, mtime in ns): a changed file is read again


class SkipList:
    """Unreadable clips: each is written once to ``skipped.csv``, and too many of them stop the run.

    Not tied to one thread: every method may be called from any.

    Args:
        path: the CSV to append to (columns path, reason), or None to keep the record in memory. Paths that it holds
            from an earlier part of the run are not written again.
        limit: largest share of the clips tried that may be unreadable.
        minimum: clips that must have been tried before :meth:`check` applies the limit, unless all have been. Two bad
            files among the first twenty say little about thousands.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, limit: float = 0.05, minimum: int = 100) -> None:
        self.path = None if path is None else os.fspath(path)
        self.limit = limit
        self.minimum = minimum
        self._lock = threading.Lock()
        self._tried: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._written = self._read_written()

    def __len__(self) -> int:
        """Number of different unreadable clips."""
        return len(self._reasons)

    def __contains__(self, path: str) -> bool:
        return path in self._reasons

    @property
    def tried(self) -> int:
        """Number of different clips tried."""
        return len(self._tried)

    @property
    def reasons(self) -> dict[str, str]:
        """Unreadable path -> reason, in the order of discovery."""
        with self._lock:
            return dict(self._reasons)

    def succeeded(self, paths: Iterable[str]) -> None:
        """Count clips that were read."""
        with self._lock:
            self._tried.update(paths)

    def record(self, path: str, reason: str) -> None:
        """Note an unreadable clip, and append it to the file when it is new there.

        Raises:
            DataError: the file cannot be written.
        """
        with self._lock:
            self._tried.add(path)
            if path not in self._reasons:
                self._reasons[path] = reason
                self._append(path, reason)

    def check(self, final: bool = False) -> None:
        """Check the share of unreadable clips.

        Args:
            final: every clip has been tried, so `minimum` does not apply.

        Raises:
            DataError: more than `limit` of the clips tried are unreadable, with at least `minimum` tried or at the end.
        """
        with self._lock:
            bad, tried = len(self._reasons), len(self._tried)
            if not bad or bad <= self.limit * tried or (tried < self.minimum and not final):
                return
            path, reason = next(iter(self._reasons.items()))
        where = f" (all are in {self.path})" if self.path else ""
        raise DataError(
            f"{bad} of {tried} clips cannot be read, more than {self.limit:.0%}; the first is {path}: {reason}{where}"
        )

    def _read_written(self) -> set[str]:
        if self.path is None or not os.path.exists(self.path):
            return set()
        # A run killed in the middle of a line leaves a torn last row: harmless, its path is then written again.
        with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return {row[0] for row in csv.reader(file) if len(row) == 2} - {"path"}

    def _append(self, path: str, reason: str) -> None:
        if self.path is None or path in self._written:
            return
        self._written.add(path)
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            with open(self.path, "a+", encoding="utf-8", errors="surrogateescape", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if file.tell() == 0:
                    writer.writerow(("path", "reason"))
                elif not _ends_with_newline(self.path):
                    file.write("\n")
                writer.writerow((path, reason))
        except OSError as error:
            raise DataError(f"{self.path}: the list of skipped files cannot be written ({error.strerror})") from None


def scan_clips(
    clips: Sequence[Clip], skip: SkipList | None = None, threads: int = 8, progress: CountProgress | None = None
) -> list[Clip]:
    """Fill in the length of each clip from its header; drop those that are unreadable or under 25 ms.

    Headers are read by `threads` threads and remembered for the life of the process, and of `KEPT_FROM` clips or more
    for the next start, too (:mod:`ssamba.data.lengths`). Clips whose length the manifest states are passed on unread.

    Args:
        clips: what to scan.
        skip: where unreadable clips go; None makes one that lives in memory.
        threads: readers at a time.
        progress: called after every few clips as progress(done, total).

    Returns:
        The readable clips in their order, each with its length.

    Raises:
        DataError: more unreadable clips than `skip` allows, or none left.
    """
    skip = SkipList() if skip is None else skip
    kept: list[Clip] = []
    done = 0
    many = sum(clip.seconds is None for clip in clips) >= KEPT_FROM
    with (
        ThreadPool(threads) as pool,
        open_lengths() if many else contextlib.nullcontext() as store,
    ):
        for first in range(0, len(clips), 4096):  # a bounded number of futures, also for millions of clips
            parts = [clips[i : i + SLICE] for i in range(first, min(first + 4096, len(clips)), SLICE)]
            new = [] if store is None else _recall(store, [f for files in pool.map(_versions, parts) for f in files])
            for part, results in zip(parts, pool.map(_scan_slice, parts), strict=True):
                for clip, result in zip(part, results, strict=True):
                    if isinstance(result, AudioError):
                        skip.record(clip.path, result.reason)
                    else:
                        skip.succeeded((clip.path,))
                        kept.append(result)
                done += len(part)
                if progress is not None:
                    progress(done, len(clips))
            if store is not None:
                store.keep((file, _HEADER_CACHE[file]) for file in new if file in _HEADER_CACHE)
    skip.check(final=True)
    if not kept:
        raise DataError("no readable clips" + (f"; the first is {clips[0].path}" if clips else " were given"))
    return kept


def scan_sources(
    sources: Sequence[Source], skip: SkipList | None = None, threads: int = 8, progress: CountProgress | None = None
) -> list[Source]:
    """:func:`scan_clips` for each source, with one progress over all of them. Raises DataError likewise."""
    skip = SkipList() if skip is None else skip
    total = sum(len(source.clips) for source in sources)
    scanned, before = [], 0
    for source in sources:
        report = None if progress is None else _shifted(progress, before, total)
        scanned.append(replace(source, clips=tuple(scan_clips(source.clips, skip, threads, report))))
        before += len(source.clips)
    return scanned


def _shifted(progress: CountProgress, before: int, total: int) -> CountProgress:
    return lambda done, _: progress(before + done, total)


def _scan_slice(clips: Sequence[Clip]) -> list[Clip | AudioError]:
    return [_scan_one(clip) for clip in clips]


def _scan_one(clip: Clip) -> Clip | AudioError:
    if clip.seconds is not None:
        return clip
    try:
        info = cached_info(clip.path)
        check_length(info.frames, clip.path, info.sample_rate)
    except AudioError as error:
        return error
    return replace(clip, frames=info.frames, rate=info.sample_rate)


def _versions(clips: Sequence[Clip]) -> list[FileVersion]:
    found = []
    for clip in clips:
        if clip.seconds is None:
            with contextlib.suppress(OSError, ValueError):
                status = os.stat(clip.path)
                found.append((clip.path, status.st_size, status.st_mtime_ns))
    return found


def _recall(store: LengthStore, files: Sequence[FileVersion]) -> list[FileVersion]:
    """Take over what the store knows, and return the files that it does not."""
    unknown = [file for file in files if file not in _HEADER_CACHE]
    known = store.recall(unknown)
    _HEADER_CACHE.update(known)
    return [file for file in unknown if file not in known]


def cached_info(path: str) -> AudioInfo:
    """:func:`ssamba.audio.decode.audio_info`, remembered until the file changes. Raises ``AudioError`` likewise."""
    try:
        status = os.stat(path)
    except OSError:
        return audio_info(path)  # says what is wrong
    key = (path, status.st_size, status.st_mtime_ns)
    info = _HEADER_CACHE.get(key)
    if info is None:
        info = _HEADER_CACHE[key] = audio_info(path)
    return info


def _ends_with_newline(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
