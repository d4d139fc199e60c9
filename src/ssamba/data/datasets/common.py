"""What the readers of all layouts share: tables, class numbers, folds, and the checks that a data set is whole."""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ssamba.data.examples import Example, Fold, LabelledData, Part
from ssamba.data.manifest import nearest_file
from ssamba.data.tables import LABEL_COLUMNS, PATH_COLUMNS, open_table
from ssamba.utils.errors import DataError, nearest
from ssamba.utils.files import read_text

__all__ = [
    "Table",
    "check_data",
    "check_fold_files",
    "check_folds",
    "check_present",
    "class_number",
    "cross_validation",
    "file_example",
    "missing_file",
    "read_lines",
    "read_table",
    "require_folder",
    "size_note",
]

LIST_LIMIT = 1 << 30
"""Most bytes of a set's list; that of all of AudioSet has 100 million."""


class Table(NamedTuple):
    """A CSV or TSV with a header line.

    Attributes:
        path: the file.
        columns: their names.
        rows: (line number, column -> value), values without spaces around them; blank lines are left out.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def require_folder(root: Path, expected: str, *others: str) -> Path:
    """``root`` when it is a folder that holds ``expected`` and ``others`` (relative paths; "" for anything).

    Raises:
        DataError: the folder or a file is missing; says where ``expected`` was found instead, one folder up or down.
    """
    if not root.is_dir():
        if root.exists():
            raise DataError(f"{root}: is a file; give the folder that holds {expected or 'the data set'}")
        raise DataError(f"{root}: no such folder{nearest_file(str(root))}; give the folder that holds {expected}")
    if not expected:
        return root
    if (root / expected).exists():
        for name in others:
            if not (root / name).exists():
                raise missing_file(root / name, (expected, *others))
        return root
    depth = len(Path(expected).parts)
    inside = [*sorted(root.glob(f"*/{expected}")), *sorted(root.glob(f"*/*/{expected}"))]
    above = [above / expected for above in root.parents[:2] if (above / expected).exists()]
    for found in [*inside, *above]:
        raise DataError(f"{root}: has no {expected}; did you mean {found.parents[depth - 1]}?")
    raise missing_file(root / expected, (expected, *others))


def missing_file(path: Path, known: Sequence[str] = ()) -> DataError:
    """The error for a published file that is not there; files of other ``known`` names are not suggested."""
    others = {Path(name).name for name in known}
    entries = list(path.parent.iterdir()) if path.parent.is_dir() else []
    names = [e.name for e in entries if e.name not in others and e.suffix == path.suffix]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    meant = f"; did you mean {path.parent / near[0]}?" if near else "; is the data set unpacked whole?"
    return DataError(f"{path}: no such file{meant}")


def read_table(path: Path, required: Sequence[str] = (), delimiter: str | None = None) -> Table:
    """Read a CSV (or TSV, by its ending) whose first line names the columns.

    Raises:
        DataError: unreadable, not UTF-8, empty, without a row, or a required column is missing (the nearest is named).
    """
    if not os.path.lexists(path):
        raise DataError(f"{path}: no such file{nearest_file(str(path))}")
    rows = []
    with open_table(path, required or (*PATH_COLUMNS, *LABEL_COLUMNS, "split", "fold"), delimiter) as table:
        columns = table.columns
        for line, values in table.rows:
            if any(value.strip() for value in values):
                if len(values) < len(columns):
                    raise DataError(f"{path}: line {line} has {len(values)} values for {len(columns)} columns")
                rows.append((line, {name: value.strip() for name, value in zip(columns, values, strict=False)}))
    if not columns:
        raise DataError(f"{path}: is empty; the first line must name the columns {', '.join(required)}")
    for name in required:
        if name not in columns:
            raise DataError(f"{path}: has no column {name}{nearest(name, columns)} (columns: {', '.join(columns)})")
    if not rows:
        raise DataError(f"{path}: has no rows below the header")
    return Table(path, columns, tuple(rows))


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file, line ends kept. Raises ``DataError`` when it is missing or no text."""
    if not os.path.lexists(path):
        raise DataError(f"{path}: no such file{nearest_file(str(path))}")
    return list(io.StringIO(read_text(path, LIST_LIMIT, DataError, "utf-8-sig"), newline=""))


def class_number(label: str, numbers: Mapping[str, int], where: str) -> int:
    """The number of a class. Raises ``DataError``, beginning with ``where``, for a label outside the list."""
    try:
        return numbers[label]
    except KeyError:
        raise DataError(
            f"{where}: the label {label!r} is none of the {len(numbers)} classes"
            + (nearest(label, numbers) or "; correct it, or remove the row")
        ) from None


def file_example(path: Path, key: str, labels: Iterable[int]) -> Example:
    """One whole file with its class numbers (sorted, each once)."""
    return Example(key.replace("\\", "/").removeprefix("./"), (Part(str(path)),), tuple(sorted(set(labels))))


def check_present(listing: Path, examples: Iterable[Example], fix: str) -> None:
    """Refuse a listing that names audio files which are not there. Each folder is listed once.

    Raises:
        DataError: with their number and the first.
    """
    listed: dict[str, frozenset[str]] = {}
    missing: dict[str, None] = {}
    total: dict[str, None] = {}
    for example in examples:
        for part in example.parts:
            folder, name = os.path.split(part.path)
            if folder not in listed:
                listed[folder] = _names(folder)
            total[part.path] = None
            if name not in listed[folder]:
                missing[part.path] = None
    if missing:
        first = next(iter(missing))
        raise DataError(
            f"{listing}: {len(missing)} of {len(total)} audio files are missing, the first is {first}; {fix}"
        )


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def check_folds(found: Iterable[int], expected: Iterable[int], where: Path) -> None:
    """Refuse a set whose folds are not exactly those expected. Raises ``DataError`` naming the missing or odd ones."""
    found, expected = set(found), set(expected)
    text = ", ".join(map(str, sorted(found)))
    missing = sorted(expected - found)
    if missing:
        raise DataError(
            f"{where}: fold {', '.join(map(str, missing))} of {len(expected)} is missing (it has {text}); "
            "put its rows back"
        )
    odd = sorted(found - expected)
    if odd:
        raise DataError(
            f"{where}: fold {odd[0]} is not one of 1 to {len(expected)} (it has {text}); correct or remove its rows"
        )


def check_fold_files(
    by_fold: Mapping[int, Sequence[Example]], expected: Iterable[int], listing: Path, fix: str
) -> None:
    """``check_folds`` of the folds and ``check_present`` of their examples, which ``listing`` names."""
    check_folds(by_fold, expected, listing)
    check_present(listing, [example for fold in by_fold.values() for example in fold], fix)


def cross_validation(by_fold: Mapping[str, Sequence[Example]]) -> tuple[Fold, ...]:
    """One fold for each key, tested on its examples and trained on all others'; no validation."""
    return tuple(
        Fold(name, tuple(e for other, part in by_fold.items() if other != name for e in part), (), tuple(test))
        for name, test in by_fold.items()
    )


def check_data(data: LabelledData, where: Path, complete: bool = True, tested: bool = True) -> LabelledData:
    """The data set, when it can be trained and tested on.

    Args:
        data: what a reader made.
        where: file or folder to name in errors.
        complete: every class must have training examples in each fold; otherwise the classes without are noted.
        tested: every fold must have test examples.

    Raises:
        DataError: fewer than two classes, a fold without training or test examples, an example twice or on two sides,
            or a class without a clip.
    """
    if len(data.classes) < 2:
        names = f" ({data.classes[0]})" if data.classes else ""
        raise DataError(f"{where}: {len(data.classes)} class only{names}; a classifier needs two or more")
    notes = list(data.notes)
    for fold in data.folds:
        name = f" of fold {fold.name}" if len(data.folds) > 1 else ""
        for split, examples in (("training", fold.train), ("test", fold.test)):
            if not examples and (tested or split == "training"):
                raise DataError(f"{where}: the {split} split{name} is empty; give it clips")
        _check_keys(fold, where)
        without = _absent(data.classes, fold.train)
        if without and complete:
            raise DataError(
                f"{where}: class {without[0]} has no clip in the training split{name}"
                + (f" (and {len(without) - 1} more)" if len(without) > 1 else "")
                + "; add some, or leave the class out"
            )
        if without:
            notes.append(
                f"{len(without)} of {len(data.classes)} classes have no training clip, the first: {without[0]}"
            )
        untested = _absent(data.classes, fold.test)
        if untested and tested and len(data.folds) == 1:
            notes.append(f"{len(untested)} of {len(data.classes)} classes have no test clip, the first: {untested[0]}")
    return dataclasses.replace(data, notes=tuple(notes))


def size_note(found: int, published: int) -> tuple[str, ...]:
    """A note when the number of clips is not the published one, or none."""
    return () if found == published else (f"{found:,} clips; the published set has {published:,}",)


def _check_keys(fold: Fold, where: Path) -> None:
    sides: dict[str, str] = {}
    for side, examples in (("training", fold.train), ("validation", fold.validation), ("test", fold.test)):
        for example in examples:
            before = sides.setdefault(example.key, side)
            if before != side:
                raise DataError(f"{where}: {example.key} is in the {before} and in the {side} split; keep it in one")
    total = len(fold.train) + len(fold.validation) + len(fold.test)
    if len(sides) < total:
        counts = Counter(example.key for example in (*fold.train, *fold.validation, *fold.test))
        raise DataError(f"{where}: {counts.most_common(1)[0][0]} is listed twice; remove one of its rows")


def _absent(classes: Sequence[str], examples: Iterable[Example]) -> list[str]:
    seen = {label for example in examples for label in _labels(example)}
    return [name for number, name in enumerate(classes) if number not in seen]


def _labels(example: Example) -> Iterator[int]:
    yield from example.labels
    yield from set(example.per_second or ())
