"""Predictions on disk, as JSON or CSV, file after file; and as a table for a reader."""

from __future__ import annotations

import csv
import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ssamba.inference.model import Encoder
from ssamba.inference.predict import Prediction, classifier_task
from ssamba.utils.atomic_write import beside, explain
from ssamba.utils.errors import ConfigError
from ssamba.utils.suggest import nearest

EXTENSIONS = (".json", ".csv")
DIGITS = 6
"""Decimal places of a score in a file."""


def check_output(out: Path) -> None:
    """Refuse an output that could not be written, before hours of work. Raises ``ConfigError``."""
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; give a file name that ends in .json or .csv")
    if out.suffix not in EXTENSIONS:
        hint = nearest(out.suffix, list(EXTENSIONS)) or ", give one of " + ", ".join(EXTENSIONS)
        raise ConfigError(f"{out}: unknown ending '{out.suffix}'{hint}")


class PredictionWriter:
    """Writes predictions to ``out`` as they come; the file appears when the block ends well, or not at all.

    Without ``out`` they are gathered in ``text``. ``in_time``: rows of time instead of one row for each recording.
    """

    def __init__(self, out: Path | None, model: Encoder, in_time: bool) -> None:
        if out is not None:
            check_output(out)
        self._out, self._in_time = out, in_time
        task = classifier_task(model)
        self._head = {
            "classes": list(task.classes),
            "multi_label": task.multi_label,
            "recipe": task.recipe,
        }
        self._lines: list[str] = []
        self._count = 0
        self._stack = ExitStack()
        self._file: TextIO | None = None

    @property
    def text(self) -> str:
        """The table so far, without an output file."""
        return "\n".join(self._lines)

    def __enter__(self) -> PredictionWriter:
        if self._out is not None:
            temporary = self._stack.enter_context(beside(self._out))
            try:
                self._file = self._stack.enter_context(open(temporary, "w", encoding="utf-8", newline=""))
            except OSError as error:
                self._stack.close()
                raise explain(error, self._out) from None
            self._stack.push(self._end)
            self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._file is not None and self._as_json:
            self._file.write("\n]}\n")

    @property
    def _as_json(self) -> bool:
        return self._out is not None and self._out.suffix == ".json"

    def _begin(self) -> None:
        assert self._file is not None
        if self._as_json:
            self._file.write(json.dumps(self._head, ensure_ascii=False)[:-1] + ', "files": [')
        else:
            times = ["start", "end"] if self._in_time else []
            csv.writer(self._file).writerow(["path", *times, "rank", "class", "score"])

    def add(self, path: str, prediction: Prediction) -> None:
        """Take the next recording's prediction."""
        if self._file is None:
            self._lines += _table(path, prediction, self._in_time)
            return
        # A file name may hold bytes that are no UTF-8.
        path = os.fsencode(path).decode("utf-8", "replace")
        if self._as_json:
            entry = json.dumps(self._entry(path, prediction), ensure_ascii=False)
            self._file.write((",\n" if self._count else "\n") + entry)
        else:
            self._write_rows(path, prediction)
        self._count += 1

    def _entry(self, path: str, prediction: Prediction) -> dict[str, Any]:
        def scores(row: int) -> list[dict[str, Any]]:
            return [{"class": name, "score": round(score, DIGITS)} for name, score in prediction.ranked(row)]

        entry: dict[str, Any] = {"path": path, "seconds": round(prediction.seconds, DIGITS)}
        if not self._in_time:
            return entry | {"scores": scores(0)}
        spans = prediction.spans.tolist()
        rows = [
            {"start": round(start, DIGITS), "end": round(end, DIGITS), "scores": scores(i)}
            for i, (start, end) in enumerate(spans)
        ]
        return entry | {"rows": rows}

    def _write_rows(self, path: str, prediction: Prediction) -> None:
        assert self._file is not None
        writer = csv.writer(self._file)
        for row, (start, end) in enumerate(prediction.spans.tolist()):
            times = [f"{round(start, DIGITS):g}", f"{round(end, DIGITS):.10g}"] if self._in_time else []
            for rank, (name, score) in enumerate(prediction.ranked(row), start=1):
                writer.writerow([path, *times, rank, name, f"{score:.{DIGITS}f}"])


def _table(path: str, prediction: Prediction, in_time: bool) -> list[str]:
    lines = [f"{path} ({prediction.seconds:.2f} s)"]
    if not in_time:
        ranked = prediction.ranked()
        width = max(len(name) for name, _ in ranked)
        lines += [f"  {name:{width}}  {100 * score:5.1f} %" for name, score in ranked]
        return lines
    spans = prediction.spans.tolist()
    width = len(f"{spans[-1][1]:.2f}")
    for row, (start, end) in enumerate(spans):
        named = ", ".join(f"{name} {100 * score:.1f} %" for name, score in prediction.ranked(row))
        lines.append(f"  {start:{width}.2f} - {end:{width}.2f} s  {named}")
    return lines
