"""A user's data set: a table of files and labels, or one folder for each class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssamba.audio.decode import AUDIO_EXTENSIONS
from ssamba.data.datasets.common import (
    Table,
    check_data,
    check_folds,
    check_present,
    cross_validation,
    file_example,
    read_table,
    require_folder,
)
from ssamba.data.datasets.splits import SPLITS, split_name, stratified_folds, stratified_split
from ssamba.data.datasets.time_stamped import read_time_stamped
from ssamba.data.examples import Example, Fold, LabelledData
from ssamba.data.folders import Problems
from ssamba.data.labels.recordings import has_times, labels_in
from ssamba.data.manifest import nearest_file, read_source
from ssamba.data.tables import LABEL_COLUMNS, PATH_COLUMNS, resolve_paths
from ssamba.utils.errors import DataError, nearest
from ssamba.utils.files import native_name, stored_name

__all__ = ["read_custom", "timed_place"]

TABLES = ("labels.csv", "meta.csv", "metadata.csv", "labels.tsv", "meta.tsv", "metadata.tsv")
"""Looked for in a folder, in this order; without any, its folders are the classes."""

FILES_LOOKED_INTO = 20
"""Of files that are named as the clips of class folders, to see whether they hold labels with times."""


def read_custom(
    root: Path,
    seed: int = 0,
    multi_label: bool | None = None,
    folds: int = 1,
    labels: Path | None = None,
    seconds: float | None = None,
    background: str | None = None,
    keep_single: bool = False,
) -> LabelledData:
    """A CSV or TSV, a folder that holds one of :data:`TABLES`, or a folder with one folder for each class.

    A table has a column of paths (path, filename, file or wav; relative to the table) and one of labels (label, labels,
    category or class; several in a row are separated by ``;`` or ``|``), and may have ``split`` or ``fold``. A column
    fold means cross-validation; split names are those in common use, and without a test split the validation split
    takes its place. Folders of classes may lie in folders named like splits. A set without splits is divided 80/10/10,
    class by class (:func:`ssamba.data.datasets.splits.stratified_split`). Classes are numbered by sorted name.

    Labels with times are read by :func:`ssamba.data.datasets.time_stamped.read_time_stamped`: ``labels``, a table with
    the columns start and end, or files named as recordings that lie in no class's folder.

    Args:
        root: the table or the folder.
        seed: of the division.
        folds: into how many parts a set without splits is divided for cross-validation; 1 gives the one 80/10/10
            division, 0 none at all: every clip is for training.
        multi_label: None takes the set for multi-label when any row has several labels, or the column is named labels.
        labels, seconds, background, keep_single: of labels with times, as ``read_time_stamped`` takes them.

    Raises:
        DataError: no such table or column, files missing, a row without label, a fold missing, or as
            :func:`ssamba.data.datasets.common.check_data`.
    """
    if (place := timed_place(root, labels)) is not None:
        return read_time_stamped(place, labels, seed, multi_label, folds, seconds, background, keep_single)
    table = _table_of(root)
    if background is not None:
        raise DataError(
            f"{root}: has no labels with times, and so no stretches without label for {background}; or is that the "
            "name of a folder, which is not there?"
        )
    if root.is_file():
        if root.suffix.lower() not in (".csv", ".tsv"):
            raise DataError(f"{root}: is no .csv or .tsv; give a table or a folder with one folder for each class")
        return _read_labels(root, seed, multi_label, folds)
    if table is not None:
        return _read_labels(table, seed, multi_label, folds)
    return _read_folders(root, seed, folds)


def timed_place(root: Path, labels: Path | None) -> Path | None:
    """Where the recordings or the table are, if their labels have times; else None.

    Raises ``DataError`` where ``root`` is not there.
    """
    if not root.exists():
        raise DataError(f"{root}: no such file or folder{nearest_file(str(root))}")
    table = _table_of(root)
    if labels is None and table is not None and has_times(table):
        return table
    return root if labels is not None or has_times(root) else None


def _table_of(root: Path) -> Path | None:
    return root if root.is_file() else next((root / name for name in TABLES if (root / name).is_file()), None)


def _read_labels(path: Path, seed: int, multi_label: bool | None, n_folds: int) -> LabelledData:
    table = read_table(path)
    files, labels = _column(table, PATH_COLUMNS, "path"), _column(table, LABEL_COLUMNS, "label")
    named = [_separate(row[labels]) for _, row in table.rows]
    multi = labels == "labels" or any(len(names) > 1 for names in named) if multi_label is None else multi_label
    for (line, row), names in zip(table.rows, named, strict=True):
        if not row[files]:
            raise DataError(f"{path}: line {line}: the column {files} is empty")
        if len(names) != 1 and not multi:
            what = "no label" if not names else f"{len(names)} labels"
            raise DataError(f"{path}: line {line}: {row[files]} has {what}; in a single-label set each clip has one")
    classes = _sorted_names(name for names in named for name in names)
    numbers = {name: number for number, name in enumerate(classes)}
    paths = [os.path.join(path.parent, native_name(row[files])) for _, row in table.rows]
    resolve_paths(paths)
    examples = [
        file_example(Path(audio), row[files], (numbers[name] for name in names))
        for audio, (_, row), names in zip(paths, table.rows, named, strict=True)
    ]
    check_present(path, examples, "paths are relative to the table's folder")
    folds, notes = _divide(table, examples, seed, n_folds)
    divided = not {"split", "fold"} & set(table.columns)
    data = LabelledData("custom", classes, multi, folds, notes, divided)
    return check_data(data, path, tested=not divided or n_folds > 0)


def _divide(
    table: Table, examples: Sequence[Example], seed: int, n_folds: int
) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    if "split" in table.columns:
        splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
        for (line, row), example in zip(table.rows, examples, strict=True):
            splits[split_name(row["split"], f"{table.path}: line {line}")].append(example)
        return _one_fold("custom", splits)
    if "fold" in table.columns:
        return _cross_validation(table, examples), ()
    return _own_split(examples, seed, n_folds)


def _cross_validation(table: Table, examples: Sequence[Example]) -> tuple[Fold, ...]:
    by_fold: dict[str, list[Example]] = {}
    for (line, row), example in zip(table.rows, examples, strict=True):
        if not row["fold"]:
            raise DataError(f"{table.path}: line {line}: the column fold is empty")
        by_fold.setdefault(row["fold"], []).append(example)
    if len(by_fold) < 2:
        raise DataError(f"{table.path}: fold {next(iter(by_fold))} is the only one; cross-validation needs two or more")
    if all(re.fullmatch(r"\d+", name) for name in by_fold):
        numbers = [int(name) for name in by_fold]
        check_folds(numbers, range(min(1, *numbers), max(numbers) + 1), table.path)
    return cross_validation({name: by_fold[name] for name in _sorted_names(by_fold)})


def _own_split(examples: Sequence[Example], seed: int, n_folds: int) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    if n_folds == 0:
        return (Fold("custom", tuple(examples), (), ()),), ()
    if n_folds > 1:
        folds = cross_validation(stratified_folds(examples, seed, n_folds))
        return folds, (f"no splits given: cross-validated in {n_folds} folds, divided by class (seed {seed})",)
    splits = stratified_split(examples, seed)
    sizes = " / ".join(str(len(splits[split])) for split in SPLITS)
    note = f"no splits given: divided by class into {sizes} clips to train, validate and test on (seed {seed})"
    return (Fold("custom", *(tuple(splits[split]) for split in SPLITS)),), (note,)


def _one_fold(name: str, splits: dict[str, list[Example]]) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if not splits["test"] and splits["validation"]:
        splits = {"train": splits["train"], "validation": [], "test": splits["validation"]}
        notes = ("no test split given: the validation split is used as the test split",)
    return (Fold(name, *(tuple(splits[split]) for split in SPLITS)),), notes


def _read_folders(root: Path, seed: int, n_folds: int) -> LabelledData:
    require_folder(root, "")
    problems: Problems = []
    clips = read_source(root, problems)
    for place, reason in problems:  # a class, or a part of it, would be missing
        raise DataError(f"{place}: {reason}; make it readable, or remove it from the labelled set")
    deep = [clip.key.split("/") for clip in clips]
    stray = next((key for key in deep if len(key) < 2), None)
    if stray:
        kinds = ", ".join(TABLES)
        raise DataError(
            f"{root}: {stray[0]} lies in no class's folder; give one folder for each class, or a table ({kinds})"
        )
    by_split = _split_folders(deep, root)
    classes = _sorted_names(key[1] if by_split else key[0] for key in deep)
    _refuse_empty(root, classes, {key[0] for key in deep} if by_split else {""})
    numbers = {name: number for number, name in enumerate(classes)}
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for clip, key in zip(clips, deep, strict=True):
        example = file_example(Path(clip.path), clip.key, (numbers[key[1] if by_split else key[0]],))
        splits[split_name(key[0], str(root)) if by_split else "train"].append(example)
    folds, notes = _one_fold("custom", splits) if by_split else _own_split(splits["train"], seed, n_folds)
    if timed := next(labels_in(clips, root, FILES_LOOKED_INTO), None):
        notes = (*notes, f"folders are classes; {timed} has labels with times: give --labels {root} to take those")
    data = LabelledData("custom", classes, False, folds, notes, not by_split)
    return check_data(data, root, tested=bool(by_split) or n_folds > 0)


def _refuse_empty(root: Path, classes: Sequence[str], places: Iterable[str]) -> None:
    """Refuse a class's folder without any clip, which would otherwise vanish from the classes without a word."""
    for place in sorted(places):
        folders = sorted(stored_name(entry.name) for entry in os.scandir(root / native_name(place)) if entry.is_dir())
        empty = [name for name in folders if name not in classes and not name.startswith(".")]
        if empty:
            raise DataError(
                f"{root / place / empty[0]}: the class {empty[0]} has no clip; put audio there or remove the folder"
            )


def _split_folders(keys: Sequence[Sequence[str]], root: Path) -> bool:
    """Whether the first level of folders names splits and the second the classes."""
    if any(len(key) < 3 for key in keys):
        return False
    try:
        return {split_name(key[0], str(root)) for key in keys} >= {"train"}
    except DataError:
        return False


def _column(table: Table, names: Sequence[str], meaning: str) -> str:
    for name in names:
        if name in table.columns:
            return name
    near = next((text for text in (nearest(name, table.columns) for name in names) if text), "")
    if not near and any(name.lower().endswith(AUDIO_EXTENSIONS) for name in table.columns):
        raise DataError(
            f"{table.path}: has no header line (it starts with {table.columns[0]}); put path,label above it"
        )
    raise DataError(
        f"{table.path}: has no column {meaning} (or {', '.join(n for n in names if n != meaning)}){near} "
        f"(columns: {', '.join(table.columns)})"
    )


def _separate(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in re.split(r"[;|]", text) if name.strip()))


def _sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Each once; numbers by value, other names by letters."""
    unique = set(names)
    if all(re.fullmatch(r"\d+", name) for name in unique):
        return tuple(sorted(unique, key=int))
    return tuple(sorted(unique))
