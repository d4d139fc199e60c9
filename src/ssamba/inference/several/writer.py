"""Predictions of several models: a table, JSON or CSV with a field for the model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

from ssamba.inference.model import Encoder
from ssamba.inference.outputs.provenance import KEY
from ssamba.inference.outputs.score_writers import DIGITS, ScoreWriter, task_head, text_row
from ssamba.inference.predict import Prediction
from ssamba.utils.files import stored_name
from ssamba.utils.terminal import printable


class EachWriter(ScoreWriter):
    """Writes the predictions of ``models`` (by name). ``provenance`` is one of each (``provenance_of``), in their heads
    in JSON, too."""

    _columns: ClassVar[tuple[str, ...]] = ("path", "model")

    def __init__(
        self, out: Path | None, models: dict[str, Encoder], in_time: bool, provenance: Sequence[Any] = ()
    ) -> None:
        self._names = [stored_name(name) for name in models]
        heads = [
            {"model": name, **task_head(model)} | ({KEY: one} if one else {})
            for name, model, one in zip_longest(self._names, models.values(), provenance)
        ]
        tells_unlike = any(model.rejection is not None for model in models.values())
        super().__init__(out, in_time, tells_unlike, {"models": heads}, list(provenance))

    def add(self, path: str, predictions: Sequence[Prediction]) -> None:
        """Take the next recording's predictions, one of each model in their order."""
        named = list(zip(self._names, predictions, strict=True))
        if self._file is None:
            self._lines += self._table(path, predictions)
        elif self._as_json:
            entry = {"path": stored_name(path), "seconds": round(predictions[0].seconds, DIGITS)}
            entry |= {"predictions": [{"model": name, **self._scores(found)} for name, found in named]}
            self._write_entry(self._file, entry)
        else:
            for name, prediction in named:
                self._write_rows(self._file, [stored_name(path), name], prediction)

    def _table(self, path: str, predictions: Sequence[Prediction]) -> list[str]:
        lines = [f"{printable(path)} ({predictions[0].seconds:.2f} s)"]
        for name, prediction in zip(self._names, predictions, strict=True):
            lines.append(f"  {printable(name)}")
            for row, (start, end) in enumerate(prediction.spans.tolist()):
                named = text_row(prediction, row)
                lines.append(f"    {start:.2f} - {end:.2f} s  {named}" if self._in_time else f"    {named}")
        return lines
