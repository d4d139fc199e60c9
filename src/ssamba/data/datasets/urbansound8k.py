"""UrbanSound8K: 8,732 clips of at most 4 s of ten urban sounds in ten folds; and DASL, scenes of 60 s made of them.

Source: Salamon, Jacoby and Bello, "A Dataset and Taxonomy for Urban Sound Research", 2014, and the archive's README:
``metadata/UrbanSound8K.csv`` (slice_file_name, fsID, start, end, salience, fold, classID, class) and
``audio/fold1`` to ``audio/fold10``. DASL: docs/reference.md, "Fine-tuning".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssamba.data.datasets.common import (
    check_data,
    check_fold_files,
    class_number,
    cross_validation,
    file_example,
    read_table,
    require_folder,
    size_note,
)
from ssamba.data.examples import SILENCE, Example, LabelledData, Part
from ssamba.data.manifest import Clip
from ssamba.data.samplers.pretraining import numpy_generator
from ssamba.data.scan import SkipList, scan_clips
from ssamba.utils.errors import DataError

__all__ = ["SCENE_SECONDS", "SOUND_CLASSES", "ClipSeconds", "join_scenes", "read_dasl", "read_urbansound8k"]

SOUND_CLASSES = (
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling", "gun_shot",
    "jackhammer", "siren", "street_music",
)  # fmt: skip
"""By classID."""
_FOLDS = range(1, 11)
SCENE_SECONDS = 60
_TABLE = "metadata/UrbanSound8K.csv"
_SCENES = 20  # purpose of the draw that shuffles a fold's clips


class ClipSeconds(NamedTuple):
    """A clip to put into a scene: its file, its length in whole seconds (rounded up) and its class."""

    path: str
    seconds: int
    label: int


def read_urbansound8k(root: Path) -> LabelledData:
    """UrbanSound8K: each of the ten folds is the test set once; there is no validation set.

    Raises:
        DataError: the layout is incomplete (:mod:`ssamba.data.datasets.common`), or a class is not of its classID.
    """
    by_fold, path = _read_folds(root)
    notes = size_note(sum(map(len, by_fold.values())), 8732)
    return check_data(LabelledData("urbansound8k", SOUND_CLASSES, False, cross_validation(by_fold), notes), path)


def read_dasl(root: Path, seed: int = 0) -> LabelledData:
    """DASL: the clips of each fold of UrbanSound8K, joined to scenes of 60 s with one class a second.

    The clips of a fold are shuffled, each is padded with silence to whole seconds, and they are joined and cut each
    60 s; the last scene is padded with silence, which is not scored. Headers of all clips are read; clips that cannot
    be read are left out and noted.

    Args:
        root: UrbanSound8K's folder.
        seed: of the shuffling.

    Raises:
        DataError: as :func:`read_urbansound8k`, or more than 5 % of the clips cannot be read.
    """
    by_fold, path = _read_folds(root)
    skip = SkipList()
    scenes: dict[str, list[Example]] = {}
    for name, examples in by_fold.items():
        labels = {example.parts[0].path: example.labels[0] for example in examples}
        clips = scan_clips([Clip(file) for file in labels], skip)
        # Whole seconds from whole numbers: no rounding makes 4.0 s five.
        lengths = [-(-clip.frames // clip.rate) for clip in clips if clip.frames and clip.rate]
        sounds = [ClipSeconds(c.path, n, labels[c.path]) for c, n in zip(clips, lengths, strict=True)]
        order = numpy_generator(seed, _SCENES, int(name)).permutation(len(sounds))
        scenes[name] = join_scenes([sounds[number] for number in order], f"fold{name}")
    notes = tuple(f"left out: {file}: {reason}" for file, reason in skip.reasons.items())
    return check_data(LabelledData("dasl", SOUND_CLASSES, False, cross_validation(scenes), notes), path)


def join_scenes(clips: Sequence[ClipSeconds], name: str, length: int = SCENE_SECONDS) -> list[Example]:
    """Join clips to scenes of `length` seconds; a clip that a scene's end cuts goes on in the next.

    Args:
        clips: in their order.
        name: of the scenes' keys, ``name/scene000`` and so on.
        length: of a scene, whole seconds.

    Returns:
        Scenes with one class a second; the last ends in ``SILENCE``.
    """
    seconds = [clip.label for clip in clips for _ in range(clip.seconds)]
    parts: list[list[Part]] = [[] for _ in range(-(-len(seconds) // length))]
    at = 0
    for clip in clips:
        consumed = 0
        while consumed < clip.seconds:
            scene, second = divmod(at + consumed, length)
            count = min(clip.seconds - consumed, length - second)
            # The last stretch runs to the file's end; one that the scene's end cuts has a stated length.
            stated = None if consumed + count == clip.seconds else float(count)
            parts[scene].append(Part(clip.path, float(consumed), stated, float(second)))
            consumed += count
        at += clip.seconds
    scenes = []
    for number, heard_parts in enumerate(parts):
        labels = seconds[number * length : (number + 1) * length]
        labels += [SILENCE] * (length - len(labels))
        scenes.append(Example(f"{name}/scene{number:03d}", tuple(heard_parts), per_second=tuple(labels)))
    return scenes


def _read_folds(root: Path) -> tuple[dict[str, list[Example]], Path]:
    require_folder(root, _TABLE)
    table = read_table(root / _TABLE, ("slice_file_name", "fold", "classID", "class"))
    numbers = {name: number for number, name in enumerate(SOUND_CLASSES)}
    by_fold: dict[int, list[Example]] = {}
    for line, row in table.rows:
        where = f"{table.path}: line {line}"
        label = class_number(row["class"], numbers, where)
        if row["classID"] != str(label):
            raise DataError(f"{where}: the classID of {row['class']} is {label}, not {row['classID']}")
        if not row["fold"].isdecimal():
            raise DataError(f"{where}: fold must be a whole number, not {row['fold']!r}")
        key = f"fold{row['fold']}/{row['slice_file_name']}"
        by_fold.setdefault(int(row["fold"]), []).append(file_example(root / "audio" / key, key, (label,)))
    check_fold_files(by_fold, _FOLDS, table.path, "unpack the archive again")
    return {str(fold): by_fold[fold] for fold in _FOLDS}, table.path
