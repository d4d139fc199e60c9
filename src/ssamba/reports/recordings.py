"""The recordings of a run, found again: only files that the run names, and only as long as they hold what they held.

A run has one digest of the names and lengths of its files and one of their content, for all of them together. Where one
differs none of them is read. An index has the size and the time of change of each file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssamba.data.examples import Example, LabelledData, Part
from ssamba.data.manifest import Clip, read_sources, split_weight
from ssamba.data.scan import SkipList
from ssamba.inference.search import store
from ssamba.inference.search.query import Index
from ssamba.reports.runs import FINETUNING, FIT, INDEX, PRETRAINING, PROBE, Run, damaged
from ssamba.training.finetune.facts import read_data, timed_labels
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.finetune.resolve import data_files, fingerprint
from ssamba.training.fit.data import read_fit_data
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.pretrain.data import PretrainData, prepare_data
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.training.pretrain.run import pretraining_files
from ssamba.training.resume.content import content_digest
from ssamba.training.run_folder import RECIPE_FILE
from ssamba.utils.errors import DataError, SsambaError

MAX_FILES = 50_000
"""Files of a set that are looked at again; of larger ones the page has no recordings."""
MAX_GROUPS = 24
"""Groups of recordings that a map tells apart."""
HELD_OUT, TRAINED_ON = "held out", "trained on"


@dataclass(frozen=True)
class RunRecording:
    """A recording of a run: its name in reports, its stretches of files, its classes, the group that a map gives it."""

    name: str
    example: Example
    labels: tuple[str, ...] = ()
    group: str = ""
    held_out: bool = False

    @property
    def path(self) -> str:
        """The first file that it is made of."""
        return self.example.parts[0].path


@dataclass(frozen=True)
class Recordings:
    """What could be found. ``problem`` says in a line why there are none, ``data`` is the labelled set."""

    items: tuple[RunRecording, ...] = ()
    problem: str = ""
    data: LabelledData | None = None
    hours: float = 0.0

    def by_name(self) -> dict[str, RunRecording]:
        """Recordings by their names in reports."""
        return {item.name: item for item in self.items}


def find_recordings(run: Run, moved: Path | None, index: Index | None = None) -> Recordings:
    """The recordings of a run. ``moved`` is where its data lies now, None where the run says.

    Raises ``DataError`` for a folder ``moved`` that does not hold them.
    """
    try:
        if run.kind == INDEX:
            assert index is not None
            return _of_index(index, moved)
        if run.kind == PROBE:
            return _of_probe(run, moved)
        if run.kind == PRETRAINING:
            return _of_pretraining(run, moved)
        return _of_labelled(run, moved)
    except SsambaError as problem:
        if moved is not None:
            raise
        return Recordings(problem=f"{problem} (the recordings can be given with --data FOLDER)")


def _of_labelled(run: Run, moved: Path | None) -> Recordings:
    root = moved or Path(_one(run))
    found: SsambaError | None = None
    for read in _readings(run, root):
        try:
            data = read()
        except SsambaError as problem:
            found = found or problem
            continue
        if fingerprint(data) == run.plan:
            _check_content(run, data_files(data), root)
            return Recordings(_labelled(data), data=data)
    if found is not None:
        raise found
    raise DataError(f"{root}: does not hold the run's recordings (other names, classes, labels or folds)")


def _readings(run: Run, root: Path) -> list[Any]:
    """Ways to read the set: as the run's values say, then with label files that lie next to the recordings."""
    try:
        if run.kind == FIT:
            fit = FitRecipe(**run.recipe)
            return [lambda: read_fit_data(fit, root)]
        tuned = FinetuneRecipe(**run.recipe)
    except TypeError as problem:
        raise damaged(run.folder / RECIPE_FILE, problem) from None
    assert run.kind == FINETUNING
    ways = [lambda: read_data(tuned, root, timed_labels(tuned, None, None))[1]]
    if tuned.layout == "custom":
        ways.append(lambda: read_data(tuned, root, timed_labels(tuned, root, None))[1])
    return ways


def _labelled(data: LabelledData) -> tuple[RunRecording, ...]:
    found: dict[str, RunRecording] = {}
    for fold in data.folds:
        tested = {example.key for example in fold.test}
        for example in (*fold.train, *fold.validation, *fold.test):
            names = tuple(data.classes[label] for label in _classes_of(example))
            before = found.get(example.key)
            held = example.key in tested or (before is not None and before.held_out)
            found[example.key] = RunRecording(example.key, example, names, names[0] if len(names) == 1 else "", held)
    several = {r.group for r in found.values()} == {""}
    return tuple(
        RunRecording(
            r.name, r.example, r.labels, r.group or (r.labels[0] if several and r.labels else "several"), r.held_out
        )
        for r in found.values()
    )


def _classes_of(example: Example) -> Sequence[int]:
    return example.labels or sorted({label for label in example.per_second or () if label >= 0})


def _of_pretraining(run: Run, moved: Path | None) -> Recordings:
    try:
        recipe = PretrainRecipe(**run.recipe)
    except TypeError as problem:
        raise damaged(run.folder / RECIPE_FILE, problem) from None
    sources = read_sources(_moved(run.data, moved) if moved is not None else list(run.data))
    count = sum(len(source.clips) for source in sources)
    if count > MAX_FILES:
        return Recordings(problem=f"{count:,} files, of at most {MAX_FILES:,} the recordings are looked at again")
    data = prepare_data(sources, recipe, SkipList())
    place = moved or Path(run.data[0])
    if data.plan.fingerprint != run.plan:
        raise DataError(f"{place}: does not hold the run's recordings (files came, went or have another length)")
    _check_content(run, pretraining_files(data), place)
    held = {clip.path for clip in data.held_out}
    clips = [*data.held_out, *(c for source in data.training for c in source.clips if c.path not in held)]
    hours = sum(clip.seconds or 0.0 for clip in clips) / 3600
    return Recordings(_unlabelled(clips, data), hours=hours)


def _unlabelled(clips: Sequence[Clip], data: PretrainData) -> tuple[RunRecording, ...]:
    held = {clip.path for clip in data.held_out}
    named = {clip.path: clip.labels[0] for clip in clips if len(clip.labels) == 1}
    several = len(named) == len(clips) and 2 <= len(set(named.values())) <= MAX_GROUPS
    groups = named if several else _groups([clip.path for clip in clips])
    return tuple(
        RunRecording(
            clip.key or os.path.basename(clip.path),
            Example(clip.key, (Part(clip.path),)),
            clip.labels,
            group=groups[clip.path] or (HELD_OUT if clip.path in held else TRAINED_ON),
            held_out=clip.path in held,
        )
        for clip in clips
    )


def _groups(paths: Sequence[str]) -> dict[str, str]:
    """The folder of each file below what all have in common, where there are 2 to ``MAX_GROUPS``; else none."""
    common = os.path.commonpath([os.path.dirname(p) for p in paths]) if paths else ""
    found = {p: os.path.relpath(os.path.dirname(p), common).split(os.sep)[0] for p in paths}
    return found if 2 <= len(set(found.values())) <= MAX_GROUPS else dict.fromkeys(paths, "")


def _moved(data: Sequence[str], moved: Path) -> list[str]:
    """The run's DATA with another place: one folder or file as a whole; of several, those of their names in it."""
    if len(data) == 1:
        weight = data[0][len(split_weight(data[0])[0]) :]
        return [f"{moved}{weight}"]
    places = [split_weight(spec) for spec in data]
    return [f"{moved / Path(path).name}{spec[len(path) :]}" for spec, (path, _) in zip(data, places, strict=True)]


def _of_probe(run: Run, moved: Path | None) -> Recordings:
    if moved is None:
        return Recordings(problem="a probe does not record where its data lies; give --data FOLDER for the recordings")
    from ssamba.data.datasets import read_layout

    assert run.results is not None
    data = read_layout(str(run.results["layout"]), moved)
    items = _labelled(data)
    if len(items) != run.results.get("examples") or len(data.classes) != run.results.get("classes"):
        raise DataError(f"{moved}: does not hold the probe's recordings ({len(items)} of {len(data.classes)} classes)")
    return Recordings(items, data=data)


def _of_index(index: Index, moved: Path | None) -> Recordings:
    entries = [
        (store.resolve(index.folder, index.header, block.entries[n].path), block.entries[n])
        for block in (store.open_block(index.folder, index.header, info) for info in index.header.blocks)
        for n in block.kept
    ]
    places = _index_places([path for path, _ in entries], moved)
    items, gone = [], 0
    for (path, entry), place in zip(entries, places, strict=True):
        if _is_same(place, entry, moved is not None):
            items.append(RunRecording(path, Example(path, (Part(place),))))
        else:
            gone += 1
    if moved is not None and not items:
        raise DataError(f"{moved}: holds no recording of the index (other names or sizes)")
    groups = _groups([path for path, _ in entries])
    hours = sum(entry.seconds for _, entry in entries) / 3600
    named = tuple(RunRecording(r.name, r.example, group=groups[r.name]) for r in items)
    problem = f"{gone:,} of {len(entries):,} recordings moved or changed since; ssamba index brings it up to date"
    return Recordings(named, problem if gone else "", hours=hours)


def _index_places(paths: Sequence[str], moved: Path | None) -> list[str]:
    if moved is None or not paths:
        return list(paths)
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.join(moved, os.path.relpath(path, common)) for path in paths]


def _is_same(path: str, entry: store.FileEntry, copied: bool) -> bool:
    """Whether a file is the one of the index; of copied ones the size is compared, since their times are new."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size == entry.size if copied else entry.same_file(status)


def _check_content(run: Run, files: Mapping[str, str], place: Path) -> None:
    if len(files) > MAX_FILES:
        raise DataError(f"{place}: {len(files):,} files, of at most {MAX_FILES:,} the recordings are looked at again")
    if run.content and content_digest(files) != run.content:
        raise DataError(f"{place}: a recording changed since the run (same names, other content)")


def _one(run: Run) -> str:
    if len(run.data) != 1:
        raise damaged(run.folder / RECIPE_FILE, "it names no data set")
    return run.data[0]


def evenly(items: Iterable[RunRecording], count: int) -> list[RunRecording]:
    """At most ``count`` of the recordings, evenly chosen."""
    every = list(items)
    if len(every) <= count:
        return every
    return [every[i * len(every) // count] for i in range(count)]
