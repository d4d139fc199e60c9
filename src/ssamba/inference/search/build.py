"""Making and updating an index: only new and changed files go through the model, and each block counts once written."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import ssamba
from ssamba.inference.file_stream import FileStream, Progress
from ssamba.inference.outputs.provenance import provenance_of
from ssamba.inference.search import store
from ssamba.inference.search.approximate.library import is_installed, require_library
from ssamba.inference.search.approximate.piece_lists import make_lists, out_of_step
from ssamba.inference.search.block_writer import BlockWriter
from ssamba.inference.search.columns import column_vectors
from ssamba.inference.search.fit import choose_space
from ssamba.inference.search.space import SPACES, Space, StoredModel, load_space, load_stored, save_space
from ssamba.inference.search.store import FileEntry, IndexHeader
from ssamba.models.patches import column_times
from ssamba.models.pretrained.hub import OFFICIAL
from ssamba.models.pretrained.weights import SHIPPED
from ssamba.utils.device import dtype_name
from ssamba.utils.errors import ConfigError, DataError, SsambaError
from ssamba.utils.lock import lock_folder

IN_MEMORY = "(given in memory)"
"""The name of a model that was not loaded here."""


@dataclass(frozen=True)
class IndexOptions:
    """How an index is made. ``relative``: paths from the index's folder on (None: as it is, absolute in a new one).

    ``space`` of ``SPACES``: see ``choose_space``. ``approximate``: make lists for approximate search; where there are
    some they follow the index's updates in any case.
    """

    relative: bool | None = None
    space: str = "auto"
    approximate: bool = False

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ConfigError(f"space '{self.space}': choose one of {', '.join(SPACES)}")


@dataclass
class IndexReport:
    """What an update did: files added (changed ones among them), dropped, kept, in all, and named twice.

    ``pieces`` is how many vectors of pieces the index holds, ``approximate`` whether there are lists for them.
    ``failures`` holds (path, reason) of those that could not be read.
    """

    added: int = 0
    dropped: int = 0
    kept: int = 0
    total: int = 0
    again: int = 0
    space: str = ""
    pieces: int = 0
    approximate: bool = False
    audio_seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """How much goes through the model at once, decoding threads, and what takes the progress."""

    batch: int | None = None
    threads: int | None = None
    progress: Progress | None = None


def update_index(
    files: Sequence[str], out: Path, stored: StoredModel, name: str, options: IndexOptions, work: Work | None = None
) -> IndexReport:
    """Make the index ``out`` or bring it up to date: the work of ``ssamba.index``, which has the details.

    ``name`` stands for the model in messages. Raises ``ConfigError`` for an index of another model or other options,
    ``DataError`` when it is damaged or no file can be read, ``SsambaError`` when another process writes there.
    """
    fresh = not store.is_index(out)
    if fresh and out.exists() and not store.is_unfinished(out):
        raise ConfigError(f"{out}: exists and is no index; give another --out")
    if fresh and not files:
        raise DataError("no audio files given")
    if options.approximate:
        require_library(f"--approximate of {out}", "leave it out")
    try:
        with lock_folder(out):
            return _Update(out, stored, name, options, work or Work()).run(files)
    finally:
        if not store.is_index(out):
            _remove_empty(out)


def other_model(folder: Path, header: IndexHeader, name: str, digest: str) -> ConfigError:
    """The refusal of a model that is not the index's; ``name`` and ``digest`` are those of the one that was given."""
    made = f"{folder}: was made with model {header.model} ({header.digest[:12]})"
    if name == header.model in SHIPPED:
        return ConfigError(
            f"{made} of ssamba {header.version}, that of this version is another ({digest[:12]}): name the old one's "
            f"folder, ssamba index --out {folder} --model FOLDER, or index the recordings again with another --out"
        )
    return ConfigError(f"{made}, {name} is another ({digest[:12]}): give that --model, or make another index")


def _remove_empty(folder: Path) -> None:
    """What a new index leaves when it comes to nothing."""
    for name in (*store.LOCK_FILES, store.SPACE_FILE):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@dataclass
class _Old:
    """What is in an index by paths: where each lies; files as they were, changed ones, and those that are not there."""

    places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class _Update:
    """One run of ``update_index``, under the lock."""

    def __init__(self, folder: Path, stored: StoredModel, name: str, options: IndexOptions, work: Work) -> None:
        self.folder, self.name, self.options, self.work = folder, name, options, work
        self.model, self.digest = stored
        self.report = IndexReport()
        self.header = store.read_index_header(folder) if store.is_index(folder) else None
        if self.header is not None:
            self._check(self.header)
            self.header = self._named(self.header)

    def _check(self, header: IndexHeader) -> None:
        if header.digest != self.digest:
            raise other_model(self.folder, header, self.name, self.digest)
        dtype = dtype_name(self.model.positions.dtype)
        if dtype != header.dtype:
            raise ConfigError(
                f"{self.folder}: its vectors are of passes in {header.dtype}, not {dtype}; give dtype {header.dtype}, "
                "or another --out"
            )
        if self.options.relative not in (None, header.relative):
            kind = "relative" if header.relative else "absolute"
            raise ConfigError(f"{self.folder}: has {kind} paths; give another --out for others")
        if self.options.space not in ("auto", header.space):
            raise ConfigError(f"{self.folder}: has a {header.space} space; give another --out for another")

    def _named(self, header: IndexHeader) -> IndexHeader:
        """Under the name that was given, where the one in the index no longer leads to its model."""
        if self.name in (header.model, IN_MEMORY) or header.model in OFFICIAL:
            return header
        try:
            kept = load_stored(header.model, "cpu").digest == header.digest
        except SsambaError:
            kept = False
        return header if kept else replace(header, model=self.name)

    def run(self, files: Sequence[str]) -> IndexReport:
        """Do it: look at what is there, add, drop, write."""
        old = self._read_old()
        todo = {os.path.abspath(path): path for path in files}
        todo.update((path, path) for path in old.changed if path not in todo)
        todo = {key: path for key, path in todo.items() if key not in old.kept}
        store.clean(self.folder, self.header)
        if todo:
            self._add(list(todo.values()), old)
        if self.header is None:
            path, reason = self.report.failures[0]
            more = f" (none of the {len(todo)} files can be read, this is the first)" if len(todo) > 1 else ""
            raise DataError(f"{path}: {reason}{more}")
        gone = set(old.missing)
        gone.update(os.path.abspath(path) for path, _ in self.report.failures)
        gone.update(old.changed)
        self._commit(self.header, old, gone)
        report, header = self.report, self.header
        report.kept, report.dropped, report.space = len(old.kept), len(old.missing), header.space
        report.total = sum(block.files - len(block.dropped) for block in header.blocks)
        report.pieces = sum(block.pieces for block in header.blocks)
        report.approximate = self._renew_lists(header).approximate is not None
        return report

    def _renew_lists(self, header: IndexHeader) -> IndexHeader:
        """Make lists for approximate search where they are asked for, or where those that are there lag behind."""
        current = header.approximate is not None and not out_of_step(header)
        if current or not (self.options.approximate or header.approximate is not None) or not is_installed():
            return header
        blocks = [store.open_block(self.folder, header, info) for info in header.blocks]
        header = replace(header, approximate=make_lists(self.folder, blocks))
        store.write_header(self.folder, header)
        store.clean(self.folder, header)
        return header

    def _read_old(self) -> _Old:
        old = _Old()
        for info in self.header.blocks if self.header is not None else ():
            assert self.header is not None
            block = store.open_block(self.folder, self.header, info)
            for number in block.kept:
                entry = block.entries[number]
                path = store.resolve(self.folder, self.header, entry.path)
                old.places.setdefault(path, []).append((info.name, number))
                try:
                    same = entry.same_file(os.stat(path))
                except (OSError, ValueError):
                    old.missing.append(path)
                    continue
                if same:
                    old.kept.add(path)
                else:
                    old.changed.append(path)
        old.changed = [path for path in old.changed if path not in old.kept]
        return old

    def _commit(self, header: IndexHeader, old: _Old, gone: Collection[str]) -> IndexHeader:
        """Make ``header`` the index's, without what it had of the paths ``gone``."""
        places: dict[str, set[int]] = {}
        for path in gone:
            for block, number in old.places.pop(path, ()):
                places.setdefault(block, set()).add(number)
        header = store.drop(header, places)
        store.write_header(self.folder, header)
        store.clean(self.folder, header)
        self.header = header
        return header

    def _add(self, files: list[str], old: _Old) -> None:
        """Put ``files`` through the model, block after block."""
        if self.header is None:
            space = self._new_space(files)
            save_space(self.folder / store.SPACE_FILE, space)
            header = self._new_header(space)
        else:
            space, header = load_space(self.folder / store.SPACE_FILE), self.header
        writer = BlockWriter()
        work, statuses = self.work, [_status(path) for path in files]

        def write() -> None:
            nonlocal header
            done = writer.take_all()
            entries = [
                self._entry(header, files[d.number], statuses[d.number], len(d.columns), d.seconds) for d in done
            ]
            info = store.write_block(self.folder, entries, [d.pieces for d in done], [d.columns for d in done])
            added = [os.path.abspath(files[d.number]) for d in done]
            header = self._commit(replace(header, blocks=(*header.blocks, info)), old, added)
            self.report.added += len(done)

        with FileStream(files, work.threads, work.progress, self.model.config.sample_rate) as stream:
            vectors = column_vectors(
                self.model, stream.recordings(), space.layer, space.level, work.batch, stream.failed
            )
            for segment, columns, audible in vectors:
                if writer.take(segment, columns, audible, space):
                    write()
            if writer.waiting:
                write()
            self.report.failures = stream.failures
            self.report.audio_seconds = stream.audio_seconds

    def _new_space(self, files: list[str]) -> Space:
        return choose_space(self.model, self.digest, files, self.options.space, self.work.batch, self.work.threads)

    def _new_header(self, space: Space) -> IndexHeader:
        first, second = column_times(torch.arange(2, device="cpu"), self.model.config).tolist()
        return IndexHeader(
            model=self.name,
            digest=self.digest,
            version=ssamba.__version__,
            layer=space.layer,
            space=space.kind,
            relative=bool(self.options.relative),
            column_seconds=second - first,
            piece_values=space.piece_map.shape[1],
            column_values=space.column_map.shape[1],
            provenance=provenance_of(
                self.model, "index", {"level": "column", "layer": space.layer, "space": space.kind}
            ),
        )

    def _entry(
        self, header: IndexHeader, path: str, status: os.stat_result | None, columns: int, seconds: float
    ) -> FileEntry:
        size, changed = (0, 0) if status is None else (status.st_size, status.st_mtime_ns)
        stored = store.stored_path(self.folder, header, path)
        return FileEntry(stored, size, changed, seconds, columns)


def _status(path: str) -> os.stat_result | None:
    """The file's size and time of change before it is read; None when there is none, which the reader reports."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None
