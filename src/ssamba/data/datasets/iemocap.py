"""IEMOCAP, emotion recognition with four classes, leaving one of five sessions out.

Source: Busso et al., "IEMOCAP: interactive emotional dyadic motion capture database", 2008; classes and folds as in
SUPERB (Yang et al., 2021): neutral, happy (with excited), angry, sad. Each session's
``dialog/EmoEvaluation/DIALOGUE.txt`` has lines ``[start - end]<tab>NAME<tab>EMOTION<tab>[v, a, d]``; the audio is
``sentences/wav/DIALOGUE/NAME.wav``.
"""

from __future__ import annotations

import re
from pathlib import Path

from ssamba.data.datasets.common import (
    check_data,
    check_present,
    file_example,
    read_lines,
    require_folder,
    size_note,
)
from ssamba.data.datasets.splits import stratified_split
from ssamba.data.examples import Example, Fold, LabelledData
from ssamba.utils.errors import DataError, nearest

__all__ = ["EMOTIONS", "read_iemocap"]

EMOTIONS = ("neutral", "happy", "angry", "sad")
_LABELS = {"neu": 0, "hap": 1, "exc": 1, "ang": 2, "sad": 3}
_OTHERS = {"fru", "sur", "fea", "dis", "oth", "xxx"}
_SESSIONS = tuple(f"Session{number}" for number in range(1, 6))
_LINE = re.compile(r"\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+(\S+)\s+(\S+)\s+\[")


def read_iemocap(root: Path, seed: int = 0, validation: float = 0.2) -> LabelledData:
    """IEMOCAP in five folds, each tested on one session.

    Of the other four sessions a share is held out for validation, class by class; SUPERB holds out 20 % at random, by a
    separate list.

    Args:
        root: IEMOCAP_full_release.
        seed: of the choice for validation.
        validation: that share; 0 for none.

    Raises:
        DataError: the layout is incomplete (:mod:`ssamba.data.datasets.common`), a session is missing or has no
            evaluation, or an emotion is unknown.
        ValueError: the share is not within 0 and 1.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation} must be at least 0 and under 1")
    require_folder(root, _SESSIONS[0])
    missing = [name for name in _SESSIONS if not (root / name).is_dir()]
    if missing:
        raise DataError(
            f"{root / missing[0]}: no such folder ({len(missing)} of 5 sessions are missing); unpack the release again"
        )
    sessions = {name: _read_session(root, name) for name in _SESSIONS}
    check_present(root, [e for examples in sessions.values() for e in examples], "unpack the release again")
    folds = tuple(_fold(sessions, name, seed, validation) for name in _SESSIONS)
    notes = size_note(sum(map(len, sessions.values())), 5531)
    if validation:
        notes += (f"validation: {validation:.0%} of the training sessions' clips, by class (seed {seed})",)
    return check_data(LabelledData("iemocap", EMOTIONS, False, folds, notes), root)


def _fold(sessions: dict[str, list[Example]], name: str, seed: int, validation: float) -> Fold:
    others = [example for other, examples in sessions.items() if other != name for example in examples]
    splits = stratified_split(others, seed, (validation, 0.0))
    return Fold(name, tuple(splits["train"]), tuple(splits["validation"]), tuple(sessions[name]))


def _read_session(root: Path, session: str) -> list[Example]:
    folder = root / session / "dialog" / "EmoEvaluation"
    # Hidden files are what the archiver of another system left.
    files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: has no evaluation (*.txt); unpack the release again")
    examples = []
    for path in files:
        for line, text in enumerate(read_lines(path), start=1):
            match = _LINE.match(text)
            if match is None:
                continue  # single raters' lines, comments and blank lines
            name, emotion = match[1], match[2].lower()
            if emotion not in _LABELS and emotion not in _OTHERS:
                raise DataError(
                    f"{path}: line {line}: the emotion {emotion!r} is unknown{nearest(emotion, (*_LABELS, *_OTHERS))}"
                )
            if emotion in _LABELS:
                key = f"{session}/sentences/wav/{name.rpartition('_')[0]}/{name}.wav"
                examples.append(file_example(root / key, key, (_LABELS[emotion],)))
    if not examples:
        raise DataError(f"{folder}: has no clip of the four emotions in {len(files)} files; unpack the release again")
    return examples
