"""Predictions of recordings on disk, file after file, whole or not at all: JSON or CSV, or a table for a reader."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TextIO, TypeVar

from ssamba.inference.model import Encoder
from ssamba.inference.outputs.provenance import KEY, write_sidecar
from ssamba.inference.predict import Prediction, classifier_task
from ssamba.inference.writers import spool_file
from ssamba.utils.atomic_write import atomic_write, check_output_name, explain
from ssamba.utils.files import stored_name
from ssamba.utils.json_text import dump_json
from ssamba.utils.terminal import printable

PREDICTION_SUFFIXES = (".json", ".csv")
DIGITS = 6
"""Decimal places of a score in a file."""
Writer = TypeVar("Writer", bound="ScoreWriter")


def check_prediction_output(out: Path) -> None:
    """Refuse an output that could not be written, before hours of work. Raises ``ConfigError``, ``SsambaError``."""
    check_output_name(out, PREDICTION_SUFFIXES)
    spool_file(out).close()


def task_head(model: Encoder) -> dict[str, Any]:
    """What JSON says of a classifier."""
    task = classifier_task(model)
    return {"classes": list(task.classes), "multi_label": task.multi_label, "recipe": task.recipe}


class ScoreWriter:
    """What writers of scores share: the file, which appears when the block ends well, or not at all.

    Without ``out`` a table is gathered in ``text``. ``head`` is that of JSON, ``provenance`` goes into a file next to
    CSV. ``in_time``: rows of time instead of one row for each recording. ``tells_unlike``: CSV has that column.
    """

    _columns: ClassVar[tuple[str, ...]] = ("path",)

    def __init__(
        self, out: Path | None, in_time: bool, tells_unlike: bool, head: dict[str, Any], provenance: Any
    ) -> None:
        if out is not None:
            check_output_name(out, PREDICTION_SUFFIXES)
        self._out, self._in_time, self._tells_unlike = out, in_time, tells_unlike
        self._head, self._provenance = head, provenance
        self._lines: list[str] = []
        self._count = 0
        self._stack = ExitStack()
        self._file: TextIO | None = None

    @property
    def text(self) -> str:
        """The table so far, without an output file."""
        return "\n".join(self._lines)

    def __enter__(self: Writer) -> Writer:
        if self._out is not None:
            temporary = self._stack.enter_context(atomic_write(self._out))
            try:
                self._file = self._stack.enter_context(
                    open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="")
                )
            except OSError as error:
                self._stack.close()
                raise explain(error, self._out) from None
            self._stack.push(self._end)
            self._begin(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None and self._out is not None and not self._as_json:
            write_sidecar(self._out, self._provenance)

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._file is not None and self._as_json:
            self._file.write("\n]}\n")

    @property
    def _as_json(self) -> bool:
        return self._out is not None and self._out.suffix == ".json"

    def _begin(self, file: TextIO) -> None:
        if self._as_json:
            file.write(dump_json(self._head)[:-1] + ', "files": [')
        else:
            times = ["start", "end"] if self._in_time else []
            unlike = ["unlike"] if self._tells_unlike else []
            csv.writer(file).writerow([*self._columns, *times, "rank", "class", "score", *unlike])

    def _write_entry(self, file: TextIO, entry: dict[str, Any]) -> None:
        """The next recording's object in JSON."""
        file.write((",\n" if self._count else "\n") + dump_json(entry))
        self._count += 1

    def _scores(self, prediction: Prediction) -> dict[str, Any]:
        """What JSON says of one prediction: its scores, or rows of them in time."""
        rows = [json_row(prediction, row) for row in range(len(prediction.scores))]
        if not self._in_time:
            return rows[0]
        spans = [[round(second, DIGITS) for second in span] for span in prediction.spans.tolist()]
        return {"rows": [{"start": s, "end": e, **row} for (s, e), row in zip(spans, rows, strict=True)]}

    def _write_rows(self, file: TextIO, names: Sequence[str], prediction: Prediction) -> None:
        """Lines of CSV that begin with ``names``."""
        writer = csv.writer(file)
        without = [""] if self._tells_unlike and prediction.unlike is None else []
        for row, (start, end) in enumerate(prediction.spans.tolist()):
            times = [f"{round(start, DIGITS):g}", f"{round(end, DIGITS):.10g}"] if self._in_time else []
            for cells in csv_rows(prediction, row):
                writer.writerow([*names, *times, *cells, *without])


class PredictionWriter(ScoreWriter):
    """Writes the predictions of one model. ``provenance`` (``provenance_of``) is in the head of JSON, too."""

    def __init__(self, out: Path | None, model: Encoder, in_time: bool, provenance: dict[str, Any]) -> None:
        head = task_head(model) | {KEY: provenance}
        super().__init__(out, in_time, model.rejection is not None, head, provenance)

    def add(self, path: str, prediction: Prediction) -> None:
        """Take the next recording's prediction."""
        if self._file is None:
            self._lines += _table(path, prediction, self._in_time)
        elif self._as_json:
            entry = {"path": stored_name(path), "seconds": round(prediction.seconds, DIGITS)}
            self._write_entry(self._file, entry | self._scores(prediction))
        else:
            self._write_rows(self._file, [stored_name(path)], prediction)


NO_CLASS = "-"
"""Named where no class is: rejected, or all scores below the threshold."""


def json_row(prediction: Prediction, row: int) -> dict[str, Any]:
    """``scores`` of the classes that a row names, before them ``unlike`` where the model knows it."""
    scores = [{"class": name, "score": round(score, DIGITS)} for name, score in prediction.ranked(row)]
    if prediction.unlike is None:
        return {"scores": scores}
    return {"unlike": round(float(prediction.unlike[row]), DIGITS), "scores": scores}


def csv_rows(prediction: Prediction, row: int) -> Iterator[list[Any]]:
    """Rank, class, score and, where the model knows it, unlike; rank 0 and score 0 where a row names no class."""
    unlike = [] if prediction.unlike is None else [f"{float(prediction.unlike[row]):.{DIGITS}f}"]
    named = list(enumerate(prediction.ranked(row), start=1)) or [(0, (NO_CLASS, 0.0))]
    for rank, (name, score) in named:
        yield [rank, name, f"{score:.{DIGITS}f}", *unlike]


def text_row(prediction: Prediction, row: int) -> str:
    """What a row names, for a reader, with a mark where it is unlike the training sounds."""
    named = ", ".join(f"{name} {100 * score:.1f} %" for name, score in prediction.ranked(row))
    return (named or NO_CLASS) + unlike_mark(prediction, row)


def unlike_mark(prediction: Prediction, row: int) -> str:
    """``  (unlike the training sounds: 1.3)`` for a row that is."""
    if prediction.unlike is None or prediction.unlike[row] <= 1:
        return ""
    return f"  (unlike the training sounds: {float(prediction.unlike[row]):.2f})"


def _table(path: str, prediction: Prediction, in_time: bool) -> list[str]:
    head = f"{printable(path)} ({prediction.seconds:.2f} s)"
    if not in_time:
        ranked = [(printable(name), score) for name, score in prediction.ranked()]
        width = max((len(name) for name, _ in ranked), default=0)
        scores = [f"  {name:{width}}  {100 * score:5.1f} %" for name, score in ranked] or [f"  {NO_CLASS}"]
        return [head + unlike_mark(prediction, 0), *scores]
    lines = [head]
    spans = prediction.spans.tolist()
    width = len(f"{spans[-1][1]:.2f}")
    for row, (start, end) in enumerate(spans):
        lines.append(f"  {start:{width}.2f} - {end:{width}.2f} s  {text_row(prediction, row)}")
    return lines
