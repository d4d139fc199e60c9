"""An index on disk: a folder of ``index.json``, ``space.safetensors`` and blocks of vectors that are never changed.

A block is a folder of its own: ``files.json``, a table of its recordings, and ``pieces.npy`` and ``columns.npy``, their
vectors in float16 one recording behind the other. ``index.json`` names the blocks that count and what was dropped from
them; it is replaced as a whole, so an index is always one of before or after. Nothing in it is executed, and sizes are
compared with the files' before anything is read.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssamba.inference.outputs.provenance import KEY
from ssamba.inference.search.arrays import HalfArray
from ssamba.inference.search.pieces import piece_count
from ssamba.utils.atomic_write import clear_leftovers, explain, make_folder, write_text
from ssamba.utils.device import dtype_name
from ssamba.utils.errors import DataError
from ssamba.utils.json_text import read_json
from ssamba.utils.lock import FOLDER_LOCK
from ssamba.utils.terminal import shorten

INDEX_FILE, SPACE_FILE, FILES_FILE = "index.json", "space.safetensors", "files.json"
LOCK_FILES = (FOLDER_LOCK, "lock")
"""Names of the lock, now and in earlier versions."""
INDEX_FORMAT = 1
LARGEST_JSON = 1 << 28
"""Bytes of a table that are read."""
BLOCK_NAME = re.compile(r"block-[0-9a-f]{16}")
LISTS_NAME = re.compile(r"lists-[0-9a-f]{16}\.safetensors")
LISTS_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One recording of an index: path as stored, size and time of change when read, length, number of columns."""

    path: str
    size: int
    mtime_ns: int
    seconds: float
    columns: int

    def same_file(self, status: os.stat_result) -> bool:
        """Whether the file has not changed since."""
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class BlockInfo:
    """What ``index.json`` says of a block: its name, counts, and the numbers of recordings that count no longer."""

    name: str
    files: int
    pieces: int
    columns: int
    dropped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ApproximateInfo:
    """What ``index.json`` says of the lists for approximate search: their file's digest and size, how many they are.

    ``blocks`` holds name and number of pieces of each block that they cover, in the order of the file's numbers.
    """

    digest: str
    size: int
    lists: int
    blocks: tuple[tuple[str, int], ...]

    @property
    def file_name(self) -> str:
        """The file of the lists; another content has another name."""
        return f"lists-{self.digest[:16]}.safetensors"


@dataclass(frozen=True)
class IndexHeader:
    """What ``index.json`` holds in addition to the blocks.

    ``column_seconds`` is the distance of two columns, ``piece_values`` and ``column_values`` are lengths of vectors.
    ``approximate``: the lists for approximate search, where there are any. ``provenance``: what ``provenance_of``
    gives, None in indexes of earlier versions.
    """

    model: str
    digest: str
    version: str
    layer: int
    space: str
    relative: bool
    column_seconds: float
    piece_values: int
    column_values: int
    blocks: tuple[BlockInfo, ...] = ()
    approximate: ApproximateInfo | None = None
    provenance: dict[str, Any] | None = None

    @property
    def dtype(self) -> str:
        """The precision of the passes that made the vectors, fp32 in indexes of earlier versions."""
        return dtype_name(str((self.provenance or {}).get("dtype", "float32")))


@dataclass
class StoredBlock:
    """A block opened for reading: its table, its vectors (mapped, not read), and the numbers of those that count."""

    info: BlockInfo
    entries: list[FileEntry]
    pieces: HalfArray
    columns: HalfArray
    kept: list[int] = field(default_factory=list)
    first_column: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    first_piece: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))


def is_index(folder: Path) -> bool:
    """Whether there is an index."""
    return (folder / INDEX_FILE).is_file()


def read_index_header(folder: Path) -> IndexHeader:
    """``index.json``, checked. Raises ``DataError``, ``ConfigError``."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DataError(f"{folder}: holds no {INDEX_FILE}, so it is no index; make one with ssamba index")
    values = _read_table(path)
    if values.get("format") != INDEX_FORMAT:
        raise DataError(f"{path}: format {values.get('format')!r}, this version reads format {INDEX_FORMAT}")
    try:
        blocks = tuple(_block_info(block) for block in values["blocks"])
        header = IndexHeader(
            model=_typed(values["model"], str),
            digest=_typed(values["digest"], str),
            version=_typed(values["version"], str),
            space=_typed(values["space"], str),
            layer=_count(values["layer"]),
            piece_values=_count(values["piece_values"]),
            column_values=_count(values["column_values"]),
            relative=_typed(values["relative"], bool),
            column_seconds=float(values["column_seconds"]),
            blocks=blocks,
            approximate=_approximate_info(values.get("approximate")),
            provenance=None if values.get(KEY) is None else _typed(values[KEY], dict),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); make the index again") from None
    if not 0 < header.column_seconds < 1e6 or not header.piece_values or not header.column_values:
        raise DataError(f"{path}: is damaged (lengths that no index has); make the index again")
    return header


def _read_table(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make the index again") from None
    if size > LARGEST_JSON:
        raise DataError(f"{path}: has {size} bytes, a table has at most {LARGEST_JSON}; make the index again")
    try:
        return read_json(path)
    except RecursionError:
        raise DataError(f"{path}: is damaged (nested too deeply); make the index again") from None


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no count")
    return value


def _block_info(values: Any) -> BlockInfo:
    name = _typed(values["name"], str)
    if not BLOCK_NAME.fullmatch(name):
        raise ValueError(f"{name!r} names no block")
    counts = {k: _count(values[k]) for k in ("files", "pieces", "columns")}
    dropped = frozenset(_count(n) for n in values["dropped"])
    if any(n >= counts["files"] for n in dropped):
        raise ValueError(f"{name} drops recordings that it lacks")
    return BlockInfo(name, dropped=dropped, **counts)


def _approximate_info(values: Any) -> ApproximateInfo | None:
    if values is None:
        return None
    digest = _typed(values["digest"], str)
    if not LISTS_DIGEST.fullmatch(digest):
        raise ValueError(f"{shorten(digest)} is no SHA-256")
    blocks = tuple((_typed(name, str), _count(pieces)) for name, pieces in values["blocks"])
    if len(dict(blocks)) != len(blocks) or not all(BLOCK_NAME.fullmatch(name) for name, _ in blocks):
        raise ValueError("approximate names what is no block, or one twice")
    return ApproximateInfo(digest, _count(values["size"]), _count(values["lists"]), blocks)


def write_header(folder: Path, header: IndexHeader) -> None:
    """Replace ``index.json``: from then on the index is what ``header`` says. Raises ``SsambaError``."""
    values = {k: v for k, v in vars(header).items() if k not in ("blocks", "approximate") and v is not None}
    if header.approximate is not None:
        values["approximate"] = vars(header.approximate)
    blocks = [{**vars(block), "dropped": sorted(block.dropped)} for block in header.blocks]
    write_text(folder / INDEX_FILE, json.dumps({"format": INDEX_FORMAT, **values, "blocks": blocks}, indent=1) + "\n")


def write_block(folder: Path, entries: list[FileEntry], pieces: list[HalfArray], columns: list[HalfArray]) -> BlockInfo:
    """Write a block whole, under a new name that counts once ``index.json`` has it. Raises ``SsambaError``.

    ``pieces`` and ``columns`` hold an array of vectors for each of ``entries``.
    """
    info = BlockInfo(f"block-{secrets.token_hex(8)}", len(entries), sum(map(len, pieces)), sum(map(len, columns)))
    place = make_folder(folder / info.name)
    try:
        for name, parts in (("pieces", pieces), ("columns", columns)):
            with open(place / f"{name}.npy", "xb") as file:
                np.save(file, np.concatenate(parts), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        table = {name: [getattr(entry, name) for entry in entries] for name in FileEntry.__dataclass_fields__}
        write_text(place / FILES_FILE, json.dumps(table))  # names that are no UTF-8 become escapes
    except OSError as error:
        raise explain(error, place) from None
    return info


def open_block(folder: Path, header: IndexHeader, info: BlockInfo) -> StoredBlock:
    """Open a block; its vectors are mapped. Raises ``DataError`` naming the file that does not fit ``index.json``."""
    place = folder / info.name
    entries = _read_entries(place / FILES_FILE, info.files)
    counts = [entry.columns for entry in entries]
    n_pieces = [piece_count(n) for n in counts]
    if (sum(n_pieces), sum(counts)) != (info.pieces, info.columns) or 0 in counts:
        raise DataError(f"{place / FILES_FILE}: does not have the lengths that {INDEX_FILE} says; make the index again")
    return StoredBlock(
        info,
        entries,
        map_vectors(place / "pieces.npy", info.pieces, header.piece_values),
        map_vectors(place / "columns.npy", info.columns, header.column_values),
        [n for n in range(info.files) if n not in info.dropped],
        np.cumsum([0, *counts], dtype=np.int64),
        np.cumsum([0, *n_pieces], dtype=np.int64),
    )


def _read_entries(path: Path, files: int) -> list[FileEntry]:
    values = _read_table(path)
    try:
        columns = [_typed(values[name], list) for name in FileEntry.__dataclass_fields__]
        if {len(column) for column in columns} != {files}:
            raise ValueError(f"it should have {files} rows")
        return [
            FileEntry(_typed(path, str), _count(size), int(mtime), float(seconds), _count(n))
            for path, size, mtime, seconds, n in zip(*columns, strict=True)
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: is damaged ({error}); make the index again") from None


def map_vectors(path: Path, rows: int, values: int) -> HalfArray:
    """A (rows, values) float16 .npy, mapped. Raises ``DataError`` for any other content, before memory is taken."""
    wanted = f"({rows}, {values}) float16"
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of .npy")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
        if shape != (rows, values) or fortran or dtype != np.dtype("<f2"):
            raise ValueError(f"{shape} {dtype}")
        if size != offset + 2 * rows * values:
            raise ValueError(f"{size} bytes")
        if not rows:
            return np.empty((0, values), np.float16)
        return np.memmap(path, dtype="<f2", mode="r", offset=offset, shape=(rows, values))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: holds no {wanted} vectors ({error}); make the index again") from None


def checked(vectors: npt.NDArray[np.floating], place: Path) -> npt.NDArray[np.float32]:
    """Vectors in float32. Raises ``DataError`` naming ``place`` for what no vector of length 1 holds, NaN among it."""
    rows = np.asarray(vectors, dtype=np.float32)
    if not (np.abs(rows) <= 1.01).all():
        raise DataError(f"{place}: its vectors hold NaN or values beyond 1; make the index again")
    return rows


def stored_path(folder: Path, header: IndexHeader, path: str) -> str:
    """How an index writes a file's path."""
    absolute = os.path.abspath(path)
    return os.path.relpath(absolute, os.path.abspath(folder)) if header.relative else absolute


def resolve(folder: Path, header: IndexHeader, stored: str) -> str:
    """The absolute path of a file from what the index holds."""
    return os.path.normpath(os.path.join(os.path.abspath(folder), stored)) if header.relative else stored


def drop(header: IndexHeader, gone: dict[str, set[int]]) -> IndexHeader:
    """The header without recordings ``gone`` (block's name -> numbers); blocks that hold nothing more go as well."""
    blocks = [replace(block, dropped=block.dropped | gone.get(block.name, set())) for block in header.blocks]
    return replace(header, blocks=tuple(block for block in blocks if len(block.dropped) < block.files))


def is_unfinished(folder: Path) -> bool:
    """Whether a folder is empty, or holds nothing but what a killed process left of an index that never was one."""
    patterns = BLOCK_NAME.pattern, LISTS_NAME.pattern, re.escape(SPACE_FILE), r"\.(space|index)\.[0-9a-f]{8}\.\w+"
    ours = re.compile("|".join(patterns))
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else ["no folder"]
    return all(name in LOCK_FILES or ours.fullmatch(name) for name in names)


def clean(folder: Path, header: IndexHeader | None) -> None:
    """Remove blocks that do not count and half-written files. Only for the holder of the lock."""
    names = {block.name for block in header.blocks} if header is not None else set()
    lists = header.approximate.file_name if header is not None and header.approximate is not None else ""
    for path in folder.iterdir():
        if LISTS_NAME.fullmatch(path.name) and path.name != lists:
            path.unlink(missing_ok=True)
        if BLOCK_NAME.fullmatch(path.name) and path.name not in names:
            shutil.rmtree(path, ignore_errors=True)
    clear_leftovers(folder)
