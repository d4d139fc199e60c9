"""Embeddings on disk, whole or not at all.

Rows are spooled while the model runs, then written as one .npz or .parquet in the files' order.
"""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from ssamba.inference.outputs.provenance import KEY, PARQUET_KEY
from ssamba.models.config import Config
from ssamba.models.patches import column_times
from ssamba.utils.atomic_write import atomic_write, check_output_name, explain
from ssamba.utils.errors import SsambaError
from ssamba.utils.files import stored_name
from ssamba.utils.json_text import dump_json

LEVELS = ("clip", "frame", "patch")
EMBEDDING_SUFFIXES = (".npz", ".parquet")
CHUNK_BYTES = 64 << 20
"""Embeddings held at a time while the output is written; also the size of a Parquet row group."""

Floats = npt.NDArray[np.float32]
_Times = Callable[["Chunk"], npt.NDArray[np.float64]]


@dataclass
class Chunk:
    """Rows on their way to the output: index of the file, patch column, frequency row, embedding (rows, d)."""

    file: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    embedding: Floats


def check_embedding_output(out: Path) -> None:
    """Refuse an output that could not be written, before hours of work. Raises ``ConfigError``, ``SsambaError``."""
    check_output_name(out, EMBEDDING_SUFFIXES)
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise SsambaError(f'{out}: writing .parquet needs pyarrow: pip install "ssamba[parquet]", or give a .npz')
    spool_file(out).close()


def spool_file(out: Path) -> BinaryIO:
    """An anonymous temporary file on the output's disk; the system removes it however the program ends."""
    folder = out.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        # Unbuffered, so that a full disk is met at the write and not again when the file is closed.
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise explain(error, out) from None


class Spool:
    """Rows (n, d) of many files in the order in which they come, kept on disk next to the output.

    ``rows_per_column`` is 1 for clips and frames, and the number of frequency rows for patches, whose rows come time
    after time, each from low to high frequency.
    """

    def __init__(self, out: Path, width: int, rows_per_column: int = 1) -> None:
        self.out, self.width, self.rows_per_column = out, width, rows_per_column
        self._file = spool_file(out)
        self._segments: dict[int, list[tuple[int, int]]] = {}
        self._rows = 0

    def append(self, file: int, rows: Floats) -> None:
        """Add the next rows of one file. Raises ``SsambaError`` when the disk is full."""
        if not len(rows):
            return
        data = np.ascontiguousarray(rows, dtype="<f4").data.cast("B")
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise explain(error, self.out) from None
        self._segments.setdefault(file, []).append((self._rows, len(rows)))
        self._rows += len(rows)

    def rows_of(self, files: Sequence[int]) -> int:
        """Rows that these files have together."""
        return sum(n for file in files for _, n in self._segments.get(file, ()))

    def chunks(self, files: Sequence[int], embeddings: bool = True) -> Iterator[Chunk]:
        """The rows of ``files`` in that order, in chunks that may run over the border of two files.

        ``Chunk.file`` counts within ``files``. Without ``embeddings`` nothing is read and that part stays empty.
        """
        limit = max(1, CHUNK_BYTES // (4 * self.width))
        parts: list[Chunk] = []
        held = 0
        for index, file in enumerate(files):
            number = 0  # of the row within its file
            for first, count in self._segments.get(file, ()):
                for begin in range(0, count, limit):
                    n = min(limit, count - begin)
                    if held and held + n > limit:
                        yield _join(parts)
                        parts, held = [], 0
                    column, row = np.divmod(np.arange(number, number + n), self.rows_per_column)
                    data = self._read(first + begin, n) if embeddings else np.empty((0, self.width), np.float32)
                    parts.append(Chunk(np.full(n, index), column, row, data))
                    held, number = held + n, number + n
        if parts:
            yield _join(parts)

    def _read(self, first: int, count: int) -> Floats:
        self._file.seek(first * self.width * 4)
        out = np.empty((count, self.width), dtype="<f4")
        view = out.data.cast("B")
        while view:
            data = self._file.read(len(view))
            if not data:
                raise OSError(f"the temporary file next to {self.out} came to an early end")
            view[: len(data)] = data
            view = view[len(data) :]
        return out

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()


def _join(parts: list[Chunk]) -> Chunk:
    if len(parts) == 1:
        return parts[0]
    return Chunk(
        np.concatenate([p.file for p in parts]),
        np.concatenate([p.column for p in parts]),
        np.concatenate([p.row for p in parts]),
        np.concatenate([p.embedding for p in parts]),
    )


def write_output(
    spool: Spool,
    files: Sequence[int],
    paths: Sequence[str],
    level: str,
    config: Config,
    provenance: dict[str, Any],
    hop: int | None = None,
) -> None:
    """Write the rows of ``files`` (named by ``paths``) to ``spool.out``, all or nothing. Raises ``SsambaError``.

    ``config``, the model's, tells the times of patch columns, which are ``hop`` frames apart (None: a patch's step);
    ``provenance`` (``provenance_of``) is kept with the rows.
    """

    def times(chunk: Chunk) -> npt.NDArray[np.float64]:
        """Seconds at the centre of each row's patch column."""
        return np.asarray(column_times(torch.from_numpy(chunk.column), config, hop).numpy(), dtype=np.float64)

    write = _write_npz if spool.out.suffix == ".npz" else _write_parquet
    with atomic_write(spool.out) as temporary:
        write(temporary, spool, files, paths, level, times, dump_json(provenance))


def _write_npz(
    path: Path, spool: Spool, files: Sequence[int], paths: Sequence[str], level: str, times: _Times, provenance: str
) -> None:
    n_rows = spool.rows_of(files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def add(name: str, dtype: str, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(np.ascontiguousarray(part, dtype=dtype).reshape(-1).view(np.uint8).data)

        names = np.array([stored_name(path) for path in paths], dtype=np.str_)
        add("paths", names.dtype.str, names.shape, iter([names]))
        add("embedding", "<f4", (n_rows, spool.width), (c.embedding for c in spool.chunks(files)))
        if level != "clip":
            add("file", "<i8", (n_rows,), (c.file for c in spool.chunks(files, embeddings=False)))
            add("time", "<f8", (n_rows,), (times(c) for c in spool.chunks(files, embeddings=False)))
        if level == "patch":
            add("row", "<i8", (n_rows,), (c.row for c in spool.chunks(files, embeddings=False)))
        text = np.array(provenance, dtype=np.str_)
        add(KEY, text.dtype.str, (), iter([text]))


def _write_parquet(
    path: Path, spool: Spool, files: Sequence[int], paths: Sequence[str], level: str, times: _Times, provenance: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A file name may hold bytes that are no UTF-8; Parquet's strings may not, so the bytes get a column.
    stored = [stored_name(path).encode("utf-8", "surrogateescape") for path in paths]
    names, raw = pa.array([name.decode("utf-8", "backslashreplace") for name in stored]), pa.array(stored, pa.binary())
    fields = [("path", pa.string())]
    fields += [] if all(map(_is_utf8, stored)) else [("path_bytes", pa.binary())]
    fields += [("time", pa.float64())] if level != "clip" else []
    fields += [("row", pa.int32())] if level == "patch" else []
    metadata = {PARQUET_KEY: provenance.encode()}
    schema = pa.schema([*fields, ("embedding", pa.list_(pa.float32(), spool.width))], metadata)
    with open(path, "wb") as file, pq.ParquetWriter(file, schema) as writer:  # a name of any bytes
        for chunk in spool.chunks(files):
            columns = {
                "path": names.take(pa.array(chunk.file)),
                "path_bytes": raw.take(pa.array(chunk.file)),
                "time": pa.array(times(chunk)),
                "row": pa.array(chunk.row.astype(np.int32)),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(chunk.embedding.reshape(-1)), spool.width),
            }
            writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
