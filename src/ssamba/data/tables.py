"""Tables as spreadsheets and other programs write them: delimiters, encodings, line ends; one line for each fault."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ssamba.utils.errors import DataError
from ssamba.utils.files import open_regular, read_bytes
from ssamba.utils.terminal import one_line, shorten

__all__ = [
    "LABEL_COLUMNS",
    "PATH_COLUMNS",
    "OpenTable",
    "RowIterator",
    "as_seconds",
    "open_table",
    "read_json_rows",
    "resolve_paths",
]

PATH_COLUMNS = ("path", "filename", "file", "wav")
LABEL_COLUMNS = ("label", "labels", "category", "class")
NAME_COLUMNS = (*PATH_COLUMNS, "slice_file_name")
"""Columns that may hold bytes that are no UTF-8: names of files."""
JSON_LIMIT = 1 << 30
"""Most bytes of a JSON manifest, which is read whole."""
DELIMITERS = (",", "\t", ";", "|")
HEAD_BYTES = 1 << 20
"""Looked at to tell the encoding; a first line longer than this is no header."""
MANY_ROWS = 8
"""From so many files of one folder on, the folder is listed once instead of asking for each."""
RowIterator = Iterator[tuple[int, list[str]]]


class OpenTable(NamedTuple):
    """A table that is being read.

    Attributes:
        columns: names in the header line, without spaces around them.
        rows: (line number, values), each as many as there are columns or fewer; blank lines are left out.
        delimiter: what separates values.
    """

    columns: tuple[str, ...]
    rows: RowIterator
    delimiter: str


@contextlib.contextmanager
def open_table(
    path: str | os.PathLike[str], wanted: Collection[str], delimiter: str | None = None
) -> Iterator[OpenTable]:
    """Open a table whose first line names its columns, and read it row by row.

    UTF-8 and, by a byte order mark or its zero bytes, UTF-16 and UTF-32; lines that end in LF, CRLF or CR. When the
    delimiter of the file's ending (tab for .tsv, else comma) gives none of the ``wanted`` columns, another that does is
    taken. A line ``sep=;`` above the header is followed, empty columns at the end of a line are dropped.

    Raises:
        DataError: not a regular file, no text, empty, a wanted column twice, a row with more values than columns, an
            open quote, or bytes that are no UTF-8 anywhere but in a file's name; it names the line and what to change.
    """
    name = os.fspath(path)
    with open_regular(path, DataError) as file:
        encoding = _encoding(file.read(HEAD_BYTES), name)
        file.seek(0)
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        lines = _Lines(io.TextIOWrapper(file, encoding, errors, newline=""), name)
        first = next(lines, "")
        above = 0
        if found := re.fullmatch(r"sep=(.)[\r\n]*", first):
            delimiter, first, above = found[1], next(lines, ""), 1
        lines.push_back(first)
        default = delimiter or ("\t" if name.lower().endswith(".tsv") else ",")
        delimiter = default if delimiter else _delimiter(first, default, wanted)
        reader = csv.reader(lines, delimiter=delimiter)
        header = next(_records(reader, lines, name, delimiter, above), (0, []))[1]
        columns = [column.strip() for column in header]
        while columns and not columns[-1]:
            columns.pop()
        for column in wanted:
            if columns.count(column) > 1:
                raise DataError(f"{name}: line {above + 1}: the column {column} stands twice; rename one of them")
        records = _records(reader, lines, name, delimiter, above)
        yield OpenTable(tuple(columns), _checked(records, lines, name, columns, delimiter), delimiter)


class _Lines:
    """Lines of text for ``csv``: remembers those of the present row, and whether they hold bytes that are no text."""

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self._text, self._name = text, name
        self._pushed: str | None = None
        self.held: list[str] = []
        self.undecoded = False
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._pushed is not None:
            line, self._pushed = self._pushed, None
            self.held.append(line)
            return line
        try:
            line = next(self._text)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._name}: line {self.number + 1} is not {error.encoding} text; save it as UTF-8"
            ) from None
        except OSError as error:
            raise DataError(f"{self._name}: cannot be read ({error.strerror or error})") from None
        self.number += 1
        if "\0" in line:
            raise DataError(
                f"{self._name}: line {self.number} holds a zero byte; remove it, or save the table as UTF-8 text"
            )
        if not line.isascii() and _has_bytes(line):
            self.undecoded = True
        self.held.append(line)
        return line

    def push_back(self, line: str) -> None:
        """Give ``line`` again next."""
        self._pushed = line or None
        self.held.clear()


def _records(
    reader: Iterator[list[str]], lines: _Lines, name: str, delimiter: str, above: int
) -> Iterator[tuple[int, list[str]]]:
    """Every row with the number of its first line."""
    while True:
        lines.held.clear()
        first = reader.line_num + above + 1  # type: ignore[attr-defined]
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}: line {first} is not valid {delimiter!r}-separated text ({_reason(error)})"
            ) from None
        if len(lines.held) > 1 and _is_open(lines.held, delimiter):
            raise DataError(
                f"{name}: line {first}: a quote is opened and never closed; close it, or double it inside quotes"
            )
        yield first, values


def _reason(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"a value of more than {csv.field_size_limit():,} characters; is a quote left open?"
    return str(error)


def _is_open(held: Sequence[str], delimiter: str) -> bool:
    """Whether a row of several lines ends inside quotes."""
    try:
        list(csv.reader(held, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _checked(
    records: Iterator[tuple[int, list[str]]], lines: _Lines, name: str, columns: Sequence[str], delimiter: str
) -> RowIterator:
    count = len(columns)
    for line, values in records:
        if len(values) > count:
            while len(values) > count and not values[-1].strip():
                values.pop()
            if len(values) > count:
                raise DataError(
                    f"{name}: line {line} has {len(values)} values for {count} columns; put quotes around a value that "
                    f"holds {delimiter!r}"
                )
        if lines.undecoded:
            lines.undecoded = False
            _refuse_bytes(name, line, columns, values)
        if any(values) and (len(values) > 1 or values[0].strip()):
            yield line, values


def _refuse_bytes(name: str, line: int, columns: Sequence[str], values: Sequence[str]) -> None:
    for column, value in zip(columns, values, strict=False):
        if column not in NAME_COLUMNS and _has_bytes(value):
            raise DataError(
                f"{name}: line {line}: {column} {shorten(value)} is not UTF-8 text; save the table as UTF-8"
            )


def _has_bytes(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is not None


def _encoding(head: bytes, name: str) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return encoding
    start = head[:64]
    if len(start) >= 8 and not any(start[1::2]) and all(start[::2]):
        return "utf-16-le"
    if len(start) >= 8 and not any(start[::2]) and all(start[1::2]):
        return "utf-16-be"
    if len(head) >= HEAD_BYTES and b"\n" not in head and b"\r" not in head:
        raise DataError(f"{name}: its first line has more than {HEAD_BYTES:,} bytes; is it a table?")
    return "utf-8"


def _delimiter(header: str, default: str, wanted: Collection[str]) -> str:
    """The delimiter that gives a wanted column, the default first; else the one that gives most columns."""
    counts = {}
    for delimiter in (default, *(other for other in DELIMITERS if other != default)):
        try:
            columns = [value.strip() for value in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error:  # a name of over 100,000 characters
            columns = []
        if any(name in columns for name in wanted):
            return delimiter
        counts[delimiter] = len(columns)
    return default if counts[default] > 1 else max(counts, key=lambda found: counts[found])


def read_json_rows(path: str | os.PathLike[str]) -> list[object]:
    """The list "data" of a JSON manifest; an entry of "wav" and "labels" alone is that pair, which takes a fourth of a
    dict's memory. Raises ``DataError`` for another form, naming the line.
    """
    name = os.fspath(path)
    content = read_bytes(path, JSON_LIMIT, DataError)
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 text (byte {error.start}); save the manifest as UTF-8") from None
    del content
    try:
        value = json.loads(text, object_pairs_hook=_json_object)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: is not valid JSON (line {error.lineno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: is not valid JSON ({one_line(str(error))[:200]})") from None
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise DataError(f'{name}: must be {{"data": [{{"wav": PATH, "labels": "a,b"}}, ...]}}; it has no list "data"')
    return rows


def _json_object(pairs: list[tuple[str, object]]) -> object:
    if len(pairs) == 2 and pairs[0][0] == "wav" and pairs[1][0] == "labels":
        return pairs[0][1], pairs[1][1]
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"an entry has a key twice: {', '.join(shorten(key) for key, _ in pairs)}")
    return values


def as_seconds(text: object, where: str) -> float | None:
    """A length in seconds, or None for nothing and for what is no length. A decimal comma is read.

    Raises:
        DataError: ``1,500`` may be one and a half seconds or 1500; ``where`` begins the message.
    """
    if isinstance(text, str) and "," in text and (found := re.fullmatch(r"\s*(\d+),(\d+)\s*", text)):
        whole, fraction = found.groups()
        if len(fraction) == 3 and int(whole) > 0:
            raise DataError(
                f"{where}: seconds {text.strip()} may mean {whole}.{fraction} or {whole}{fraction}; write a point"
            )
        text = f"{whole}.{fraction}"
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0 < value < float("inf") else None


def resolve_paths(paths: list[str]) -> list[int]:
    """Look for the files that a table names, and return the places in ``paths`` of those that are missing.

    A path with back-slashes that is not there, but is with slashes instead, is replaced in the list. A folder of
    several is listed once: a million files take seconds, also on a network.
    """
    missing = _not_listed(paths, range(len(paths)))
    turned = {i: paths[i].replace("\\", "/") for i in missing if os.sep == "/" and "\\" in paths[i]}
    if turned:
        slashed = list(turned.values())
        absent = set(_not_listed(slashed, range(len(slashed))))
        for number, i in enumerate(turned):
            if number not in absent:
                paths[i] = slashed[number]
        missing = [i for i in missing if i not in turned or paths[i] != turned[i]]
    # Where names are compared without regard to case or form, a listing does not decide.
    return [i for i in missing if not _is_file(paths[i])]


def _not_listed(paths: Sequence[str], places: range) -> list[int]:
    folders: dict[str, list[int]] = {}
    for i in places:
        folders.setdefault(os.path.dirname(paths[i]) if os.sep != "/" else paths[i].rpartition("/")[0], []).append(i)
    missing = []
    for folder, members in folders.items():
        if len(members) < MANY_ROWS:
            missing += [i for i in members if not _is_file(paths[i])]
            continue
        names = _files_of(folder or ("/" if paths[members[0]].startswith("/") else "."))
        skip = len(folder) + (paths[members[0]][len(folder) : len(folder) + 1] in ("/", os.sep))
        missing += [i for i in members if paths[i][skip:] not in names]
    return sorted(missing)


def _files_of(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):
        return frozenset()


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a zero byte
        return False
