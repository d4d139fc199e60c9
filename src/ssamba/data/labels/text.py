"""Text as spreadsheets and labelling programs of all countries write it: encodings, separators, decimal commas."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssamba.data.manifest import nearest_file
from ssamba.utils.errors import DataError
from ssamba.utils.files import read_bytes

LABEL_DELIMITERS = ("\t", ";", ",")
NUMBER = r"[-+\u2212]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?"
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def read_label_text(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, with or without byte-order mark.

    Raises:
        DataError: missing, no regular file, over 64 MiB, or neither of these (names the first line that is not).
    """
    if not path.exists():
        raise DataError(f"{path}: no such file{nearest_file(str(path))}")
    encoding, data = _encoding(read_bytes(path, error=DataError))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} is not {encoding.upper()} text; save the file as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: is no text; save the labels as UTF-8 text")
    return text


def _encoding(data: bytes) -> tuple[str, bytes]:
    for mark, name in _BOMS:
        if data.startswith(mark):
            return name, data[len(mark) :]
    head = data[:400]
    if len(head) >= 4 and len(data) % 2 == 0:
        if head[1::2].count(0) > len(head) / 4 and not head[0::2].count(0):
            return "utf-16-le", data
        if head[0::2].count(0) > len(head) / 4 and not head[1::2].count(0):
            return "utf-16-be", data
    return "utf-8", data


def text_lines(text: str) -> list[str]:
    """Lines without their ends, whichever of the three systems wrote them; nothing for the end of the last one."""
    lines = re.split(r"\r\n|\n|\r", text)
    return lines if lines[-1] else lines[:-1]


class LabelTable(NamedTuple):
    """A table with a line of column names.

    Attributes:
        path: the file.
        columns: names, spaces around them removed.
        rows: (line number, values); short rows are filled up with "".
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def column(self, names: Sequence[str]) -> int | None:
        """Number of the first column with one of these names, whatever their case."""
        folded = [column.casefold() for column in self.columns]
        return next((folded.index(name.casefold()) for name in names if name.casefold() in folded), None)


def parse_table(path: Path, text: str) -> LabelTable:
    """A table separated by tabs, semicolons or commas: whatever divides the first line into most columns.

    A first line ``sep=;``, which Excel writes, is obeyed. Raises ``DataError`` for text that is no table.
    """
    lines = text_lines(text)
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    given = re.fullmatch(r"sep=(.)", lines[first].strip("\ufeff ")) if lines else None
    first += 1 if given else 0
    header = lines[first] if first < len(lines) else ""
    delimiter = (
        given[1] if given else max(LABEL_DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d), [])))
    )
    reader = csv.reader(lines[first:], delimiter=delimiter)
    try:
        columns = tuple(name.strip() for name in next(reader, []))
        rows = []
        for values in reader:
            if any(value.strip() for value in values):
                line = first + reader.line_num
                if len(values) > len(columns) and any(v.strip() for v in values[len(columns) :]):
                    raise DataError(
                        f"{path}: line {line} has {len(values)} values for {len(columns)} columns; "
                        "put quotes around values that hold the separator"
                    )
                filled = [value.strip() for value in values] + [""] * (len(columns) - len(values))
                rows.append((line, tuple(filled[: len(columns)])))
    except csv.Error as error:
        raise DataError(f"{path}: line {first + reader.line_num} is no table ({error})") from None
    return LabelTable(path, columns, tuple(rows))


def parse_number(text: str, where: str, meaning: str) -> float:
    """A number with a decimal point or comma.

    Raises:
        DataError: anything else, NaN and infinity too; begins with ``where`` and names the ``meaning``.
    """
    if not re.fullmatch(NUMBER, text.strip()):
        raise DataError(f"{where}: the {meaning} is {text.strip()!r}; give seconds as a number such as 12.5")
    return float(text.strip().replace(",", ".").replace("\u2212", "-"))


def single_line(text: str) -> str:
    """Text without tabs and line ends, which separate values in a label file."""
    return " ".join(text.split())
