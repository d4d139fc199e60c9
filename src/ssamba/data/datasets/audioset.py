"""AudioSet: 10 s of YouTube videos with any number of 527 labels.

Source: Gemmeke et al., "Audio Set", 2017, and research.google.com/audioset/download.html: ``class_labels_indices.csv``
(index, mid, display_name) and the lists ``balanced_train_segments.csv``, ``unbalanced_train_segments.csv`` and
``eval_segments.csv``, each three lines of comment and then ``YTID, start_seconds, end_seconds, "mid,mid"``.
AudioSet-20K is trained on the balanced, AudioSet-2M on both training lists; both are tested on the evaluation list.

The audio is not published. It is looked for anywhere below the root, by the names that downloaders give it: ``YTID``,
``YTID_START`` or ``YTID_START_END`` (also with ``-`` or ``~``; seconds or milliseconds), with or without a Y in front,
and in any audio format. Clips that are gone from YouTube are no error; notes count them.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ssamba.audio.decode import AUDIO_EXTENSIONS
from ssamba.data.datasets.common import check_data, class_number, file_example, read_lines, read_table, require_folder
from ssamba.data.examples import Example, Fold, LabelledData
from ssamba.data.unread import note_unread
from ssamba.utils.errors import DataError

__all__ = ["read_audioset_2m", "read_audioset_20k"]

PUBLISHED_CLASSES = 527
MIN_SHARE = 0.01
"""If a smaller share of a list's clips is found, the folder or the file names are taken to be wrong."""

_CLASSES = "class_labels_indices.csv"
_BALANCED, _UNBALANCED = "balanced_train_segments.csv", "unbalanced_train_segments.csv"
_EVALUATION = "eval_segments.csv"
_ID = 11  # characters of a YouTube id
_NUMBER = r"[_~-](\d+(?:\.\d+)?)"
_REST = re.compile(rf"(?:{_NUMBER}(?:{_NUMBER})?)?")


class _Found(NamedTuple):
    path: str
    start: float | None  # as written in the name, seconds or milliseconds
    end: float | None


def read_audioset_20k(root: Path) -> LabelledData:
    """AudioSet-20K: trained on the balanced list.

    Raises:
        DataError: the layout is incomplete (:mod:`ssamba.data.datasets.common`), a label is not in the class list, or
            fewer than 1 % of a list's clips are there.
    """
    return _read("audioset-20k", root, (_BALANCED,))


def read_audioset_2m(root: Path) -> LabelledData:
    """AudioSet-2M: trained on both training lists. Raises ``DataError`` as :func:`read_audioset_20k`."""
    return _read("audioset-2m", root, (_BALANCED, _UNBALANCED))


def _read(layout: str, root: Path, training: tuple[str, ...]) -> LabelledData:
    require_folder(root, _CLASSES, *training, _EVALUATION)
    mids, classes = _read_classes(root / _CLASSES)
    files = _index(root)
    notes = []
    if len(classes) != PUBLISHED_CLASSES:
        notes.append(f"{len(classes)} classes; the published set has {PUBLISHED_CLASSES}")
    lists = {name: _read_segments(root / name, mids, files, root, notes) for name in (*training, _EVALUATION)}
    train = tuple(example for name in training for example in lists[name])
    fold = Fold("official", train, (), tuple(lists[_EVALUATION]))
    return check_data(LabelledData(layout, classes, True, (fold,), tuple(notes)), root, complete=False)


def _read_classes(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    table = read_table(path, ("index", "mid", "display_name"))
    for number, (line, row) in enumerate(table.rows):
        if row["index"] != str(number):
            raise DataError(f"{path}: line {line}: the index must be {number}, not {row['index']}; download it again")
    mids = {row["mid"]: number for number, (_, row) in enumerate(table.rows)}
    return mids, tuple(row["display_name"] for _, row in table.rows)


def _index(root: Path) -> dict[str, list[_Found]]:
    """YouTube id -> audio files whose name can mean it, in order of their paths."""
    index: dict[str, list[_Found]] = {}
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if ending.lower() in AUDIO_EXTENSIONS:
                for video, start, end in _meanings(stem):
                    index.setdefault(video, []).append(_Found(os.path.join(folder, name), start, end))
            elif not name.startswith("."):
                note_unread(os.path.join(folder, name))
    if not index:
        raise DataError(f"{root}: no audio files named by YouTube id in this folder or below (such as YTID.wav)")
    return index


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be searched ({error.strerror or error})")


def _meanings(stem: str) -> Iterator[tuple[str, float | None, float | None]]:
    """(id, start, end) for a name read as it is, and read without a Y in front."""
    for name in (stem, stem[1:]) if stem.startswith("Y") else (stem,):
        match = _REST.fullmatch(name, _ID) if len(name) >= _ID else None
        if match:
            yield name[:_ID], _number(match[1]), _number(match[2])


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _read_segments(
    path: Path, mids: dict[str, int], files: dict[str, list[_Found]], root: Path, notes: list[str]
) -> list[Example]:
    examples: list[Example] = []
    total, first_missing = 0, ""
    lines = read_lines(path)
    reader = csv.reader((line if not line.startswith("#") else "" for line in lines), skipinitialspace=True)
    for values in reader:
        if not values:
            continue
        where = f"{path}: line {reader.line_num}"
        video, start, end, labels = _segment(values, where)
        numbers = [class_number(mid, mids, where) for mid in labels]
        total += 1
        file = next((file.path for file in files.get(video, ()) if _same(file, start, end)), None)
        if file is None:
            first_missing = first_missing or f"{video} from {start:g} s"
        else:
            examples.append(file_example(Path(file), Path(os.path.relpath(file, root)).as_posix(), numbers))
    if not total:
        raise DataError(f"{path}: lists no clip; download it again")
    missing = total - len(examples)
    if len(examples) < MIN_SHARE * total:
        raise DataError(
            f"{path}: {missing:,} of {total:,} clips are not below {root}, the first is {first_missing}; "
            "name the files YTID.wav, YTID_START.wav or YTID_START_END.wav"
        )
    if missing:
        notes.append(f"{path.name}: {missing:,} of {total:,} clips ({missing / total:.1%}) are not there")
    return examples


def _segment(values: list[str], where: str) -> tuple[str, float, float, list[str]]:
    try:
        video, start, end, labels = values
        return video, float(start), float(end), [mid.strip() for mid in labels.split(",") if mid.strip()]
    except ValueError:
        raise DataError(f'{where}: must be YTID, start, end, "labels", not {", ".join(values)[:80]!r}') from None


def _same(file: _Found, start: float, end: float) -> bool:
    """Whether the times in a name, if any, are the clip's, in seconds or in milliseconds."""
    if file.start is None:
        return True
    return any(
        abs(file.start - unit * start) < 0.01 * unit and (file.end is None or abs(file.end - unit * end) < 0.01 * unit)
        for unit in (1.0, 1000.0)
    )
