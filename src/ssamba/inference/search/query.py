"""An index opened for reading: search in it, and its near-duplicates."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ssamba.audio import log_mel
from ssamba.audio.decode import audio_info, read_audio, stream_audio
from ssamba.audio.encoded import as_source, is_encoded
from ssamba.inference.search import store
from ssamba.inference.search.approximate.library import require_library
from ssamba.inference.search.approximate.piece_lists import PROBES, PieceLists
from ssamba.inference.search.arrays import FloatArray, HalfArray
from ssamba.inference.search.build import IndexReport, other_model
from ssamba.inference.search.columns import column_vectors
from ssamba.inference.search.duplicates import IndexedRecording, Pair, find_pairs
from ssamba.inference.search.match import best_offsets
from ssamba.inference.search.nearest import Nearest, nearest_rows
from ssamba.inference.search.pieces import PieceMeans
from ssamba.inference.search.space import StoredModel, load_space, load_stored
from ssamba.models.pretrained.load import ModelSource
from ssamba.utils.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from ssamba.inference.model import Encoder


CHUNK_COLUMNS = 1 << 16
"""Columns of the index that are compared at a time; with 64 values 16 MiB."""
PHASES = 4
"""Times between two columns at which a query is read: the recordings' own columns begin anywhere."""
FAST_CANDIDATES = 100
"""Recordings that a fast search aligns."""
PAIR_PROBES = 16
"""Lists that the search for near-duplicates looks into: their pieces are close to each other."""
LONG_QUERY_SECONDS = 600.0
"""Longer files are read in blocks, once for each phase."""
DUPLICATE_SCORE = 0.8
"""Score from which two recordings count as near-duplicates (docs/similarity.md has what others give)."""


class Match(NamedTuple):
    """A recording of an index: its path, its score, and the second in it at which the query begins (may be below 0)."""

    path: str
    score: float
    offset: float


class Phase(NamedTuple):
    """Vectors of a query's columns (n, c), which begin that many seconds after it."""

    seconds: float
    columns: FloatArray


class Query(NamedTuple):
    """A query as vectors: columns that begin at several times between two columns, and pieces (p, k)."""

    phases: list[Phase]
    pieces: FloatArray


def _stream_from(path: str, first: int, rate: int) -> Iterator[torch.Tensor]:
    """The blocks of a long file, without its first samples; there are fewer of those than a block has."""
    for number, block in enumerate(stream_audio(path, sample_rate=rate)):
        yield torch.from_numpy(block if number else block[first:])


class Index:
    """An index of recordings. ``model`` embeds queries, a model or what ``ssamba.load`` takes; None loads the one that
    the index names when it is needed.

    ``device`` and ``dtype`` are for a model that is loaded here; ``dtype`` None is that of the index's own passes.

    Raises ``DataError`` for a folder that is no index or is damaged, ``ConfigError`` for another model than it was
    made with.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: Encoder | StoredModel | ModelSource | None = None,
        device: str = "auto",
        dtype: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.header = store.read_index_header(self.folder)
        self.space = load_space(self.folder / store.SPACE_FILE)
        sizes = (self.space.piece_map.shape[1], self.space.column_map.shape[1])
        if sizes != (self.header.piece_values, self.header.column_values) or self.space.digest != self.header.digest:
            raise DataError(f"{self.folder / store.SPACE_FILE}: is of another index; make the index again")
        self._blocks = [store.open_block(self.folder, self.header, info) for info in self.header.blocks]
        self._first_piece = np.cumsum([0, *(block.info.pieces for block in self._blocks)], dtype=np.int64)
        self._lists: PieceLists | None = None
        self.report: IndexReport | None = None
        self._device, self._dtype = device, self.header.dtype if dtype is None else dtype
        self._model: Encoder | None = None
        if model is not None:
            stored = model if isinstance(model, StoredModel) else load_stored(model, self._device, self._dtype)
            self._model = self._checked(stored, "the one given")

    def __len__(self) -> int:
        return sum(len(block.kept) for block in self._blocks)

    @property
    def paths(self) -> list[str]:
        """Absolute paths of the recordings."""
        return [self._path(block.entries[n]) for block in self._blocks for n in block.kept]

    @property
    def model(self) -> Encoder:
        """The model that the index was made with."""
        if self._model is None:
            try:
                loaded = load_stored(self.header.model, self._device, self._dtype)
            except CheckpointError as error:
                raise ConfigError(f"{self.folder}: needs the model it was made with; {error}") from None
            self._model = self._checked(loaded, self.header.model)
        return self._model

    def _checked(self, stored: StoredModel, name: str) -> Encoder:
        if stored.digest != self.header.digest:
            raise other_model(self.folder, self.header, name, stored.digest)
        return stored.model

    def _path(self, entry: store.FileEntry) -> str:
        return store.resolve(self.folder, self.header, entry.path)

    def embed(
        self, query: Any, sample_rate: int | None = None, start: float | None = None, seconds: float | None = None
    ) -> Query:
        """A query as vectors. See ``search`` for the arguments."""
        rate = self.model.config.sample_rate
        path = os.fspath(query) if isinstance(query, (str, os.PathLike)) else None
        long = path is not None and seconds is None and not start and audio_info(path).seconds > LONG_QUERY_SECONDS
        if long:
            waveform = torch.empty(0, dtype=torch.float32, device="cpu")
        elif is_encoded(query):
            waveform = torch.from_numpy(read_audio(as_source(query), rate, start, seconds))
        else:
            (waveform,) = log_mel.to_waveforms(query, sample_rate, rate)
            begin = round((start or 0.0) * rate)
            waveform = waveform[begin : None if seconds is None else begin + round(seconds * rate)]
        steps = self.model.config.stride_time * self.model.config.front_end.hop / PHASES
        shifts = [round(phase * steps) for phase in range(PHASES)]
        least = self.model.config.front_end.frame_length
        versions: list[tuple[int, Iterable[torch.Tensor]]]
        if long and path is not None:
            versions = [(i, _stream_from(path, s, rate)) for i, s in enumerate(shifts)]
        else:
            versions = [(i, [waveform[s:]]) for i, s in enumerate(shifts) if i == 0 or len(waveform) >= s + least]
        means, space = PieceMeans(), self.space
        columns: dict[int, list[FloatArray]] = {i: [] for i, _ in versions}
        for segment, vectors, audible in column_vectors(self.model, versions, space.layer, space.level):
            columns[segment.recording].append(space.columns(vectors, audible))
            if segment.recording == 0 and len(vectors):
                means.add(vectors, audible)
        phases = [Phase(shifts[i] / rate, np.concatenate(parts)) for i, parts in columns.items()]
        return Query(phases, space.pieces(means.finish()))

    def search(
        self,
        query: Any,
        sample_rate: int | None = None,
        start: float | None = None,
        seconds: float | None = None,
        top: int = 10,
        fast: bool | None = None,
    ) -> list[Match]:
        """The ``top`` recordings that are most like a query, best first.

        ``query`` is one recording as ``model.embed`` takes it, an array of ``sample_rate`` or encoded audio; ``start``
        and ``seconds`` choose a stretch of it. ``fast`` aligns those recordings alone whose pieces come nearest,
        found in the index's lists where it has some; None does so for an index with lists. Raises ``AudioError`` for a
        query that cannot be read, ``DataError`` for an empty or damaged index and for a query in which nothing is
        audible, ``SsambaError`` when there are lists and the library for them is missing.
        """
        if top < 1:
            raise ConfigError(f"top is {top}: give a whole number above 0")
        self._require_recordings()
        fast = self.header.approximate is not None if fast is None else fast
        if fast:
            self._open_lists("search it with --exact")
        embedded = self.embed(query, sample_rate, start, seconds)
        if not embedded.phases[0].columns.any():
            name = query if isinstance(query, (str, os.PathLike)) else "the query"
            raise DataError(f"{name}: holds nothing but silence there; choose another stretch")
        found = self._candidates(embedded) if fast else self.match(embedded.phases)
        return sorted(found, key=lambda match: -match.score)[:top]

    def _require_recordings(self) -> None:
        """Raises ``DataError`` for an index without any."""
        if not len(self):
            raise DataError(f"{self.folder}: holds no recordings; add some with ssamba index")

    def match(self, phases: Sequence[Phase]) -> list[Match]:
        """Every recording, matched in time with a query: the best of its phases, in the index's order."""
        found = []
        for block in self._blocks:
            for numbers in _chunks(block, len(phases[0].columns)):
                found += self._match(block, numbers, phases)
        return found

    def _match(self, block: store.StoredBlock, numbers: Sequence[int], phases: Sequence[Phase]) -> list[Match]:
        """Neighbouring recordings of a block, those that were dropped left out."""
        low, high = int(block.first_column[numbers[0]]), int(block.first_column[numbers[-1] + 1])
        columns = self._read(block, block.columns, low, high)
        first = block.first_column[numbers[0] : numbers[-1] + 2] - low
        tries = [best_offsets(phase.columns, columns, first) for phase in phases]
        shifts = np.array([phase.seconds for phase in phases])
        offsets = np.stack([t.offset for t in tries]) * self.header.column_seconds - shifts[:, None]
        best = np.stack([t.score for t in tries]).argmax(axis=0)
        return [
            Match(self._path(block.entries[n]), float(tries[b].score[i]), float(offsets[b, i]))
            for i, (n, b) in enumerate(zip(numbers, best.tolist(), strict=True))
            if n not in block.info.dropped
        ]

    def _candidates(self, query: Query) -> list[Match]:
        """The recordings with the nearest pieces, aligned."""
        rows = np.unique(self._nearest_pieces(query.pieces, FAST_CANDIDATES).row)
        chosen = sorted({self._place(row) for row in rows.tolist() if row >= 0})
        return [match for b, n in chosen for match in self._match(self._blocks[b], [n], query.phases)]

    def _place(self, row: int) -> tuple[int, int]:
        """Block and number of the recording that a piece is of."""
        b = int(np.searchsorted(self._first_piece, row, side="right")) - 1
        block = self._blocks[b]
        return b, int(np.searchsorted(block.first_piece, row - self._first_piece[b], side="right")) - 1

    def _open_lists(self, otherwise: str) -> None:
        """Open the lists for approximate search where the index has some. Raises ``DataError``, ``SsambaError``."""
        info = self.header.approximate
        if info is not None and self._lists is None:
            require_library(f"{self.folder}", otherwise)
            self._lists = PieceLists(self.folder, self.header, info, self._blocks)

    def _nearest_pieces(self, queries: FloatArray, top: int, probes: int = PROBES) -> Nearest:
        """The nearest pieces of queries (q, k), numbered through all blocks: from the lists, where they are open."""
        if self._lists is None:
            return nearest_rows(queries, self._piece_chunks(range(len(self._blocks))), top)
        found, others = self._lists.nearest(queries, top, probes), self._lists.others
        if not others:
            return found
        rest = nearest_rows(queries, self._piece_chunks(others), top)
        counts = [self._blocks[b].info.pieces for b in others]
        numbers = np.concatenate([np.arange(n) + self._first_piece[b] for b, n in zip(others, counts, strict=True)])
        row = np.concatenate([found.row, np.where(rest.row < 0, -1, numbers[rest.row])], axis=1)
        score = np.concatenate([found.score, rest.score], axis=1)
        order = np.argsort(-score, axis=1, kind="stable")[:, :top]
        return Nearest(np.take_along_axis(score, order, 1), np.take_along_axis(row, order, 1))

    def _piece_chunks(self, blocks: Iterable[int]) -> Iterator[FloatArray]:
        for block in (self._blocks[b] for b in blocks):
            for low in range(0, len(block.pieces), CHUNK_COLUMNS):
                yield self._read(block, block.pieces, low, min(low + CHUNK_COLUMNS, len(block.pieces)))

    def _read(self, block: store.StoredBlock, vectors: HalfArray, low: int, high: int) -> FloatArray:
        """Rows of a block in float32, checked."""
        return store.checked(vectors[low:high], self.folder / block.info.name)

    def recordings(self) -> Iterator[IndexedRecording]:
        """All recordings with their vectors, those of columns mapped."""
        for block in self._blocks:
            for n in block.kept:
                entry = block.entries[n]
                columns = block.columns[block.first_column[n] : block.first_column[n + 1]]
                pieces = self._read(block, block.pieces, int(block.first_piece[n]), int(block.first_piece[n + 1]))
                yield IndexedRecording(self._path(entry), entry.seconds, columns, pieces)

    def duplicates(self, threshold: float = DUPLICATE_SCORE, exact: bool = False) -> list[Pair]:
        """Pairs of recordings that hold the same sound, best first: those with a score from ``threshold`` on.

        Where the index has lists for approximate search, they find the recordings to compare, unless ``exact``. Raises
        ``DataError`` for an empty or damaged index, ``ConfigError`` for a threshold outside of 0 to 1.
        """
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold is {threshold:g}: give a score above 0, up to 1")
        self._require_recordings()
        nearest = None
        if self.header.approximate is not None and not exact:
            self._open_lists("give --exact")
            nearest = self._nearest_kept
        return find_pairs(list(self.recordings()), threshold, self.header.column_seconds, nearest)

    def _nearest_kept(self, queries: FloatArray, top: int) -> Nearest:
        """The nearest pieces numbered through the recordings that count; -1 for those of dropped ones."""
        kept = [np.zeros(0, bool)]
        for block in self._blocks:
            counts = np.diff(block.first_piece)
            kept.append(np.repeat(~np.isin(np.arange(len(counts)), list(block.info.dropped)), counts))
        counts_on = np.concatenate(kept)
        number = np.where(counts_on, np.cumsum(counts_on) - 1, -1)
        found = self._nearest_pieces(queries, top, PAIR_PROBES)
        return Nearest(found.score, np.where(found.row < 0, -1, number[found.row]))


def _chunks(block: store.StoredBlock, query_columns: int) -> Iterator[list[int]]:
    """Numbers of neighbouring recordings that are compared with a query at a time."""
    part: list[int] = []
    held = 0
    for n, entry in enumerate(block.entries):
        part.append(n)
        held += entry.columns + query_columns
        if held >= CHUNK_COLUMNS:
            yield part
            part, held = [], 0
    if part:
        yield part
