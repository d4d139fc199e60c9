"""Events of recordings on disk: one file for all, one for each, or a table for a reader."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import NamedTuple

from ssamba.data.labels.event import Event, RecordingEvents
from ssamba.data.labels.formats import LABEL_FORMATS
from ssamba.inference.events.merge import EventOptions
from ssamba.inference.model import Encoder
from ssamba.inference.outputs.file_names import name_in_output
from ssamba.inference.outputs.provenance import KEY, write_sidecar
from ssamba.inference.predict import Prediction, classifier_task
from ssamba.utils.atomic_write import check_output_name, make_folder, write_text
from ssamba.utils.errors import ConfigError, nearest

FORMAT_OF_SUFFIX: Mapping[str, str] = {".csv": "csv", ".json": "json", ".txt": "audacity", ".jams": "jams"}
"""Formats that the ending of an output names by itself; Raven's tables end in .txt too."""


class EventOutput(NamedTuple):
    """Where events go: ``format`` (None: a table for a reader), and a file for all recordings or one for each.

    Without either they are printed.
    """

    format: str | None
    file: Path | None = None
    each: Mapping[str, Path] | None = None


def plan_event_output(out: Path | None, format: str | None, files: Sequence[str]) -> EventOutput:
    """Where the events of ``files`` go: a folder gets a file for each, named as the recording (``recording_names``).

    Without ``format`` the ending of ``out`` decides. A file for several recordings must be one of CSV or JSON.

    Raises:
        ConfigError: an unknown format or ending, a file where a folder is needed, names that would be the same.
    """
    if format is not None and format not in LABEL_FORMATS:
        raise ConfigError(f"unknown format '{format}'{nearest(format, LABEL_FORMATS)}: give {', '.join(LABEL_FORMATS)}")
    if out is None:
        if format is not None and len(files) > 1 and not LABEL_FORMATS[format].several:
            raise ConfigError(f"{format} labels are of one recording, and {len(files)} are given: give --out FOLDER")
        return EventOutput(format)
    if format is None:
        if out.is_dir() or not out.suffix:
            raise ConfigError(f"{out}: for a folder of label files give --format {', '.join(LABEL_FORMATS)}")
        check_output_name(out, tuple(FORMAT_OF_SUFFIX))
        format = FORMAT_OF_SUFFIX[out.suffix]
    kind = LABEL_FORMATS[format]
    suffix = PurePath("x" + kind.suffix).suffix
    is_file = not out.is_dir() and (out.is_file() or out.suffix in FORMAT_OF_SUFFIX or out.suffix == suffix)
    if not is_file:
        names = recording_names(files, kind.suffix)
        return EventOutput(format, each={path: out / name for path, name in zip(files, names, strict=True)})
    check_output_name(out, (suffix,))
    if len(files) > 1 and not kind.several:
        raise ConfigError(f"{out}: {format} labels are of one recording, and {len(files)} are given: give a folder")
    return EventOutput(format, file=out)


def recording_names(files: Sequence[str], suffix: str) -> list[PurePath]:
    """Names of files for recordings, with their folders from the one that all of them lie below.

    ``a.wav`` gives ``a`` with the suffix; recordings of one folder that share a stem, in whatever case, keep their
    endings: ``a.wav.txt`` and ``a.flac.txt``. Raises ``ConfigError`` where that is not enough.
    """
    paths = [PurePath(os.path.abspath(path)) for path in files]
    top = os.path.commonpath([path.parent for path in paths])
    stems = Counter(str(path.with_suffix("")).casefold() for path in paths)
    names = [
        path.relative_to(top).parent
        / ((path.stem if stems[str(path.with_suffix("")).casefold()] == 1 else path.name) + suffix)
        for path in paths
    ]
    seen: dict[str, str] = {}
    for name, file in zip(names, files, strict=True):
        other = seen.setdefault(str(name).casefold(), file)
        if other != file:
            raise ConfigError(
                f"{file}: its labels would have the name of those of {other} ({name}); rename one of both"
            )
    return names


class EventWriter:
    """Writes events as predictions come, each file whole or not at all; a file for all appears at the block's end.

    ``provenance`` (``provenance_of``) goes into JSON and JAMS, and in a file next to another one for all.
    """

    def __init__(
        self,
        output: EventOutput,
        model: Encoder,
        options: EventOptions,
        provenance: Mapping[str, object],
        paths: str = "given",
    ) -> None:
        self._output, self._options, self._paths = output, options, paths
        self._highest_hz = model.config.front_end.nyquist
        task = classifier_task(model)
        options.check_names(task.classes)
        self._details: dict[str, object] = {
            "classes": list(task.classes),
            "multi_label": task.multi_label,
            "recipe": task.recipe,
            "threshold": options.threshold,
            "low": options.end_score,
            "min_seconds": options.min_seconds,
            "merge_gap": options.merge_gap,
            "without": list(options.without),
        }
        self._details |= {KEY: dict(provenance)} if provenance else {}
        self._recordings: list[RecordingEvents] = []
        self._made: list[Path] = []

    @property
    def text(self) -> str:
        """What there is to print without an output: the table, or the text of the format."""
        if self._output.file is not None or self._output.each is not None:
            return ""
        if self._output.format is None:
            return "\n".join(line for recording in self._recordings for line in event_table(recording))
        return LABEL_FORMATS[self._output.format].write(self._recordings).rstrip("\n") if self._recordings else ""

    def __enter__(self) -> EventWriter:
        if self._output.each is not None:
            # Refused now, not after hours of work, where a folder cannot be made.
            for folder in sorted({path.parent for path in self._output.each.values()}):
                self._made += [] if folder.exists() else [folder]
                make_folder(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for folder in reversed(self._made) if kind is not None else ():
            with contextlib.suppress(OSError):  # not empty: it holds files that are whole
                folder.rmdir()
        if kind is None and self._output.file is not None and self._output.format is not None and self._recordings:
            self._write(self._output.file, self._recordings)
            if self._output.format not in ("json", "jams"):  # these hold it
                write_sidecar(self._output.file, self._details[KEY])

    def add(self, path: str, prediction: Prediction) -> None:
        """Take the next recording's prediction, which has rows in time."""
        # A file name may hold bytes that are no UTF-8.
        target = self._output.file if self._output.each is None else self._output.each[path]
        name = os.fsencode(name_in_output(path, target, self._paths)).decode("utf-8", "replace")
        events = tuple(prediction.find_events(self._options))
        recording = RecordingEvents(name, prediction.seconds, events, self._highest_hz, self._details)
        if self._output.each is not None and self._output.format is not None:
            self._write(self._output.each[path], [recording])
        else:
            self._recordings.append(recording)

    def _write(self, path: Path, recordings: Sequence[RecordingEvents]) -> None:
        assert self._output.format is not None
        write_text(path, LABEL_FORMATS[self._output.format].write(recordings))


def event_table(recording: RecordingEvents) -> list[str]:
    """Lines for a reader: the recording, and below it its events."""
    width = len(f"{recording.seconds:.2f}")
    return [
        f"{recording.path} ({recording.seconds:.2f} s)",
        *(f"  {e.start:{width}.2f} - {e.end:{width}.2f} s  {_named(e)}" for e in recording.events),
        *([] if recording.events else ["  no events"]),
    ]


def _named(event: Event) -> str:
    return event.label if event.score is None else f"{event.label} {100 * event.score:.1f} %"
