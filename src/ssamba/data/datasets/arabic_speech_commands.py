"""Arabic Speech Commands: 40 spoken words of 1 s by 30 speakers, split by speaker.

Source: Ghandoura, Hjabo and Al Dakkak, 2021, and the repository abdulkaderghandoura/arabic-speech-commands-dataset: one
folder for each word below ``dataset/``, and next to it ``train.csv``, ``valid.csv`` (on Kaggle ``val.csv``) and
``test.csv`` with the columns file and class. A single ``meta.csv`` (filename, split, target, category) is read too.
"""

from __future__ import annotations

from pathlib import Path

from ssamba.data.datasets.common import (
    check_data,
    check_present,
    class_number,
    file_example,
    missing_file,
    read_table,
    require_folder,
    size_note,
)
from ssamba.data.datasets.splits import SPLITS, split_name
from ssamba.data.examples import Example, Fold, LabelledData
from ssamba.utils.errors import DataError

__all__ = ["WORDS", "read_arabic_speech_commands"]

WORDS = (
    "backward", "cancel", "close", "digit", "direction", "disable", "down", "eight", "enable", "enter", "five",
    "forward", "four", "left", "move", "next", "nine", "no", "ok", "one", "open", "options", "previous", "receive",
    "record", "right", "rotate", "send", "seven", "six", "start", "stop", "three", "two", "undo", "up", "yes",
    "zero", "zoom in", "zoom out",
)  # fmt: skip
"""The 40 words, sorted: the class list."""

_FILES = {"train": ("train.csv",), "validation": ("valid.csv", "val.csv"), "test": ("test.csv",)}


def read_arabic_speech_commands(root: Path) -> LabelledData:
    """Arabic Speech Commands in either form; one fold with training, validation and test speakers.

    Raises:
        DataError: the layout is incomplete (:mod:`ssamba.data.datasets.common`), or a label is not one of the 40 words.
    """
    if (root / "meta.csv").is_file():
        listing = root / "meta.csv"
        splits = _read_meta(root)
    else:
        require_folder(root, "train.csv", "test.csv")
        listing = root / "train.csv"
        splits = {split: _read_list(root, names) for split, names in _FILES.items()}
    check_present(
        listing, [example for split in SPLITS for example in splits[split]], "download and unpack the data set again"
    )
    if not splits["validation"]:
        raise DataError(f"{listing}: the validation split is empty; download and unpack the data set again")
    fold = Fold("official", *(tuple(splits[split]) for split in SPLITS))
    notes = size_note(sum(map(len, splits.values())), 12000)
    return check_data(LabelledData("arabic-speech-commands", WORDS, False, (fold,), notes), listing)


def _read_meta(root: Path) -> dict[str, list[Example]]:
    table = read_table(root / "meta.csv", ("filename", "split", "category"))
    numbers = {word: number for number, word in enumerate(WORDS)}
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for line, row in table.rows:
        where = f"{table.path}: line {line}"
        label = class_number(row["category"], numbers, where)
        splits[split_name(row["split"], where)].append(file_example(root / row["filename"], row["filename"], (label,)))
    return splits


def _read_list(root: Path, names: tuple[str, ...]) -> list[Example]:
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise missing_file(root / names[0], [name for known in _FILES.values() for name in known])
    table = read_table(path, ("file", "class"))
    numbers = {word: number for number, word in enumerate(WORDS)}
    examples = []
    for line, row in table.rows:
        label = class_number(row["class"], numbers, f"{path}: line {line}")
        examples.append(file_example(_locate(root, row["file"]), row["file"], (label,)))
    return examples


def _locate(root: Path, name: str) -> Path:
    """Kaggle's archive holds the folder ``dataset`` inside another one of that name."""
    plain, nested = root / name, root / "dataset" / name
    return nested if not plain.is_file() and nested.is_file() else plain
