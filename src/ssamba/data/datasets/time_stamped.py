"""A user's recordings with labels that have times: clips of them, divided so that no label is on two sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.datasets.common import check_data, cross_validation
from ssamba.data.datasets.splits import SPLITS, stratified_folds, stratified_split
from ssamba.data.examples import Example, Fold, LabelledData, Part
from ssamba.data.labels.clips import LabelledClip, choose_clip_seconds, cut_clips, have_overlaps
from ssamba.data.labels.recordings import labelled_recordings

__all__ = ["read_time_stamped"]


def read_time_stamped(
    data: Path,
    labels: Path | None = None,
    seed: int = 0,
    multi_label: bool | None = None,
    folds: int = 1,
    seconds: float | None = None,
    background: str | None = None,
    keep_single: bool = False,
) -> LabelledData:
    """Recordings and the labels of people (docs/data.md, "Labels with times") as a labelled set of clips.

    Sides are divided by recording where each class is in enough of them, else by label: the clips of one label are
    never on two sides, and clips that share audio only where labels are too dense for anything else.

    Args:
        data, labels: as :func:`ssamba.data.labels.recordings.labelled_recordings` takes them.
        seed: of the division.
        multi_label: None takes the set for multi-label where labels of different names overlap.
        folds: parts for cross-validation; 1 gives one division of 80/10/10, 0 none: every clip is for training.
        seconds: of a clip; None chooses by the labels.
        background: class of the stretches without label; None leaves them out.
        keep_single: in cross-validation the only label of a class is always trained on, instead of refused; where
            no class has two, all are, and there is one fold without test clips.

    Raises:
        DataError: what is wrong with a label file, one line with file and line number, or as
            :func:`ssamba.data.datasets.common.check_data`.
    """
    recordings, found = labelled_recordings(data, labels)
    several = have_overlaps(recordings) if multi_label is None else multi_label
    events = [event for recording in recordings for event in recording.events]
    seconds = choose_clip_seconds(events) if seconds is None else seconds
    clips = cut_clips(recordings, seconds, background, several)
    classes = tuple(sorted({label for clip in clips for label in clip.labels}))
    numbers = {name: number for number, name in enumerate(classes)}
    examples = [_example(clip, numbers) for clip in clips]
    notes = [*found, f"{len(events)} labels in {len(recordings)} recordings give {len(clips)} clips of {seconds:g} s"]
    divided, note = _divide(clips, examples, seed, folds, keep_single)
    where = labels or data
    tested = folds > 0 and not (keep_single and not divided[0].test)
    return check_data(LabelledData("custom", classes, several, divided, (*notes, *note), True), where, tested=tested)


def _example(clip: LabelledClip, numbers: dict[str, int]) -> Example:
    part = Part(clip.path, clip.start, clip.seconds)
    return Example(clip.key, (part,), tuple(sorted(numbers[label] for label in clip.labels)))


def _divide(
    clips: Sequence[LabelledClip], examples: Sequence[Example], seed: int, folds: int, keep_single: bool
) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    """Folds, and notes on what was kept on one side."""
    if folds == 0:
        return (Fold("custom", tuple(examples), (), ()),), ()
    recordings_of: dict[int, set[str]] = {}
    for clip, example in zip(clips, examples, strict=True):
        for label in example.labels:
            recordings_of.setdefault(label, set()).add(clip.recording)
    fewest = min(map(len, recordings_of.values()))
    if fewest >= (2 if folds > 1 else 3):
        found = _folds([clip.recording for clip in clips], examples, seed, min(folds, fewest))
        if _complete(found, len(recordings_of)):
            return found, (f"no splits given: divided by recording (seed {seed}), folds: {len(found)}",)
    found = _folds(_clusters(clips), examples, seed, folds, keep_single)
    if not _complete(found, len(recordings_of)):
        names = [f"{c.recording} {c.event} {c.key * (c.event < 0)}" for c in clips]
        found = _folds(names, examples, seed, folds, keep_single)
    if not found[0].test and keep_single:
        return found, ("no class has two labels: all are trained on, and nothing is measured",)
    return found, (
        f"no splits given, and too few recordings of each class: divided by label (seed {seed}), folds: {len(found)}; "
        "clips that are tested come from recordings that are trained on, so scores are optimistic",
    )


def _clusters(clips: Sequence[LabelledClip]) -> list[str]:
    """A name for each clip, sorted by time: the same for those of one label and for those that share audio."""
    names: list[str] = []
    before, end = None, 0.0
    for clip in clips:
        linked = before is not None and clip.recording == before.recording
        if linked and before is not None and (clip.start < end - 1e-6 or clip.event == before.event >= 0):
            names.append(names[-1])
            end = max(end, clip.start + clip.seconds)
        else:
            names.append(clip.key)
            end = clip.start + clip.seconds
        before = clip
    return names


def _folds(
    groups: Sequence[str], examples: Sequence[Example], seed: int, folds: int, keep_single: bool = False
) -> tuple[Fold, ...]:
    """Examples divided by group, each group on one side; ``keep_single`` trains on the only group of a class."""
    members: dict[str, list[Example]] = {}
    for group, example in zip(groups, examples, strict=True):
        members.setdefault(group, []).append(example)
    whole = [Example(g, (), tuple(sorted({n for e in part for n in e.labels}))) for g, part in members.items()]

    def expand(chosen: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(example for group in chosen for example in members[group.key])

    if folds > 1 and not keep_single:
        parts = stratified_folds(whole, seed, folds)
        return cross_validation({name: expand(part) for name, part in parts.items()})
    if folds > 1:
        counts = Counter(label for group in whole for label in group.labels)
        held = [group for group in whole if all(counts[label] > 1 for label in group.labels)]
        always = expand([group for group in whole if any(counts[label] == 1 for label in group.labels)])
        if len(held) < 2:
            return (Fold("custom", tuple(examples), (), ()),)
        parts = stratified_folds(held, seed, min(folds, len(held)))
        divided = cross_validation({name: expand(part) for name, part in parts.items()})
        return tuple(Fold(fold.name, fold.train + always, (), fold.test) for fold in divided)
    splits = stratified_split(whole, seed)
    return (Fold("custom", *(expand(splits[split]) for split in SPLITS)),)


def _complete(folds: Sequence[Fold], classes: int) -> bool:
    """Whether each fold has every class to train on, and clips to test on."""
    return all(fold.test and len({n for e in fold.train for n in e.labels}) == classes for fold in folds)
