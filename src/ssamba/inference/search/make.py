"""``ssamba.index``: one call from files to an index that can be searched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ssamba.inference.file_stream import Progress, list_files
from ssamba.inference.model import Encoder
from ssamba.inference.search import store
from ssamba.inference.search.build import IN_MEMORY, IndexOptions, Work, update_index
from ssamba.inference.search.query import Index
from ssamba.inference.search.space import load_stored
from ssamba.models.pretrained.load import ModelSource, model_names
from ssamba.models.pretrained.weights import DEFAULT
from ssamba.utils.errors import ConfigError


def index(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    model: ModelSource | Encoder | None = None,
    relative: bool | None = None,
    space: str = "auto",
    device: str = "auto",
    batch: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    approximate: bool = False,
    dtype: str | None = None,
) -> Index:
    """Make an index of recordings in the folder ``out``, or bring it up to date, and open it.

    ``files`` are audio files, folders and manifests. An existing index gets those that are new; of what it holds,
    changed files are read again and those that are gone are dropped. ``model`` None is the existing index's own, or
    ``tiny``. ``relative`` stores paths from ``out`` on. ``space`` is auto, fitted (to the collection) or plain.
    ``approximate`` makes lists for the search of large indexes (``ssamba[search]``), which later calls keep in step.
    ``dtype`` is the precision of the passes, as for ``ssamba.load``: None is the existing index's, or fp32; an index
    has vectors of one alone, and a model given in memory has its own.
    Each block of recordings counts once it is written; ``report`` of the result says what was done and which files
    could not be read.

    Raises ``DataError`` when no file can be read or the index is damaged, ``ConfigError`` for an index of another
    model or other options, ``SsambaError`` when it cannot be written.
    """
    folder, options = Path(out), IndexOptions(relative, space, approximate)
    header = store.read_index_header(folder) if store.is_index(folder) else None
    source = header.model if model is None and header is not None else model
    if isinstance(source, Encoder) and dtype is not None:
        raise ConfigError(f"dtype '{dtype}': is for a model that is loaded here, the one given has its own")
    stored = load_stored(source, device, dtype or ("fp32" if header is None else header.dtype))
    listed, again = list_files([os.fspath(path) for path in files])
    work = Work(batch, threads, progress)
    report = update_index(listed, folder, stored, _name(source), options, work)
    report.again = again
    made = Index(folder, stored)
    made.report = report
    return made


def _name(source: ModelSource | Encoder | None) -> str:
    """What an index calls its model: a name, or the path that finds it from everywhere."""
    if isinstance(source, Encoder):
        return IN_MEMORY
    name = DEFAULT if source is None else os.fspath(source)
    return name if name in model_names() else os.path.abspath(name)
