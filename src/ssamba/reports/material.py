"""What the sections of a report are made of: the run, its predictions and recordings, embeddings and excerpts."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssamba.data.loaders.read_example import read_example
from ssamba.evaluation.probe.probe import ProgressBars
from ssamba.inference.load import load
from ssamba.inference.model import Encoder
from ssamba.inference.search.query import Index
from ssamba.reports.clips import ClipStore, PageClip, loudest_stretch, seconds_each
from ssamba.reports.recordings import Recordings, RunRecording, evenly
from ssamba.reports.runs import INDEX, PRETRAINING, PROBE, Run, damaged
from ssamba.training.finetune.report import CLASSES_FILE, PREDICTIONS_FILE
from ssamba.utils.errors import AudioError, CheckpointError
from ssamba.utils.files import read_text

PLAYED_SECONDS = 30.0
"""Most of a recording that is embedded for the map."""
LISTED_MISTAKES = 24
"""Clips with the most confident wrong classes, which are listed."""


@dataclass(frozen=True)
class ClipPrediction:
    """A row of predictions.csv: a test clip, its class, the predicted one and that one's score."""

    fold: str
    clip: str
    label: str
    predicted: str
    score: float

    @property
    def wrong(self) -> bool:
        """Whether another class was predicted."""
        return self.label != self.predicted


@dataclass
class ReadClip:
    """A recording of the page: its number among the clips, and its embedding (d,), None where it was not embedded."""

    recording: RunRecording
    number: int
    embedding: npt.NDArray[np.float32] | None = None


@dataclass
class Material:
    """Everything a report is made of.

    Attributes:
        run: the folder.
        recordings: what could be found of its data.
        store: the clips and excerpts of the page.
        clips: how many recordings are read at most.
        device: where models run.
        bars: makes progress bars.
        index: of an index's report.
        read: recordings that were read, in order of importance.
        seconds: length of their excerpts.
    """

    run: Run
    recordings: Recordings
    store: ClipStore
    clips: int
    device: str
    bars: ProgressBars
    index: Index | None = None
    read: list[ReadClip] = field(default_factory=list)
    seconds: float = 0.0

    @cached_property
    def model(self) -> Encoder:
        """The run's model, with pretraining heads where it has them."""
        return load(self.run.folder, self.device, heads=self.run.kind == PRETRAINING)

    @cached_property
    def predictions(self) -> list[ClipPrediction]:
        """Rows of predictions.csv; none where there is no such file."""
        return read_predictions(self.run.folder / PREDICTIONS_FILE)

    @cached_property
    def class_scores(self) -> dict[str, dict[str, float]]:
        """classes.csv: class -> column -> value, NaN where there is none."""
        path = self.run.folder / CLASSES_FILE
        if not path.exists():
            return {}
        rows = read_rows(path)
        try:
            return {
                row["class"]: {k: float(v) if v else math.nan for k, v in row.items() if k != "class"} for row in rows
            }
        except (KeyError, TypeError, ValueError) as problem:
            raise damaged(path, problem) from None

    @property
    def mistakes(self) -> list[ClipPrediction]:
        """Wrong predictions, the surest first."""
        return sorted((p for p in self.predictions if p.wrong), key=lambda p: (-p.score, p.clip))

    def _wanted(self, first: Sequence[str]) -> list[RunRecording]:
        """The recordings to read, the most important before others."""
        items = self.recordings.by_name()
        wanted = [items[name] for name in (*first, *(p.clip for p in self.mistakes)) if name in items][: self.clips]
        names = {item.name for item in wanted}
        rest = [item for item in self.recordings.items if item.name not in names]
        held = [item for item in rest if item.held_out] if self.run.kind == PRETRAINING else []
        wanted += evenly(held, min(len(held), (self.clips - len(wanted)) // 2))
        names = {item.name for item in wanted}
        return wanted + evenly((r for r in rest if r.name not in names), self.clips - len(wanted))

    def read_clips(self, first: Sequence[str] = ()) -> None:
        """Read, embed and compress the recordings of the page: those named, wrongly classified ones, then others."""
        wanted = self._wanted(first)
        self.seconds = seconds_each(len(wanted), self.store.limit)
        said = {p.clip: p for p in self.predictions}
        embeds = self.run.has_model
        if not wanted or not (embeds or (self.store.players and self.run.kind in (INDEX, PROBE))):
            return
        with self.bars("reading recordings") as progress:
            for done, recording in enumerate(wanted):
                number = self.store.add(self._page_clip(recording, said.get(recording.name)))
                clip = ReadClip(recording, number)
                self._read(clip, embeds)
                self.read.append(clip)
                progress(done + 1, len(wanted), f"{done + 1}/{len(wanted)} recordings")

    def _page_clip(self, recording: RunRecording, said: ClipPrediction | None) -> PageClip:
        if said is None:
            return PageClip(recording.name, ", ".join(recording.labels) or recording.group)
        return PageClip(recording.name, said.label, said.predicted, round(said.score, 4))

    def _read(self, clip: ReadClip, embeds: bool) -> None:
        """Embedding and excerpt of a recording; neither of one that cannot be read."""
        rate = self.model.config.sample_rate if embeds else 16_000
        try:
            waveform = read_example(clip.recording.example, 0.0, PLAYED_SECONDS, sample_rate=rate)
            if embeds:
                clip.embedding = self.model.embed(waveform, rate).clip[0].float().cpu().numpy()
        except AudioError:
            return
        begin = loudest_stretch(waveform, rate, self.seconds)
        self.store.put_audio(clip.number, waveform[begin : begin + round(self.seconds * rate)], rate, begin / rate)

    def number_of(self, name: str) -> int | None:
        """The page's number of a recording that was read, by its name."""
        return self._numbers.get(name)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {clip.recording.name: clip.number for clip in self.read}


def read_predictions(path: Path) -> list[ClipPrediction]:
    """Rows of predictions.csv, none without the file. Raises ``CheckpointError`` for a damaged one."""
    if not path.exists():
        return []
    try:
        found = [
            ClipPrediction(row["fold"], row["clip"], row["class"], row["predicted"], float(row["score"]))
            for row in read_rows(path)
        ]
    except (KeyError, TypeError, ValueError) as problem:
        raise damaged(path, problem) from None
    if not all(0 <= row.score <= 1 for row in found):
        raise damaged(path, "a score beyond 0 to 1")
    return found


def read_rows(path: Path) -> Sequence[dict[str, str]]:
    """The rows of a CSV that a run wrote. Raises ``CheckpointError``."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, error=CheckpointError), newline="")))
    except csv.Error as problem:
        raise damaged(path, problem) from None
    if any(None in row or None in row.values() for row in rows):
        raise damaged(path, "a row of more or fewer values than columns")
    return rows
