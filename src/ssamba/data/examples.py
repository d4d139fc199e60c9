"""A labelled data set, independent of its layout on disk: classes, examples and the official folds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

INNER_PARTS = 5
SINGLE_SPLIT_MIN = 5000
"""From so many training examples on, one inner fold is held out instead of each in turn."""
SILENCE = -1
"""In ``Example.per_second``: a second without any class. It is not scored."""


@dataclass(frozen=True)
class Part:
    """A stretch of one audio file: ``start`` and ``seconds`` (None: to the end) in s, as ``read_audio`` takes them.

    ``at`` is the second of the example at which it begins; between the parts of an example there is silence.
    """

    path: str
    start: float = 0.0
    seconds: float | None = None
    at: float = 0.0


@dataclass(frozen=True)
class Example:
    """One labelled recording: a file, a stretch of one, or a scene of several joined ones.

    Attributes:
        key: its name in reports, unique in the data set (relative path, forward slashes).
        parts: the stretches of audio, in time order; one part for anything but scenes.
        labels: class numbers, one in a single-label set, any number in a multi-label set, none in a scene.
        per_second: for scenes, the class of each second (``SILENCE`` for none).
    """

    key: str
    parts: tuple[Part, ...]
    labels: tuple[int, ...] = ()
    per_second: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Fold:
    """One division of the data set. ``validation`` is empty where the set's protocol has none."""

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True)
class LabelledData:
    """A data set as its publishers divide it: one fold, or several for cross-validation.

    ``classes`` are the names in label order; ``multi_label`` says whether an example may have several. ``notes`` are
    lines for the user: what was left out, decided or not official. ``divided`` says that the set came without
    splits or folds, so that the division is the reader's. ``background`` are clips of no class, on neither side.
    """

    layout: str
    classes: tuple[str, ...]
    multi_label: bool
    folds: tuple[Fold, ...]
    notes: tuple[str, ...] = ()
    divided: bool = False
    background: tuple[Example, ...] = ()


def inner_fold_index(examples: Sequence[Example]) -> list[int]:
    """The inner fold of each example, held out when a setting is chosen: 0 to 4, or -1 for never.

    From ``SINGLE_SPLIT_MIN`` examples on, only fold 0 is held out and the others have -1. By a hash of the file's name,
    so that it is the same everywhere. Examples of one file fall into one part.
    """
    parts = [_part(example) for example in examples]
    return [0 if part == 0 else -1 for part in parts] if len(parts) >= SINGLE_SPLIT_MIN else parts


def _part(example: Example) -> int:
    name = example.key if not example.parts else example.parts[0].path.replace("\\", "/").rsplit("/", 1)[-1]
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=4).digest()[0] % INNER_PARTS
