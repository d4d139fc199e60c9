"""The state of a run in one file: weights, optimiser moments and everything else as JSON in the same safetensors file.

The file is written under a temporary name, read back and compared with its digest, and renamed into place; the state
before stays as ``state.previous.safetensors``. So a run killed at any moment finds a state that was good when it was
written, and one that was damaged since has another to go on from.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ssamba.training.resume.values import StoredValues
from ssamba.utils.atomic_write import atomic_write, remove_file, sync_file
from ssamba.utils.errors import CheckpointError, WriteError
from ssamba.utils.json_text import parse_json
from ssamba.utils.tensor_file import read_header, read_tensors, verify_tensors, write_content
from ssamba.utils.terminal import note

STATE_FILE, PREVIOUS_FILE = "state.safetensors", "state.previous.safetensors"


@dataclass
class RunValues:
    """What a state holds besides tensors.

    Attributes:
        step: steps through.
        schedule: what the learning rate's schedule has learned of validations.
        best: the best validation so far, with its step and score.
        sums, summed: of the open line of the log, over so many steps.
        averaged: validations whose weights are averaged.
        config: the model's, as in config.json; None in states of earlier versions.
        log: rows and digest of the log so far; None in states of earlier versions.
    """

    step: int
    schedule: dict[str, Any] = field(default_factory=dict)
    best: dict[str, float] | None = None
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    averaged: int = 0
    config: dict[str, Any] | None = None
    log: dict[str, Any] | None = None

    @classmethod
    def from_stored(cls, stored: StoredValues) -> RunValues:
        """Checked values. Raises ``CheckpointError``."""
        best = None
        if stored.values.get("best", ()) is not None:
            inner = stored.inside("best")
            inner.whole("step")
            inner.number("score")
            best = {name: inner.number_or_nan(name) for name in inner.values}
        config, log = stored.values.get("config"), stored.values.get("log")
        if log is not None:
            stored.inside("log").whole("rows")
        return cls(
            stored.whole("step"),
            dict(stored.inside("schedule").values),
            best,
            stored.numbers("sums"),
            stored.whole("summed"),
            stored.whole("averaged"),
            None if config is None else dict(stored.inside("config").values),
            None if log is None else dict(stored.inside("log").values),
        )


StoredState = tuple[dict[str, Tensor], RunValues]


class RunStates:
    """The states of a run directory: reads the last good one, writes the next.

    Attributes:
        source: the file that was read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path, self.previous = folder / STATE_FILE, folder / PREVIOUS_FILE
        self.source = self.path
        self._damaged = False

    def load(self, say: bool = True) -> StoredState | None:
        """The last good state, or None for a run that has none yet.

        Where the last state is damaged the one before is taken, and ``say`` says so on stderr. Raises
        ``CheckpointError`` when neither is good.
        """
        if not has_state(self.folder):
            return None
        try:
            return _read(self.path)
        except CheckpointError as problem:
            if not os.path.lexists(self.previous):
                raise
            try:
                found = _read(self.previous)
            except CheckpointError as other:
                raise CheckpointError(f"{problem}; and the state before: {other}") from None
            self._damaged, self.source = True, self.previous
            if say:
                note(f"{problem}; going on from the state before, of step {found[1].step}")
            return found

    def save(self, tensors: dict[str, Tensor], values: RunValues) -> None:
        """Write the next state, prove it, and let it take the place of the last, which takes that of the one before.

        Raises ``WriteError`` when it cannot be written; the states that were there stay.
        """
        stored = asdict(values)
        if values.best is not None:  # JSON has no NaN: a metric that does not exist is null
            stored["best"] = {k: v if math.isfinite(v) else None for k, v in values.best.items()}
        with atomic_write(self.path) as temporary:
            write_content(temporary, tensors, {"state": json.dumps(stored)})
            sync_file(temporary)
            try:
                verify_tensors(temporary)
            except CheckpointError:
                raise WriteError(f"{self.path}: what was written reads back differently; check the disk") from None
            if os.path.lexists(self.path) and not self._damaged:
                os.replace(self.path, self.previous)
        self._damaged, self.source = False, self.path


def has_state(folder: Path) -> bool:
    """Whether a run has saved a state in that folder."""
    return any(os.path.lexists(folder / name) for name in (STATE_FILE, PREVIOUS_FILE))


def remove_states(folder: Path) -> None:
    """Remove what only a run that goes on needs. Raises ``WriteError``."""
    for name in (STATE_FILE, PREVIOUS_FILE):
        remove_file(folder / name)


def read_state_values(folder: Path) -> RunValues | None:
    """The values of the last good state, whose digest is checked; None without a state. Raises ``CheckpointError``."""
    for name in (STATE_FILE, PREVIOUS_FILE):
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            verify_tensors(path)
            return _values(path, read_header(path).metadata)
        except CheckpointError:
            if name == PREVIOUS_FILE or not os.path.lexists(folder / PREVIOUS_FILE):
                raise
    return None


def _read(path: Path) -> StoredState:
    tensors, metadata = read_tensors(path)
    return tensors, _values(path, metadata)


def _values(path: Path, metadata: dict[str, str]) -> RunValues:
    if "state" not in metadata:
        raise CheckpointError(f"{path}: is damaged (it holds no step); restore it or choose another --out")
    return RunValues.from_stored(StoredValues(parse_json(metadata["state"], str(path), CheckpointError), str(path)))
