"""Every layout with what builds a small tree of it, and how tests read and damage such trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import layout_trees as trees
import pytest

from ssamba.data.datasets import read_layout
from ssamba.data.examples import Example, LabelledData
from ssamba.utils.errors import DataError

BUILDERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "arabic": ("arabic-speech-commands", trees.arabic),
    "arabic-meta": ("arabic-speech-commands", lambda folder: trees.arabic(folder, published=False)),
    "audioset-20k": ("audioset-20k", trees.audioset),
    "audioset-2m": ("audioset-2m", trees.audioset),
    "custom-table": ("custom", trees.custom_table),
    "custom-folders": ("custom", trees.custom_folders),
    "dasl": ("dasl", trees.urbansound8k),
    "esc10-meta": ("esc10", trees.esc10),
    "esc10": ("esc10", trees.esc50),
    "esc50": ("esc50", trees.esc50),
    "iemocap": ("iemocap", trees.iemocap),
    "speech-commands-v1": ("speech-commands-v1", lambda folder: trees.speech_commands(folder, 1)),
    "speech-commands-v2": ("speech-commands-v2", lambda folder: trees.speech_commands(folder, 2)),
    "urbansound8k": ("urbansound8k", trees.urbansound8k),
    "voxceleb1": ("voxceleb1", trees.voxceleb1),
}


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    path.unlink()
    path.write_text(change(text))


def without(words: str) -> Callable[[str], str]:
    """Drops every line that holds the words."""
    return lambda text: "".join(line for line in text.splitlines(keepends=True) if words not in line)


def sizes(data: LabelledData) -> list[tuple[int, int, int]]:
    return [(len(fold.train), len(fold.validation), len(fold.test)) for fold in data.folds]


def everything(data: LabelledData) -> list[Example]:
    fold = data.folds[0]
    return [*fold.train, *fold.validation, *fold.test]


def refused(name: str, root: Path, *words: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_layout(name, root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for text in words:
        assert text in message, message
    return message
