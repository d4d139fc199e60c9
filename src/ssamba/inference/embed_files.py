"""Audio files of any number and length -> one file of embeddings, in bounded memory.

Files are decoded ahead by threads, in blocks; log-mel frames, windows and the cross-fade follow the stream, windows of
all files share full batches, and finished rows go to a temporary file at once. So neither a long recording nor a long
list of them is ever held as a whole, unless ``whole`` asks for one pass over each recording.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from ssamba.inference.dense.shifts import hop_frames, shifts_of
from ssamba.inference.embed import embed_segments, embedding_plan
from ssamba.inference.file_stream import FileStream, Progress, check_request
from ssamba.inference.model import Encoder
from ssamba.inference.outputs.file_names import PATHS, name_in_output
from ssamba.inference.outputs.provenance import provenance_of
from ssamba.inference.pooling import CLIP_POOLINGS, StreamPooling
from ssamba.inference.windows import Segment, cut_recordings
from ssamba.inference.writers import LEVELS, Spool, check_embedding_output, write_output
from ssamba.utils.device import device_memory
from ssamba.utils.errors import ConfigError, nearest
from ssamba.utils.lock import lock_output

"""How an output may name its files."""


@dataclass
class Report:
    """Summary of an embedding run.

    ``written`` files gave ``rows`` rows of ``width`` values; ``failures`` holds (path, reason) of those that could not
    be read; ``audio_seconds`` is the audio that went through the model.
    """

    width: int
    written: int = 0
    rows: int = 0
    audio_seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class EmbedOptions:
    """What to write of each recording. Raises ``ConfigError`` for a name that is none of its kind.

    ``level`` is clip (one row per file), frame (one per patch column) or patch (one per patch). ``whole`` reads long
    recordings in one pass. ``pooling``, of ``CLIP_POOLINGS``, makes the row of a clip. ``paths`` is how files are named
    in the output: as ``given``, ``absolute``, or ``relative`` to the output's folder. ``hop_ms`` is the distance of two
    frames in time (None: that of the patches); each of the passes that it takes adds to the mean of a clip.
    """

    level: str = "clip"
    whole: bool = False
    pooling: str = "mean"
    paths: str = "given"
    hop_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("level", self.level, LEVELS),
            ("pooling", self.pooling, tuple(CLIP_POOLINGS)),
            ("paths", self.paths, PATHS),
        ):
            if value not in known:
                raise ConfigError(f"{name} '{value}': choose one of {', '.join(known)}{nearest(value, list(known))}")

    def name_of(self, file: str, out: Path) -> str:
        """How ``file`` is named in the output ``out``. Raises ``ConfigError`` where there is no relative path."""
        return name_in_output(file, out, self.paths)


def embed_files(
    files: Sequence[str],
    model: Encoder,
    out: Path,
    level: str = "clip",
    whole: bool = False,
    batch: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    hop_ms: float | None = None,
) -> Report:
    """Embed audio files and write the result to ``out`` (.npz or .parquet; docs/embedding.md has the layouts).

    ``level``, ``whole`` and ``hop_ms`` are those of ``EmbedOptions``. ``batch`` is windows per pass (None: what suits
    the device), ``threads`` decode. Files that cannot be read are left out and reported. Rows equal ``model.embed`` of
    each whole recording but for rounding.

    Raises ``ConfigError`` for a bad level, batch or output name, ``DataError`` when no file can be read, and
    ``SsambaError`` when the output cannot be written; then nothing is left behind.
    """
    return write_embeddings(files, model, out, EmbedOptions(level, whole, hop_ms=hop_ms), batch, threads, progress)


def write_embeddings(
    files: Sequence[str],
    model: Encoder,
    out: Path,
    options: EmbedOptions,
    batch: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """``embed_files`` with all of its options in one value."""
    check_request(files, batch)
    check_embedding_output(out)
    with lock_output(out):
        return _write_locked(files, model, out, options, batch, threads, progress)


def _write_locked(
    files: Sequence[str],
    model: Encoder,
    out: Path,
    options: EmbedOptions,
    batch: int | None,
    threads: int | None,
    progress: Progress | None,
) -> Report:
    config = model.config
    shifts = shifts_of(options.hop_ms, config)
    rows, width = _Rows(options), config.width
    if options.level == "clip":
        width = CLIP_POOLINGS[options.pooling].values(config)
    frames = options.level == "frame"
    spool = Spool(out, width, config.grid[0] if options.level == "patch" else 1)
    fix = "shorter recordings, or no --whole" if options.whole else "a smaller --batch"
    with contextlib.closing(spool), device_memory(fix):
        with FileStream(files, threads, progress, config.sample_rate) as stream:
            plan = embedding_plan(config, options.whole)
            segments = cut_recordings(model, stream.recordings(), plan, stream.failed, shifts)
            for segment, columns_FTd in embed_segments(model, segments, batch, stream.failed, shifts, frames=frames):
                spool.append(segment.recording, rows.take(segment, columns_FTd).float().cpu().numpy())
        readable = stream.readable_files()
        names = [options.name_of(stream.files[i], out) for i in readable]
        kept = {name: value for name, value in asdict(options).items() if value is not None}
        provenance = provenance_of(model, "embedding", kept)
        write_output(spool, readable, names, options.level, config, provenance, hop_frames(shifts, config))
        written = spool.rows_of(readable)
        return Report(width, len(readable), written, stream.audio_seconds, stream.failures)


class _Rows:
    """Rows of the output from the columns of the files, at the level of the options."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._open: dict[int, StreamPooling] = {}

    def take(self, segment: Segment, columns_FTd: Tensor) -> Tensor:
        """The rows (n, values) that the next columns of a file give: (F, n, d), at the level frame (1, n, d)."""
        if self._options.level == "patch":
            return columns_FTd.transpose(0, 1).flatten(0, 1)
        if self._options.level == "frame":
            return columns_FTd[0]
        pooling = self._open.pop(segment.recording, None) or CLIP_POOLINGS[self._options.pooling]()
        pooling.add(columns_FTd)
        if segment.last:
            return pooling.result()[None]
        self._open[segment.recording] = pooling
        return columns_FTd.new_empty(0, 0)
