"""Which recording a label belongs to: by the name that its row gives, else by the name of its file.

``site/a.wav`` has its labels in ``site/a.txt``, ``site/a.Table.1.selections.txt`` or ``site/a.wav.txt``, in the
same folder or in a folder of labels with the same folders or with none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from ssamba.audio.decode import AUDIO_EXTENSIONS
from ssamba.data.labels.event import Event, LabelRow
from ssamba.data.labels.formats import LABEL_SUFFIXES, SIDECAR_SUFFIX, is_label_file, read_label_file
from ssamba.data.labels.text import parse_table, read_label_text
from ssamba.data.manifest import Clip, read_source
from ssamba.data.scan import cached_info
from ssamba.utils.errors import AudioError, DataError, nearest

END_TOLERANCE = 0.1
"""Seconds by which a label may run past the recording's end; it is cut there."""


@dataclass(frozen=True)
class LabelledRecording:
    """A recording of ``seconds`` with its events, none of them outside; ``key`` is its name in reports."""

    path: str
    key: str
    seconds: float
    events: tuple[Event, ...]


def labelled_recordings(data: Path, labels: Path | None = None) -> tuple[list[LabelledRecording], list[str]]:
    """The recordings that have labels, by name, and notes on what was left out.

    Args:
        data: a folder of recordings, one recording, or a label file whose rows name the recordings.
        labels: a label file or a folder of them (searched recursively); None: those in the folders of the recordings.

    Raises:
        DataError: labels of no recording, of a recording that is not there, or outside of it; two label files for one
            recording; no label at all.
    """
    if labels is None and data.is_file() and data.suffix.lower() in LABEL_SUFFIXES:
        named = _Named(data.parent, read_label_file(data), data)
        clips, files = named.clips, [data]
    else:
        clips = read_source(data)
        files = list(labels_in(clips, data)) if labels is None or _same(labels, data) else _all_label_files(labels)
    place = data.parent if data.is_file() else data
    pair = len(clips) == 1 and data.is_file() and labels is not None and labels.is_file()
    found = _RecordingNames(clips, place, pair)
    by_recording: dict[int, list[tuple[Event, str]]] = {}
    owner: dict[int, Path] = {}
    base = labels if labels is not None and labels.is_dir() else place
    for file in files:
        for number, event, where in _assigned(file, base, found):
            other = owner.setdefault(number, file)
            if other != file:
                raise DataError(f"{file}: {clips[number].key} has labels in {other} already; remove one of the files")
            by_recording.setdefault(number, []).append((event, where))
    if not by_recording:
        raise DataError(f"{labels or data}: no labels for the recordings of {data}; name a.txt as its recording a.wav")
    return _inside(clips, by_recording)


def has_times(data: Path) -> bool:
    """Whether data says by itself that its labels have times: a label file, or recordings next to label files.

    A table with a column split or fold is one of whole files, whose times may be those of an older recording. Of a
    folder the recordings at its top count; those in folders may be a class's.
    """
    if data.is_file():
        return is_label_file(data) and not _divided(data)
    top = sorted(entry.name for entry in os.scandir(data) if not entry.name.startswith("."))
    clips = [Clip(str(data / name), name) for name in top if name.lower().endswith(AUDIO_EXTENSIONS)]
    return any(True for _ in labels_in(clips, data))


def _divided(table: Path) -> bool:
    text = read_label_text(table)
    return not text.lstrip().startswith("{") and parse_table(table, text).column(("split", "fold")) is not None


def labels_in(clips: Sequence[Clip], data: Path, most: int | None = None) -> Iterator[Path]:
    """Files in the recordings' folders that are named as they are and hold labels with times; not ``data`` itself.

    ``most``: how many files are looked into, None for all.
    """
    folders: dict[str, set[str]] = {}
    for clip in clips:
        folder, name = os.path.split(clip.path)
        folders.setdefault(folder, set()).update((name, os.path.splitext(name)[0]))
    named = (
        Path(folder, entry)
        for folder, names in folders.items()
        for entry in sorted(os.listdir(folder or "."))
        if entry.lower().endswith(LABEL_SUFFIXES) and any(part in names for part in _prefixes(entry))
    )
    for path in islice(named, most):
        if path != data and is_label_file(path):
            yield path


def _prefixes(name: str) -> Iterator[str]:
    """``a.b.txt`` -> ``a.b``, ``a``: names of recordings that a label file may belong to, the longest first."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:count])


def _same(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and os.path.samefile(first, second)


def _all_label_files(labels: Path) -> list[Path]:
    if labels.is_file():
        return [labels]
    if not labels.is_dir():
        raise DataError(f"{labels}: no such file or folder; give the labels, a folder or a file")
    named = (p for p in labels.rglob("*") if p.suffix.lower() in LABEL_SUFFIXES and not p.name.startswith("."))
    found = sorted(p for p in named if not p.name.endswith(SIDECAR_SUFFIX))
    if not found:
        raise DataError(f"{labels}: no label files in this folder or below (looked for {', '.join(LABEL_SUFFIXES)})")
    return found


class _Named:
    """The recordings that the rows of a label file name."""

    def __init__(self, folder: Path, rows: Sequence[LabelRow], file: Path) -> None:
        found: dict[str, Clip] = {}
        for row in rows:
            if row.recording is None:
                raise DataError(f"{file}: does not name its recordings; give --data RECORDINGS --labels {file}")
            name = row.recording.replace("\\", "/")
            path = next((p for p in (folder / name, Path(name)) if p.is_file()), None)
            if path is None:
                raise DataError(f"{file}: {row.where}: no recording {folder / name}; paths are relative to the file")
            found.setdefault(os.path.realpath(path), Clip(str(path), PurePosixPath(name).as_posix()))
        self.clips = list(found.values())


class _RecordingNames:
    """Finds recordings by path, name or stem; ``pair``: one recording was given with one label file, of any name."""

    def __init__(self, clips: Sequence[Clip], place: Path, pair: bool) -> None:
        self.place, self.clips, self.pair = place, clips, pair
        self.real = {os.path.realpath(clip.path): number for number, clip in enumerate(clips)}
        self.by_name: dict[str, list[int]] = {}
        for number, clip in enumerate(clips):
            name = PurePosixPath(clip.key).name
            for known in dict.fromkeys((name, os.path.splitext(name)[0])):
                self.by_name.setdefault(known, []).append(number)

    def of_path(self, text: str, file: Path, where: str) -> int:
        """The recording that a row names, relative to its file, to the recordings or to the present folder."""
        name = text.replace("\\", "/")
        for path in (file.parent / name, self.place / name, Path(name)):
            if (number := self.real.get(os.path.realpath(path))) is not None:
                return number
        return self._only(self.by_name.get(PurePosixPath(name).name, []), text, f"{file}: {where}")

    def of_file(self, file: Path, base: Path) -> int:
        """The recording that a label file is named as, in the same folder or, where it is the only one, in another."""
        if self.pair:
            return 0
        try:
            folder = file.parent.relative_to(base).as_posix()
        except ValueError:
            folder = "."
        for name in _prefixes(file.name):
            numbers = self.by_name.get(name, [])
            near = [n for n in numbers if PurePosixPath(self.clips[n].key).parent.as_posix() == folder]
            if numbers:
                return self._only(near or numbers, name, str(file))
        return self._only([], file.name.split(".")[0], str(file))

    def _only(self, numbers: Sequence[int], name: str, where: str) -> int:
        if not numbers:
            near = nearest(name, self.by_name) or "; add it, or remove its labels"
            raise DataError(f"{where}: no recording {name} in {self.place}{near}")
        if len(numbers) > 1:
            first, second = (self.clips[n].key for n in numbers[:2])
            raise DataError(f"{where}: {name} may be {first} or {second}; give its path, or name the file {first}.txt")
        return numbers[0]


def _assigned(file: Path, base: Path, found: _RecordingNames) -> Iterator[tuple[int, Event, str]]:
    rows = read_label_file(file)
    own: int | None = None
    for row in rows:
        if row.recording is None and own is None:
            own = found.of_file(file, base)
        number = own if row.recording is None else found.of_path(row.recording, file, row.where)
        assert number is not None
        yield number, row.event, f"{file}: {row.where}"
    if not rows:  # that it is empty says something about a recording only when there is one
        found.of_file(file, base)


def _inside(
    clips: Sequence[Clip], by_recording: dict[int, list[tuple[Event, str]]]
) -> tuple[list[LabelledRecording], list[str]]:
    recordings, notes = [], []
    for number in sorted(by_recording, key=lambda n: clips[n].key):
        clip = clips[number]
        try:
            seconds = cached_info(clip.path).seconds
        except AudioError as error:
            notes.append(f"left out with its labels: {error}")
            continue
        events = tuple(_cut_at_end(event, seconds, where, clip) for event, where in by_recording[number])
        recordings.append(LabelledRecording(clip.path, clip.key, seconds, tuple(sorted(events, key=_order))))
    if not recordings:
        raise DataError(f"no recording with labels can be read; the first: {notes[0]}")
    without = [clip.key for number, clip in enumerate(clips) if number not in by_recording]
    if without:
        notes.append(
            f"{len(without)} of {len(clips)} recordings have no labels and are left out, the first: {without[0]}"
        )
    return recordings, notes


def _order(event: Event) -> tuple[float, float, str]:
    return event.start, event.end, event.label


def _cut_at_end(event: Event, seconds: float, where: str, clip: Clip) -> Event:
    if event.end > seconds + END_TOLERANCE or event.start >= seconds:
        raise DataError(
            f"{where}: the label {event.label!r} lasts from {event.start:g} to {event.end:g} s, but {clip.path} ends "
            f"at {seconds:g} s; correct the times, or the name of the recording"
        )
    return Event(event.start, min(event.end, seconds), event.label, event.score, event.low_hz, event.high_hz)
