"""What a run leaves to read: ``log.csv`` and TensorBoard events, without doubled or half lines after a kill."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from ssamba.utils.atomic_write import explain, write_text

LOG_FILE = "log.csv"


def read_log(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's log, the last one left out when a kill cut it short."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole)))


class RunLog:
    """Appends rows; on resume, rows beyond the saved step are dropped, since those steps are taken again."""

    def __init__(self, folder: Path, columns: list[str], step: int) -> None:
        self.columns = columns
        self.path = folder / LOG_FILE
        rows = [row for row in read_log(folder) if int(row["step"]) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115 (lives as long as the run)
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """One row; numbers also go to TensorBoard. Raises ``SsambaError`` when the disk refuses it."""
        try:
            self._writer.writerow({k: _text(v) for k, v in row.items()})
            self._file.flush()
            for key, value in row.items():
                if key not in ("step", "seconds"):
                    group = "validation/" + key[4:] if key.startswith("val_") else "training/" + key
                    self._board.add_scalar(group, value, int(row["step"]))
        except OSError as error:
            raise explain(error, self.path) from None

    def close(self) -> None:
        """Flush everything to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._board.close()


def _text(value: float) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
