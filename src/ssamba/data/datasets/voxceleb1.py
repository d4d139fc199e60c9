"""VoxCeleb1, speaker identification: 1,251 speakers, each in the training, validation and test split.

Source: Nagrani, Chung and Zisserman, "VoxCeleb: a large-scale speaker identification dataset", 2017, and the list
``iden_split.txt`` of the publishers' site: lines of a split (1 training, 2 validation, 3 test) and a path
``idXXXXX/VIDEO/NNNNN.wav``. The two archives unpack to a folder ``wav``, each or together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.datasets.common import check_data, check_present, file_example, read_lines, require_folder, size_note
from ssamba.data.examples import Example, Fold, LabelledData
from ssamba.utils.errors import DataError

__all__ = ["read_voxceleb1"]

SPEAKERS = 1251
_LIST = "iden_split.txt"
_SPLITS = ("1", "2", "3")
_FOLDERS = ("wav", "dev/wav", "test/wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "dev", "test", ".")


def read_voxceleb1(root: Path) -> LabelledData:
    """VoxCeleb1's identification split, its classes the sorted speakers. Audio lies in wav/, or dev/wav/ and test/wav/.

    Raises:
        DataError: the layout is incomplete (:mod:`ssamba.data.datasets.common`), or a line of the list is malformed.
    """
    require_folder(root, _LIST)
    rows = _read_list(root / _LIST)
    speakers = tuple(sorted({key.partition("/")[0] for _, key in rows}))
    numbers = {speaker: number for number, speaker in enumerate(speakers)}
    folders = _speaker_folders(root, speakers)
    splits: dict[str, list[Example]] = {split: [] for split in _SPLITS}
    for split, key in rows:
        speaker = key.partition("/")[0]
        splits[split].append(file_example(folders[speaker] / key, key, (numbers[speaker],)))
    for split, examples in splits.items():
        check_present(root / _LIST, examples, "unpack the dev and the test archive below one root")
        if not examples:
            raise DataError(f"{root / _LIST}: lists no clip of split {split}; download it again")
    notes = size_note(len(rows), 153516)
    if len(speakers) != SPEAKERS:
        notes += (f"{len(speakers):,} speakers; the published set has {SPEAKERS:,}",)
    fold = Fold("official", *(tuple(splits[split]) for split in _SPLITS))
    return check_data(LabelledData("voxceleb1", speakers, False, (fold,), notes), root / _LIST)


def _read_list(path: Path) -> list[tuple[str, str]]:
    rows = []
    for line, text in enumerate(read_lines(path), start=1):
        values = text.split()
        if not values:
            continue
        if len(values) != 2 or values[0] not in _SPLITS or values[1].count("/") != 2:
            raise DataError(
                f"{path}: line {line} must be 1, 2 or 3 and idXXXXX/VIDEO/NNNNN.wav, not {text.strip()[:80]!r}"
            )
        rows.append((values[0], values[1]))
    if not rows:
        raise DataError(f"{path}: is empty; download it again")
    return rows


def _speaker_folders(root: Path, speakers: Sequence[str]) -> dict[str, Path]:
    """Speaker -> the folder that holds the speaker's, by one listing of each place where speakers may lie."""
    places = [root / name for name in _FOLDERS if (root / name).is_dir()]
    listed = [(place, set(os.listdir(place))) for place in places]
    default = root / "wav"
    return {speaker: next((place for place, names in listed if speaker in names), default) for speaker in speakers}
