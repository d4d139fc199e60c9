"""Predictions of several models: a table, JSON or CSV with a field for the model."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ssamba.inference.model import Encoder
from ssamba.inference.outputs.provenance import KEY, write_sidecar
from ssamba.inference.predict import Prediction, classifier_task
from ssamba.inference.writers import DIGITS, PREDICTION_SUFFIXES, csv_rows, json_row, text_row
from ssamba.utils.atomic_write import atomic_write, check_output_name, explain
from ssamba.utils.json_text import dump_json


class EachWriter:
    """Writes the predictions of ``models`` (by name) to ``out`` as they come; the file appears whole or not at all.

    Without ``out`` a table is gathered in ``text``. ``provenance`` is one of each model (``provenance_of``), in JSON's
    heads and in a file next to CSV. ``in_time``: rows of time instead of one row for each recording.
    """

    def __init__(
        self, out: Path | None, models: dict[str, Encoder], in_time: bool, provenance: Sequence[Any] = ()
    ) -> None:
        if out is not None:
            check_output_name(out, PREDICTION_SUFFIXES)
        self._out, self._in_time, self._provenance = out, in_time, list(provenance)
        self._tasks = {_printable(name): classifier_task(model) for name, model in models.items()}
        self._names = list(self._tasks)
        self._tells_unlike = any(model.rejection is not None for model in models.values())
        self._lines: list[str] = []
        self._count = 0
        self._stack = ExitStack()
        self._file: TextIO | None = None

    @property
    def text(self) -> str:
        """The table so far, without an output file."""
        return "\n".join(self._lines)

    def __enter__(self) -> EachWriter:
        if self._out is not None:
            temporary = self._stack.enter_context(atomic_write(self._out))
            try:
                self._file = self._stack.enter_context(open(temporary, "w", encoding="utf-8", newline=""))
            except OSError as error:
                self._stack.close()
                raise explain(error, self._out) from None
            self._begin(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._file is not None and self._as_json:
            self._file.write("\n]}\n")
        self._stack.__exit__(kind, error, trace)
        if kind is None and self._out is not None and not self._as_json:
            write_sidecar(self._out, self._provenance)

    @property
    def _as_json(self) -> bool:
        return self._out is not None and self._out.suffix == ".json"

    def _begin(self, file: TextIO) -> None:
        if not self._as_json:
            times = ["start", "end"] if self._in_time else []
            unlike = ["unlike"] if self._tells_unlike else []
            csv.writer(file).writerow(["path", "model", *times, "rank", "class", "score", *unlike])
            return
        heads = [
            {"model": name, "classes": list(task.classes), "multi_label": task.multi_label, "recipe": task.recipe}
            | ({KEY: provenance} if provenance else {})
            for (name, task), provenance in zip_longest(self._tasks.items(), self._provenance)
        ]
        file.write(dump_json({"models": heads})[:-1] + ', "files": [')

    def add(self, path: str, predictions: Sequence[Prediction]) -> None:
        """Take the next recording's predictions, one of each model in their order."""
        if self._file is None:
            self._lines += self._table(path, predictions)
        elif self._as_json:
            entry = {"path": _printable(path), "seconds": round(predictions[0].seconds, DIGITS)}
            entry |= {"predictions": [self._entry(n, p) for n, p in zip(self._names, predictions, strict=True)]}
            self._file.write((",\n" if self._count else "\n") + json.dumps(entry, ensure_ascii=False))
        else:
            self._write_rows(self._file, _printable(path), predictions)
        self._count += 1

    def _entry(self, name: str, prediction: Prediction) -> dict[str, Any]:
        rows = [json_row(prediction, row) for row in range(len(prediction.scores))]
        if not self._in_time:
            return {"model": name, **rows[0]}
        spans = [[round(second, DIGITS) for second in span] for span in prediction.spans.tolist()]
        found = [{"start": s, "end": e, **row} for (s, e), row in zip(spans, rows, strict=True)]
        return {"model": name, "rows": found}

    def _write_rows(self, file: TextIO, path: str, predictions: Sequence[Prediction]) -> None:
        writer = csv.writer(file)
        for name, prediction in zip(self._names, predictions, strict=True):
            for row, (start, end) in enumerate(prediction.spans.tolist()):
                times = [f"{round(start, DIGITS):g}", f"{round(end, DIGITS):.10g}"] if self._in_time else []
                without = [""] if self._tells_unlike and prediction.unlike is None else []
                for cells in csv_rows(prediction, row):
                    writer.writerow([path, name, *times, *cells, *without])

    def _table(self, path: str, predictions: Sequence[Prediction]) -> list[str]:
        lines = [f"{path} ({predictions[0].seconds:.2f} s)"]
        for name, prediction in zip(self._names, predictions, strict=True):
            lines.append(f"  {name}")
            for row, (start, end) in enumerate(prediction.spans.tolist()):
                named = text_row(prediction, row)
                lines.append(f"    {start:.2f} - {end:.2f} s  {named}" if self._in_time else f"    {named}")
        return lines


def _printable(path: str) -> str:
    """A path whose bytes are perhaps no UTF-8, as text that can be written."""
    return os.fsencode(path).decode("utf-8", "replace")
