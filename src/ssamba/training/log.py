"""What a run leaves to read: ``log.csv`` and TensorBoard events, without doubled or half lines after a kill."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from ssamba.models.pretrained.file_checks import forget_files
from ssamba.training.run_folder import RECIPE_FILE
from ssamba.utils.atomic_write import explain, make_folder, write_text
from ssamba.utils.errors import CheckpointError, WriteError
from ssamba.utils.files import read_bytes, read_text
from ssamba.utils.terminal import printable, shorten

LOG_FILE, BOARD_FOLDER = "log.csv", "tensorboard"
TIMES = ("clips_per_second", "seconds")
"""Columns that differ between runs of the same numbers."""
LOG_LIMIT = 4 << 30
"""Most bytes of a log that is read."""
NARROW_BAR = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"


def read_log(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's log, the last one left out when a kill cut it short. Raises ``CheckpointError`` if damaged."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    text = read_text(path, LOG_LIMIT, CheckpointError)
    try:
        rows = _rows(text)
        wrong = next(filter(None, map(_wrong_value, rows)), None)
    except csv.Error as error:
        wrong = str(error)
    if wrong is not None:
        raise CheckpointError(f"{path}: is damaged ({wrong}); restore it from a copy")
    return rows


def check_log(folder: Path, mark: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a run's log, against the mark that its state holds; None when nothing is.

    States of earlier versions have no mark: then the values alone are checked.
    """
    try:
        rows = read_log(folder)
    except CheckpointError as problem:
        return str(problem)
    if mark is None:
        return None
    digest = hashlib.sha256()
    for row in rows[: mark["rows"]]:
        digest.update(_content(row))
    if len(rows) < mark["rows"] or digest.hexdigest() != mark.get("sha256"):
        return f"{folder / LOG_FILE}: does not hold what the run wrote there"
    return None


def _content(row: Mapping[str, str]) -> bytes:
    """What a row says, without times: the same in all runs of a recipe."""
    return json.dumps({key: value for key, value in row.items() if key not in TIMES}).encode()


def _rows(text: str) -> list[dict[str, str]]:
    """The whole lines of a log's text as rows. Raises ``csv.Error`` for a value of over 100,000 characters."""
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole.replace("\0", "?").replace("\r", "?"), newline="")))


def _wrong_value(row: Mapping[Any, Any]) -> str | None:
    """What makes a row none of a log's; a value may be empty, and the step is a whole number."""
    for key, value in row.items():
        if key is None or value is None:
            return f"a row of {'more' if key is None else 'fewer'} values than columns"
        try:
            number = float(value or 0)
        except ValueError:
            return f"{printable(key)} is {shorten(value)}"
        if key == "step" and not (value and math.isfinite(number) and number == int(number)):
            return f"step is {shorten(value)}"
    return None if "step" in row else "there is no step"


def _readable_rows(path: Path) -> list[dict[str, str]]:
    """The rows that can be read of a log that may be damaged."""
    try:
        rows = _rows(read_bytes(path, LOG_LIMIT, CheckpointError).decode("utf-8", "replace"))
    except (CheckpointError, csv.Error):
        return []
    return [row for row in rows if _wrong_value(row) is None]


class EventFile:
    """TensorBoard's events of a run, written at once and by this thread: what fails, fails where it can be handled.

    Args:
        folder: of the event files, each part of a run has one.
        first_step: events from this step on, of a part that was killed, are void.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        make_folder(folder)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._writer.write_event(Event(step=first_step, file_version="brain.Event:2"))
        self._writer.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One number. Raises ``OSError``."""
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))

    def flush(self) -> None:
        """Hand what was written to the system. Raises ``OSError``."""
        self._writer.flush()

    def close(self) -> None:
        """Raises ``OSError``."""
        self._writer.close()


class RunLog:
    """Appends rows; on resume, rows beyond the saved step are dropped, since those steps are taken again.

    Attributes:
        seconds: in the last row that was kept, from which those of the next go on.
    """

    def __init__(self, folder: Path, columns: list[str], step: int) -> None:
        self.columns = columns
        self.path = folder / LOG_FILE
        forget_files(folder, but=[RECIPE_FILE])  # what a run writes anew
        rows = [row for row in _readable_rows(self.path) if int(float(row["step"])) <= step]
        self.seconds = float(rows[-1].get("seconds") or 0) if rows else 0.0
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._digest, self._rows = hashlib.sha256(), len(rows)
        for row in rows:
            self._digest.update(_content({key: row.get(key, "") for key in columns}))
        try:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (lives as long as the run)
            self._board = EventFile(folder / BOARD_FOLDER, step + 1)
        except OSError as error:
            raise explain(error, self.path) from None

    def write(self, row: Mapping[str, float]) -> None:
        """One row; numbers also go to TensorBoard. Raises ``WriteError`` when the disk refuses it."""
        text, values = io.StringIO(), {key: _text(row[key]) if key in row else "" for key in self.columns}
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow(values)
        line = text.getvalue().encode()
        path = self.path
        try:
            rest = line
            while rest:  # a disk that is about to be full takes a part first
                rest = rest[self._file.write(rest) :]
            self._digest.update(_content(values))
            self._rows += 1
            path = self.path.parent / BOARD_FOLDER
            for key, value in row.items():
                if key not in ("step", "seconds"):
                    group = "validation/" + key[4:] if key.startswith("val_") else "training/" + key
                    self._board.add_scalar(group, value, int(row["step"]))
            self._board.flush()
        except OSError as error:
            raise explain(error, path) from None

    def mark(self) -> dict[str, Any]:
        """Rows of the log so far and their digest, for the state. Raises ``WriteError``."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain(error, self.path) from None
        return {"rows": self._rows, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Close both files, whose rows are with the system already. Raises ``WriteError``."""
        try:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
                self._board.close()
        except OSError as error:
            raise explain(error, self.path) from None


@contextlib.contextmanager
def closed_at_end(log: RunLog | None) -> Iterator[None]:
    """A context that closes the log; an error of the block comes before one of closing."""
    try:
        yield
    except BaseException:
        if log is not None:
            with contextlib.suppress(WriteError):
                log.close()
        raise
    if log is not None:
        log.close()


def _text(value: float) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def step_bar(label: str, total: int, done: int, columns: int | None, visible: bool) -> tqdm[Any]:
    """The bar of a run's steps on stderr; with a width in ``columns`` it leaves out speed and rate."""
    slow = 0.2 if sys.stderr.isatty() else 30
    narrow = columns is not None
    return tqdm(
        desc=label or None,
        total=total,
        initial=done,
        unit="step",
        mininterval=slow,
        ncols=columns,
        dynamic_ncols=not narrow,
        bar_format=NARROW_BAR if narrow else None,
        disable=not visible,
    )
