"""DATA arguments of the command line (folders, manifests, files) to lists of clips.

Nothing here decodes audio; lengths and unreadable files are up to :mod:`ssamba.data.scan`.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssamba.audio.decode import AUDIO_EXTENSIONS
from ssamba.data.unread import note_unread, take_unread, unread_line
from ssamba.utils.errors import DataError

__all__ = ["Clip", "Source", "nearest_file", "read_source", "read_sources", "split_weight"]

MANIFEST_EXTENSIONS = (".csv", ".tsv", ".json")
PATH_COLUMNS = ("path", "filename", "file", "wav")
LABEL_COLUMNS = ("label", "labels", "category", "class")


@dataclass(frozen=True)
class Clip:
    """One audio file and what is known about it.

    Attributes:
        path: the file, as it can be opened.
        key: the file's name inside its source (relative, with forward slashes): the same on every machine.
        frames, rate: length in samples and rate in Hz, once a scan has read the header.
        stated_seconds: the length that a manifest's `seconds` column gives; the header's comes first.
        labels: none, one or several.
        fields: a manifest's other columns, such as split or fold.
    """

    path: str
    key: str = ""
    frames: int | None = None
    rate: int | None = None
    stated_seconds: float | None = None
    labels: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def seconds(self) -> float | None:
        """Length in seconds, or None while it is unknown."""
        if self.frames is not None and self.rate:
            return self.frames / self.rate
        return self.stated_seconds


@dataclass(frozen=True)
class Source:
    """The clips of one DATA argument and its share in the mixture (None: by its size)."""

    name: str
    clips: tuple[Clip, ...]
    weight: float | None = None


def read_sources(specs: Sequence[str]) -> list[Source]:
    """Read every DATA argument.

    Args:
        specs: each a folder, a manifest (.csv, .tsv, .json) or an audio file, optionally with its share in the mixture
            written behind it as ``PATH=0.7``. An existing path wins over that reading.

    Raises:
        DataError: nothing given, a weight missing on some or not above 0, or as :func:`read_source`.
    """
    if isinstance(specs, str) or not specs:
        raise DataError("no data given: name at least one folder, manifest (.csv, .tsv, .json) or audio file")
    sources = []
    for spec in specs:
        path, weight = split_weight(spec)
        sources.append(Source(path, tuple(read_source(path)), weight))
    without = [source.name for source in sources if source.weight is None]
    if without and len(without) < len(sources):
        raise DataError(
            f"{without[0]}: has no weight while another source has one; write {without[0]}=WEIGHT, or no weights"
        )
    return sources


def split_weight(spec: str) -> tuple[str, float | None]:
    """Split ``PATH=0.7`` into path and weight; a path that exists as written has no weight.

    Raises:
        DataError: the weight is 0, negative or not finite.
    """
    path, equals, text = spec.rpartition("=")
    if not equals or not path or os.path.lexists(spec):
        return spec, None
    try:
        weight = float(text)
    except ValueError:
        return spec, None
    if not (math.isfinite(weight) and weight > 0):
        raise DataError(f"{spec}: the weight {text} must be a number above 0")
    return path, weight


def read_source(path: str | os.PathLike[str]) -> list[Clip]:
    """The clips of one folder (searched recursively, sorted), manifest or audio file.

    Raises:
        DataError: the path is missing, a folder without audio, an unknown ending, or a manifest that has
            no rows, lacks its columns, or names missing files.
    """
    path = os.fspath(path)
    try:
        if os.path.isdir(path):
            return _read_folder(path)
        if not os.path.lexists(path):
            raise DataError(f"{path}: no such file or folder{nearest_file(path)}")
        ending = os.path.splitext(path)[1].lower()
        if ending in AUDIO_EXTENSIONS:
            return [Clip(path, os.path.basename(path))]
        if ending in (".csv", ".tsv"):
            return _read_table(path, "\t" if ending == ".tsv" else ",")
        if ending == ".json":
            return _read_ast_json(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save the manifest as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    known = ", ".join(MANIFEST_EXTENSIONS + AUDIO_EXTENSIONS)
    raise DataError(
        f"{path}: the ending {ending or '(none)'} is neither a manifest's nor audio's; give a folder or one of {known}"
    )


def _read_folder(folder: str) -> list[Clip]:
    os.listdir(folder)  # os.walk passes over a folder that may not be read; the one that was asked for must be readable
    found = []
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above: do not go round in circles
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(AUDIO_EXTENSIONS):
                path = os.path.join(root, name)
                found.append(Clip(path, Path(os.path.relpath(path, folder)).as_posix()))
            elif not name.startswith("."):
                note_unread(os.path.join(root, name))
    if not found:
        unread = unread_line(take_unread())
        looked = f"looked for {', '.join(AUDIO_EXTENSIONS)}"
        raise DataError(f"{folder}: no audio files in this folder or below ({looked}){unread and '; ' + unread}")
    return sorted(found, key=lambda clip: clip.key)


def _read_table(path: str, delimiter: str) -> list[Clip]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = list(reader)
        except csv.Error as error:
            raise DataError(
                f"{path}: line {reader.line_num} is not valid {delimiter!r}-separated text ({error})"
            ) from None
    if not columns:
        raise DataError(f"{path}: is empty; the first line must name the columns, at least path")
    path_column = next((name for name in PATH_COLUMNS if name in columns), None)
    if path_column is None:
        raise DataError(f"{path}: {_missing_column(columns)}")
    label_column = next((name for name in LABEL_COLUMNS if name in columns), None)
    others = [name for name in columns if name not in (path_column, label_column)]
    clips = []
    for row in rows:
        name = (row[path_column] or "").strip()
        if not name:
            continue
        labels = (row[label_column] or "").split(";") if label_column else []
        clips.append(
            _manifest_clip(path, name, labels, {other: row[other] or "" for other in others}, row.get("seconds"))
        )
    return _check_rows(path, clips)


def _read_ast_json(path: str) -> list[Clip]:
    """The layout of the Audio Spectrogram Transformer's lists: {"data": [{"wav": path, "labels": "a,b"}, ...]}."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: is not valid JSON (line {error.lineno}: {error.msg})") from None
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DataError(f'{path}: must be {{"data": [{{"wav": PATH, "labels": "a,b"}}, ...]}}; it has no list "data"')
    clips = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("wav"), str):
            keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise DataError(f'{path}: entry {number} of "data" has no "wav" (it has: {keys})')
        labels = row.get("labels", "")
        labels = [str(label) for label in labels] if isinstance(labels, list) else str(labels).split(",")
        others = {key: str(value) for key, value in row.items() if key not in ("wav", "labels")}
        clips.append(_manifest_clip(path, row["wav"], labels, others, row.get("seconds")))
    return _check_rows(path, clips)


def _manifest_clip(manifest: str, name: str, labels: Iterable[str], fields: dict[str, str], seconds: Any) -> Clip:
    """One row; its path is relative to the manifest's folder."""
    try:
        stated = float(seconds)
    except (TypeError, ValueError):
        stated = math.nan
    return Clip(
        path=os.path.join(os.path.dirname(manifest), name),
        key=name.replace("\\", "/").removeprefix("./"),
        stated_seconds=stated if math.isfinite(stated) and stated > 0 else None,
        labels=tuple(label.strip() for label in labels if label.strip()),
        fields=fields,
    )


def _check_rows(manifest: str, clips: list[Clip]) -> list[Clip]:
    if not clips:
        raise DataError(f"{manifest}: names no files; give at least one row below the header")
    missing = [clip for clip in clips if not os.path.isfile(clip.path)]
    if missing:
        raise DataError(
            f"{manifest}: {len(missing)} of {len(clips)} files are missing, the first is {missing[0].path}; "
            "paths are relative to the manifest's folder"
        )
    return clips


def _missing_column(columns: list[str]) -> str:
    if any(name.lower().endswith(AUDIO_EXTENSIONS) for name in columns):
        return f"has no header line (it starts with {columns[0]}); put path,label above the first row"
    message = f"has no column path (columns: {', '.join(columns)})"
    lowered = {name.lower(): name for name in columns}
    near = [
        lowered[match] for name in PATH_COLUMNS for match in difflib.get_close_matches(name, lowered, n=1, cutoff=0.6)
    ]
    return f"{message}; rename {near[0]} to path" if near else f"{message}; name the column of file names path"


def nearest_file(path: str) -> str:
    """ "; did you mean X?" with the entry of the same folder whose name is nearest, or nothing."""
    folder, name = os.path.split(os.path.normpath(path))
    try:
        near = difflib.get_close_matches(name, os.listdir(folder or "."), n=1)
    except OSError:
        return ""
    return f"; did you mean {os.path.join(folder, near[0])}?" if near else ""
