"""Google Speech Commands, versions 0.01 (30 words) and 0.02 (35 words): clips of at most 1 s.

Source: P. Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", 2018 (arXiv 1804.03209) and
the archives' README: one folder for each word, ``validation_list.txt`` and ``testing_list.txt`` with lines
``word/file.wav``, everything else is for training. ``_background_noise_`` is no word.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ssamba.audio.decode import AUDIO_EXTENSIONS
from ssamba.data.datasets.common import (
    check_data,
    check_present,
    class_number,
    file_example,
    read_lines,
    require_folder,
    size_note,
)
from ssamba.data.examples import Example, Fold, LabelledData
from ssamba.utils.errors import DataError

__all__ = ["WORDS_V1", "WORDS_V2", "read_speech_commands_v1", "read_speech_commands_v2"]

WORDS_V1 = (
    "bed", "bird", "cat", "dog", "down", "eight", "five", "four", "go", "happy", "house", "left", "marvin", "nine",
    "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree", "two", "up", "wow", "yes",
    "zero",
)  # fmt: skip
"""The 30 words of version 0.01, sorted."""
WORDS_V2 = tuple(sorted((*WORDS_V1, "backward", "follow", "forward", "learn", "visual")))
"""The 35 words of version 0.02, sorted."""

_NOISE = "_background_noise_"
_LISTS = ("validation_list.txt", "testing_list.txt")


def read_speech_commands_v1(root: Path) -> LabelledData:
    """Version 0.01: 30 words.

    Raises:
        DataError: the layout is incomplete (:mod:`ssamba.data.datasets.common`), a word's folder is missing, or
            there is a folder of another word.
    """
    return _read("speech-commands-v1", root, WORDS_V1, 64721)


def read_speech_commands_v2(root: Path) -> LabelledData:
    """Version 0.02: 35 words. Raises ``DataError`` as :func:`read_speech_commands_v1`."""
    return _read("speech-commands-v2", root, WORDS_V2, 105829)


def _read(layout: str, root: Path, words: Sequence[str], published: int) -> LabelledData:
    require_folder(root, _LISTS[1], _LISTS[0])
    numbers = {word: number for number, word in enumerate(words)}
    _check_words(root, words)
    held_out = {name: _read_list(root, name, numbers) for name in _LISTS}
    taken = {example.key for examples in held_out.values() for example in examples}
    train = [
        file_example(root / word / name, f"{word}/{name}", (numbers[word],))
        for word in words
        for name in sorted(os.listdir(root / word))
        if name.lower().endswith(AUDIO_EXTENSIONS) and not name.startswith(".") and f"{word}/{name}" not in taken
    ]
    for name in _LISTS:
        check_present(root / name, held_out[name], "unpack the archive again")
        if not held_out[name]:
            raise DataError(f"{root / name}: lists no file; unpack the archive again")
    fold = Fold("official", tuple(train), tuple(held_out[_LISTS[0]]), tuple(held_out[_LISTS[1]]))
    notes = size_note(len(train) + len(taken), published)
    return check_data(LabelledData(layout, tuple(words), False, (fold,), notes), root)


def _check_words(root: Path, words: Sequence[str]) -> None:
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith((".", _NOISE))}
    missing = [word for word in words if word not in folders]
    if missing:
        fix = "unpack the archive again"
        if folders == set(WORDS_V1):  # all that is missing came with version 0.02
            fix = "version 0.01 has just these: use speech-commands-v1"
        raise DataError(
            f"{root / missing[0]}: no such folder ({len(missing)} of {len(words)} words are missing); {fix}"
        )
    odd = sorted(folders - set(words))
    if odd:
        hint = "; version 0.02 has it: use speech-commands-v2" if odd[0] in WORDS_V2 else "; move the folder elsewhere"
        raise DataError(f"{root / odd[0]}: {odd[0]} is none of the {len(words)} words{hint}")


def _read_list(root: Path, name: str, numbers: dict[str, int]) -> list[Example]:
    examples = []
    for line, text in enumerate(read_lines(root / name), start=1):
        key = text.strip()
        if key:
            label = class_number(key.partition("/")[0], numbers, f"{root / name}: line {line}")
            examples.append(file_example(root / key, key, (label,)))
    return examples
