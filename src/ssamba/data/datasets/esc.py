"""ESC-50 and ESC-10: environmental sounds of 5 s in five folds.

Source: K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", 2015, and the repository
karolpiczak/ESC-50: ``meta/esc50.csv`` (filename, fold, target, category, esc10, src_file, take) next to ``audio/``.
ESC-10 is the rows with esc10 True. Each fold is the test set once and the other four are trained on; there is no
validation set.
"""

from __future__ import annotations

from pathlib import Path

from ssamba.data.datasets.common import (
    Table,
    check_data,
    check_fold_files,
    cross_validation,
    file_example,
    read_table,
    require_folder,
    size_note,
)
from ssamba.data.examples import Example, LabelledData
from ssamba.utils.errors import DataError

__all__ = ["read_esc10", "read_esc50"]

_FOLDS = range(1, 6)


def read_esc50(root: Path) -> LabelledData:
    """ESC-50: 50 classes, ``meta/esc50.csv`` and ``audio/`` below ``root``.

    Raises:
        DataError: the layout is incomplete (:mod:`ssamba.data.datasets.common`), or has not 50 classes.
    """
    require_folder(root, "meta/esc50.csv")
    table = read_table(root / "meta/esc50.csv", ("filename", "fold", "target", "category"))
    return _read("esc50", table, root / "audio", 50)


def read_esc10(root: Path) -> LabelledData:
    """ESC-10: 10 classes, from ESC-50's files, or from ``meta.csv`` (filename, fold, target, category) below ``root``.

    File names in ``meta.csv`` are relative to ``root``. Classes are numbered from 0 in the order of their targets.

    Raises:
        DataError: the layout is incomplete (:mod:`ssamba.data.datasets.common`), or has not 10 classes.
    """
    if (root / "meta.csv").is_file():
        return _read("esc10", read_table(root / "meta.csv", ("filename", "fold", "target", "category")), root, 10)
    require_folder(root, "meta/esc50.csv")
    table = read_table(root / "meta/esc50.csv", ("filename", "fold", "target", "category", "esc10"))
    rows = tuple((line, row) for line, row in table.rows if row["esc10"].lower() == "true")
    if not rows:
        raise DataError(f"{table.path}: no row has esc10 True")
    return _read("esc10", table._replace(rows=rows), root / "audio", 10)


def _read(layout: str, table: Table, audio: Path, classes: int) -> LabelledData:
    names = _classes(table, classes, layout == "esc50")
    numbers = {target: number for number, target in enumerate(names)}
    by_fold: dict[int, list[Example]] = {}
    for line, row in table.rows:
        fold, target = _whole(table, line, row, "fold"), _whole(table, line, row, "target")
        path = audio / row["filename"]
        by_fold.setdefault(fold, []).append(file_example(path, row["filename"], (numbers[target],)))
    check_fold_files(by_fold, _FOLDS, table.path, "download the data set again")
    folds = cross_validation({str(fold): by_fold[fold] for fold in _FOLDS})
    notes = size_note(sum(map(len, by_fold.values())), 40 * classes)
    return check_data(LabelledData(layout, tuple(names.values()), False, folds, notes), table.path)


def _classes(table: Table, expected: int, numbered: bool) -> dict[int, str]:
    """target -> category in the order of the targets; each target must have one category.

    ``numbered``: targets go from 0 to the last class, as in ESC-50; those of ESC-10 may be ESC-50's.
    """
    names: dict[int, str] = {}
    for line, row in table.rows:
        target = _whole(table, line, row, "target")
        if numbered and not 0 <= target < expected:
            raise DataError(
                f"{table.path}: line {line}: the target {target} is none of the {expected} classes (0 to "
                f"{expected - 1}); correct it or download the data set again"
            )
        if names.setdefault(target, row["category"]) != row["category"]:
            raise DataError(
                f"{table.path}: line {line}: target {target} is {row['category']} here and {names[target]} above"
            )
    if len(names) != expected:
        raise DataError(f"{table.path}: {len(names)} classes, not {expected}; is the data set whole?")
    return dict(sorted(names.items()))


def _whole(table: Table, line: int, row: dict[str, str], column: str) -> int:
    try:
        return int(row[column])
    except ValueError:
        raise DataError(f"{table.path}: line {line}: {column} must be a whole number, not {row[column]!r}") from None
