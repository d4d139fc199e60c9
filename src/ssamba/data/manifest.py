"""DATA arguments of the command line (folders, manifests, files) to lists of clips.

Nothing here decodes audio; lengths and unreadable files are up to :mod:`ssamba.data.scan`.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ssamba.audio.decode import AUDIO_EXTENSIONS
from ssamba.data.folders import Problems, find_files
from ssamba.data.tables import LABEL_COLUMNS, PATH_COLUMNS, as_seconds, open_table, read_json_rows, resolve_paths
from ssamba.data.unread import note_unread, take_unread, unread_line
from ssamba.utils.errors import DataError
from ssamba.utils.files import native_name, stored_name
from ssamba.utils.terminal import printable

__all__ = ["Clip", "Fields", "Source", "nearest_file", "read_source", "read_sources", "split_weight"]

MANIFEST_EXTENSIONS = (".csv", ".tsv", ".json")
KEPT_LABELS = 65536
"""Different texts of a manifest's labels that are kept as one object each."""
_log = logging.getLogger(__name__)


class Fields(Mapping[str, str]):
    """Other columns of a manifest's row: a mapping that shares the columns' names, a fifth of a dict's memory."""

    __slots__ = ("_names", "_values")

    def __init__(self, names: tuple[str, ...] = (), values: tuple[str, ...] = ()) -> None:
        self._names, self._values = names, values

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __repr__(self) -> str:
        return repr(dict(self))


NO_FIELDS = Fields()


@dataclass(frozen=True, slots=True)
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
    fields: Mapping[str, str] = field(default=NO_FIELDS, compare=False, repr=False)

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


def read_sources(specs: Sequence[str], problems: Problems | None = None) -> list[Source]:
    """Read every DATA argument.

    Args:
        specs: each a folder, a manifest (.csv, .tsv, .json) or an audio file, optionally with its share in the mixture
            written behind it as ``PATH=0.7``. An existing path wins over that reading.
        problems: as in :func:`read_source`.

    Raises:
        DataError: nothing given, a weight missing on some or not above 0, or as :func:`read_source`.
    """
    if isinstance(specs, str) or not specs:
        raise DataError("no data given: name at least one folder, manifest (.csv, .tsv, .json) or audio file")
    sources = []
    for spec in specs:
        path, weight = split_weight(spec)
        sources.append(Source(path, tuple(read_source(path, problems)), weight))
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


def read_source(path: str | os.PathLike[str], problems: Problems | None = None) -> list[Clip]:
    """The clips of one folder (searched recursively, sorted), manifest or audio file.

    Folders below it that may not be read are added to ``problems`` as (path, reason), or without such a list logged.

    Raises:
        DataError: the path is missing, a folder without audio, an unknown ending, or a manifest that has
            no rows, lacks its columns, or names missing files.
    """
    path = os.fspath(path)
    try:
        if os.path.isdir(path):
            return _read_folder(path, problems)
        if not os.path.lexists(path):
            raise DataError(f"{path}: no such file or folder{nearest_file(path)}")
        ending = os.path.splitext(path)[1].lower()
        if ending in AUDIO_EXTENSIONS:
            return [Clip(path, stored_name(os.path.basename(path)))]
        if ending in (".csv", ".tsv"):
            return _read_table(path)
        if ending == ".json":
            return _read_ast_json(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    known = ", ".join(MANIFEST_EXTENSIONS + AUDIO_EXTENSIONS)
    raise DataError(
        f"{path}: the ending {ending or '(none)'} is neither a manifest's nor audio's; give a folder or one of {known}"
    )


def _read_folder(folder: str, problems: Problems | None) -> list[Clip]:
    found, met = find_files(folder, lambda name: name.endswith(AUDIO_EXTENSIONS), note_unread)
    if problems is None:
        for path, reason in met:
            _log.warning("%s: %s", path, reason)
    else:
        problems += met
    if not found:
        also = f"; {met[0][0]}: {met[0][1]}" if met else ""
        unread = unread_line(take_unread())
        looked = f"looked for {', '.join(AUDIO_EXTENSIONS)}"
        raise DataError(f"{folder}: no audio files in this folder or below ({looked}){unread and '; ' + unread}{also}")
    return [Clip(path, key) for path, key in found]


def _read_table(path: str) -> list[Clip]:
    with open_table(path, (*PATH_COLUMNS, *LABEL_COLUMNS, "seconds")) as table:
        columns = table.columns
        if not columns:
            raise DataError(f"{path}: is empty; the first line must name the columns, at least path")
        name_at = next((columns.index(name) for name in PATH_COLUMNS if name in columns), None)
        if name_at is None:
            raise DataError(f"{path}: {_missing_column(list(columns))}")
        label_at = next((columns.index(name) for name in LABEL_COLUMNS if name in columns), None)
        others = [i for i, name in enumerate(columns) if i not in (name_at, label_at)]
        names = tuple(columns[i] for i in others)
        seconds_at = columns.index("seconds") if "seconds" in columns else None
        rows = _ManifestRows(path)
        for line, values in table.rows:
            if len(values) < len(columns):
                values += [""] * (len(columns) - len(values))
            name = values[name_at].strip()
            if name:
                fields = Fields(names, tuple([values[i] for i in others])) if others else NO_FIELDS
                stated = as_seconds(values[seconds_at], f"{path}: line {line}") if seconds_at is not None else None
                labels = rows.labels(values[label_at], ";") if label_at is not None else ()
                rows.add(name, labels, stated, fields)
    return rows.clips()


def _read_ast_json(path: str) -> list[Clip]:
    """The layout of the Audio Spectrogram Transformer's lists: {"data": [{"wav": path, "labels": "a,b"}, ...]}."""
    rows = _ManifestRows(path)
    found = read_json_rows(path)
    found.reverse()  # taken from the end, so that each row's memory is free for its clip
    number = 0
    while found:
        row = found.pop()
        if isinstance(row, tuple):  # the common form
            row = {"wav": row[0], "labels": row[1]}
        if not isinstance(row, dict) or not isinstance(row.get("wav"), str):
            keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise DataError(f'{path}: entry {number} of "data" has no "wav" (it has: {printable(keys[:200])})')
        text = row.get("labels", "")
        labels = tuple(map(str, text)) if isinstance(text, list) else rows.labels(str(text), ",")
        others = {key: str(value) for key, value in row.items() if key not in ("wav", "labels")}
        stated = as_seconds(row.get("seconds"), f'{path}: entry {number} of "data"')
        rows.add(row["wav"], labels, stated, Fields(tuple(others), tuple(others.values())) if others else NO_FIELDS)
        number += 1
    return rows.clips()


class _ManifestRows:
    """Rows on their way to clips; paths are relative to the manifest's folder. Equal labels are one object."""

    def __init__(self, manifest: str) -> None:
        self._manifest = manifest
        self._folder = os.path.join(os.path.dirname(manifest), "")
        self._labels: dict[str, tuple[str, ...]] = {}
        self._names: list[str] = []
        self._paths: list[str] = []
        self._rest: list[tuple[tuple[str, ...], float | None, Mapping[str, str]]] = []
        self._plain: dict[tuple[str, ...], tuple[tuple[str, ...], None, Mapping[str, str]]] = {}

    def labels(self, text: str, separator: str) -> tuple[str, ...]:
        """The labels that a value names."""
        found = self._labels.get(text)
        if found is None:
            found = tuple(label.strip() for label in text.split(separator) if label.strip())
            if len(self._labels) < KEPT_LABELS:
                self._labels[text] = found
        return found

    def add(self, name: str, labels: tuple[str, ...], stated: float | None, fields: Mapping[str, str]) -> None:
        """One row."""
        path = native_name(name)
        if os.sep != "/":
            path = os.path.join(self._folder, path)
        elif self._folder and not path.startswith("/"):
            path = self._folder + path
        key = name.replace("\\", "/").removeprefix("./") if "\\" in name or name.startswith("./") else name
        self._paths.append(path)
        self._names.append(key)
        if stated is None and fields is NO_FIELDS:
            self._rest.append(self._plain.setdefault(labels, (labels, None, fields)))
        else:
            self._rest.append((labels, stated, fields))

    def clips(self) -> list[Clip]:
        """The clips. Raises ``DataError`` for none, and for files that are missing."""
        paths = self._paths
        if not paths:
            raise DataError(f"{self._manifest}: names no files; give at least one row below the header")
        missing = resolve_paths(paths)
        if missing:
            first = paths[missing[0]]
            raise DataError(
                f"{self._manifest}: {len(missing)} of {len(paths)} files are missing, the first is {printable(first)}; "
                f"paths are relative to the manifest's folder{_foreign(self._names[missing[0]], first)}"
            )
        rows = zip(paths, self._names, self._rest, strict=True)
        return [Clip(path, key, None, None, rest[1], rest[0], rest[2]) for path, key, rest in rows]


def _foreign(name: str, path: str) -> str:
    """What else may be wrong with a path of another place."""
    if re.match(r"[A-Za-z]:[/\\]", name) and os.sep == "/":
        return ", and this one is of a Windows drive"
    if not path.isascii() and re.search("[\udc80-\udcff]", path):
        return ", and this one is not UTF-8: save the manifest as UTF-8"
    return ""


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
