"""Recordings of nothing of interest, which no class of a labelled set may claim: clips of them, checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssamba.data.examples import Example, LabelledData, Part
from ssamba.data.folders import Problems
from ssamba.data.manifest import Clip, read_source
from ssamba.data.scan import cached_info
from ssamba.utils.errors import AudioError, DataError
from ssamba.utils.files import sha256_of

MIN_BACKGROUND_CLIPS = 200
"""Clips that are taken of long recordings also for a small set."""
SHORTEST = 0.5
"""Of a clip's length, that a recording's rest needs to be one more clip."""


def background_place(value: str | os.PathLike[str] | None) -> Path | None:
    """``value`` as the place of background recordings: an existing path, or one with a folder in it; else None.

    Any other text is the name of a class of stretches without label.
    """
    if value is None or value == "":
        return None
    path = Path(value)
    is_path = not isinstance(value, str) or os.path.lexists(path) or path.name != value
    return path if is_path else None


def read_background(place: Path, data: LabelledData, seconds: float) -> tuple[tuple[Example, ...], str]:
    """Clips of up to ``seconds`` of the recordings in ``place``, evenly chosen, without labels; and a note on them.

    At most as many as ``data`` has clips, or 200.

    Raises:
        DataError: no readable audio there, or a recording that the set has as well, under any name.
    """
    problems: Problems = []
    recordings = read_source(place, problems)
    for folder, reason in problems:
        raise DataError(f"{folder}: {reason}; make it readable, or remove it from the background")
    examples = {e.key: e for fold in data.folds for e in (*fold.train, *fold.validation, *fold.test)}
    _refuse_shared(place, recordings, [part.path for e in examples.values() for part in e.parts])
    clips: list[Example] = []
    unreadable: list[AudioError] = []
    for recording in recordings:
        try:
            clips += _cut(recording, cached_info(recording.path).seconds, seconds)
        except AudioError as error:
            unreadable.append(error)
    if not clips:
        raise DataError(f"{place}: no background recording can be read; the first: {unreadable[0]}")
    kept = min(len(clips), max(MIN_BACKGROUND_CLIPS, len(examples)))
    chosen = tuple(clips[i * len(clips) // kept] for i in range(kept))
    note = f"background: {kept} of {len(clips)} clips of {seconds:g} s in {len(recordings)} recordings of {place}"
    return chosen, note + (f"; {len(unreadable)} cannot be read, the first: {unreadable[0]}" if unreadable else "")


def _cut(recording: Clip, length: float, seconds: float) -> Iterator[Example]:
    count = max(1, int(length / seconds + 1 - SHORTEST))
    for i in range(count):
        start = round(i * seconds, 6)
        part = Part(recording.path, start, min(seconds, length - start))
        yield Example(f"background/{recording.key}@{start:.3f}", (part,))


def _refuse_shared(place: Path, recordings: Sequence[Clip], known: Sequence[str]) -> None:
    """Refuse recordings that are clips of the set: the same files, or copies of them."""
    real = {os.path.realpath(path): path for path in known}
    sizes: dict[int, list[str]] = {}
    for path in real:
        sizes.setdefault(_size(path), []).append(path)
    digests: dict[str, str | None] = {}

    def digest(path: str) -> str | None:
        if path not in digests:
            digests[path] = _digest(path)
        return digests[path]

    for recording in recordings:
        same = os.path.realpath(recording.path)
        copies = sizes.get(_size(same), ()) if same not in real else ()
        found = same if same in real else next((p for p in copies if digest(p) == digest(same) is not None), None)
        if found is not None:
            raise DataError(
                f"{recording.path}: is background in {place} and a clip of the set as well ({real[found]}); keep it in "
                "one of them"
            )


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _digest(path: str) -> str | None:
    try:
        return sha256_of(path, DataError)
    except DataError:
        return None
