"""Labelled data sets as their publishers lay them out on disk. Each module reads one family and checks it whole.

A reader takes the root folder (and options) and returns a :class:`ssamba.data.examples.LabelledData`, or raises a
:class:`ssamba.utils.errors.DataError` of one line that names the file, the value and the fix. Only headers are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssamba.data.datasets.arabic_speech_commands import read_arabic_speech_commands
from ssamba.data.datasets.audioset import read_audioset_2m, read_audioset_20k
from ssamba.data.datasets.custom import read_custom
from ssamba.data.datasets.esc import read_esc10, read_esc50
from ssamba.data.datasets.iemocap import read_iemocap
from ssamba.data.datasets.speech_commands import read_speech_commands_v1, read_speech_commands_v2
from ssamba.data.datasets.urbansound8k import read_dasl, read_urbansound8k
from ssamba.data.datasets.voxceleb1 import read_voxceleb1
from ssamba.data.examples import LabelledData
from ssamba.utils.errors import DataError, nearest

__all__ = ["LAYOUTS", "read_layout"]

LAYOUTS: Mapping[str, Callable[..., LabelledData]] = {
    "arabic-speech-commands": read_arabic_speech_commands,
    "audioset-20k": read_audioset_20k,
    "audioset-2m": read_audioset_2m,
    "custom": read_custom,
    "dasl": read_dasl,
    "esc10": read_esc10,
    "esc50": read_esc50,
    "iemocap": read_iemocap,
    "speech-commands-v1": read_speech_commands_v1,
    "speech-commands-v2": read_speech_commands_v2,
    "urbansound8k": read_urbansound8k,
    "voxceleb1": read_voxceleb1,
}
"""Name -> reader, called as ``reader(root, **options)``."""


def read_layout(name: str, root: Path, **options: Any) -> LabelledData:
    """Read a data set by the name of its layout.

    Args:
        name: one of :data:`LAYOUTS`.
        root: the folder that the data set was unpacked in (for "custom" also a table).
        options: those of the reader, such as ``seed``.

    Raises:
        DataError: an unknown name or option (the nearest is named), or what the reader finds wrong.
    """
    if name not in LAYOUTS:
        raise DataError(
            f"the data set {name!r} is unknown{nearest(name, LAYOUTS)} (known: {', '.join(sorted(LAYOUTS))})"
        )
    reader = LAYOUTS[name]
    known = [parameter for parameter in inspect.signature(reader).parameters if parameter != "root"]
    for option in options:
        if option not in known:
            takes = ", ".join(known) or "none"
            raise DataError(f"the data set {name} has no option {option}{nearest(option, known)} (options: {takes})")
    return reader(Path(root), **options)
