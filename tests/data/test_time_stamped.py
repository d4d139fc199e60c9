"""Recordings with label files: which belongs to which, the clips that are cut, the sides that they fall on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.audio.decode import read_audio
from ssamba.data.datasets import read_layout
from ssamba.data.examples import Example, LabelledData
from ssamba.data.labels.clips import choose_clip_seconds, cut_clips
from ssamba.data.labels.event import Event
from ssamba.data.labels.recordings import LabelledRecording, labelled_recordings
from ssamba.data.loaders.labelled import LabelledLoader
from ssamba.data.samplers.labelled import EvaluationPlan
from ssamba.utils.errors import DataError

RATE = 16000


def recording(path: Path, seconds: float = 10.0, rate: int = RATE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)
    soundfile.write(path, noise, rate)
    return path


def label(path: Path, *rows: tuple[float, float, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{start}\t{end}\t{name}\n" for start, end, name in rows))
    return path


def examples(data: LabelledData) -> list[Example]:
    fold = data.folds[0]
    return sorted([*fold.train, *fold.validation, *fold.test], key=lambda e: e.key)


def cut(*events: Event, seconds: float | None = 1.0, length: float = 10.0, background: str | None = None) -> list:
    ordered = tuple(sorted(events, key=lambda e: (e.start, e.end, e.label)))
    clips = cut_clips([LabelledRecording("a.wav", "a.wav", length, ordered)], seconds, background)
    return [(c.start, c.seconds, c.labels) for c in clips]


@pytest.mark.parametrize(
    "name", ["a.txt", "a.wav.txt", "a.Table.1.selections.txt", "sub/a.txt", "elsewhere/a.BirdNET.txt"]
)
def test_a_label_file_is_named_as_its_recording(name: str, tmp_path: Path) -> None:
    recording(tmp_path / "r" / "sub" / "a.wav")
    recording(tmp_path / "r" / "b.wav")
    label(tmp_path / "l" / name, (1, 2, "dog"))
    (found,), notes = labelled_recordings(tmp_path / "r", tmp_path / "l")
    assert (found.key, found.seconds, found.events) == ("sub/a.wav", 10.0, (Event(1.0, 2.0, "dog"),))
    assert notes == ["1 of 2 recordings have no labels and are left out, the first: b.wav"]


def test_the_folder_decides_between_recordings_of_one_name(tmp_path: Path) -> None:
    for place in ("x", "y"):
        recording(tmp_path / "r" / place / "a.wav")
        label(tmp_path / "l" / place / "a.txt", (1, 2, place))
    found, _ = labelled_recordings(tmp_path / "r", tmp_path / "l")
    assert [(r.key, r.events[0].label) for r in found] == [("x/a.wav", "x"), ("y/a.wav", "y")]
    label(tmp_path / "flat" / "a.txt", (1, 2, "dog"))
    with pytest.raises(DataError, match=r"flat.a.txt: a may be x/a.wav or y/a.wav; give its path"):
        labelled_recordings(tmp_path / "r", tmp_path / "flat")


def test_labels_lie_next_to_the_recordings(tmp_path: Path) -> None:
    recording(tmp_path / "a.wav")
    label(tmp_path / "a.txt", (1, 2, "dog"), (4, 5, "hen"), (6, 7, "dog"), (8, 9, "hen"))
    (tmp_path / "notes.txt").write_text("by the river")
    data = read_layout("custom", tmp_path)
    assert data.classes == ("dog", "hen")
    assert [e.key for e in examples(data)] == [f"a.wav@{s}.010-{s}.990" for s in (1, 4, 6, 8)]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a.wav lies in no class's folder"):
        read_layout("custom", tmp_path)


def test_class_folders_stay_class_folders_and_a_note_says_so(tmp_path: Path) -> None:
    for n in range(4):
        recording(tmp_path / "dog" / f"a{n}.wav", 1)
        recording(tmp_path / "hen" / f"b{n}.wav", 1)
    label(tmp_path / "dog" / "a0.txt", (0, 1, "x"), (0.2, 0.7, "y"))
    data = read_layout("custom", tmp_path)
    assert data.classes == ("dog", "hen")
    assert data.notes[-1].endswith(f"a0.txt has labels with times: give --labels {tmp_path} to take those")
    assert read_layout("custom", tmp_path, labels=tmp_path).classes == ("x", "y")


@pytest.mark.parametrize("name", ["all.csv", "labels.csv", "list.json"])
def test_a_file_whose_rows_name_the_recordings(name: str, tmp_path: Path) -> None:
    for n in range(3):
        recording(tmp_path / "audio" / f"{n}.wav")
    rows = [(f"audio/{n}.wav", 1.5 + s, 2.5 + s, ("dog", "hen")[s % 2]) for n in range(3) for s in range(4)]
    if name.endswith(".csv"):
        text = "path,start,end,label\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    else:
        content = [{"path": p, "events": [{"start": s, "end": e, "label": w}]} for p, s, e, w in rows]
        text = json.dumps({"files": content})
    (tmp_path / name).write_text(text)
    data = read_layout("custom", tmp_path if name == "labels.csv" else tmp_path / name)
    assert (data.classes, data.multi_label, len(examples(data))) == (("dog", "hen"), False, 12)
    assert examples(data)[0].key == "audio/0.wav@1.510-2.490"


def test_a_table_with_folds_has_whole_files_as_ever(tmp_path: Path) -> None:
    for n in range(4):
        recording(tmp_path / f"{n}.wav", 1)
    rows = "".join(f"{n}.wav,30,31,{n % 2 + 1},{('dog', 'hen')[n // 2]}\n" for n in range(4))
    (tmp_path / "meta.csv").write_text("path,start,end,fold,class\n" + rows)
    data = read_layout("custom", tmp_path)
    assert [part.seconds for fold in data.folds for e in fold.train for part in e.parts] == [None] * 4


def test_the_clip_is_as_long_as_the_median_label() -> None:
    def chosen(*lengths: float) -> float:
        return choose_clip_seconds([Event(0.0, length, "x") for length in lengths])

    assert chosen(0.9, 1.0, 7.0) == 0.98
    assert chosen(0.0, 0.0) == 0.98
    assert (chosen(0.01), chosen(100.0)) == (0.34, 10.26)
    assert chosen(5.0) == 4.98


def test_short_and_long_labels() -> None:
    assert cut(Event(3.0, 3.4, "dog")) == [(2.7, 1.0, ("dog",))]
    assert cut(Event(0.0, 0.4, "dog"), Event(9.8, 10.0, "dog")) == [(0.0, 1.0, ("dog",)), (9.0, 1.0, ("dog",))]
    assert cut(Event(2.0, 3.4, "dog")) == [(2.2, 1.0, ("dog",))]
    assert cut(Event(2.0, 4.6, "dog")) == [(s, 1.0, ("dog",)) for s in (2.0, 2.8, 3.6)]
    assert cut(Event(0.2, 0.3, "dog"), length=0.6) == [(0.0, 0.6, ("dog",))]
    assert cut(Event(5.0, 5.0, "dog")) == [(4.5, 1.0, ("dog",))]


def test_a_single_label_clip_ends_where_another_label_begins() -> None:
    assert cut(Event(2.0, 2.6, "dog"), Event(2.7, 3.3, "hen")) == [(1.7, 1.0, ("dog",)), (2.6, 1.0, ("hen",))]
    assert cut(Event(2.0, 2.6, "dog"), Event(2.6, 3.0, "hen"), Event(3.0, 3.6, "dog")) == [
        (1.6, 1.0, ("dog",)),
        (2.6, 0.4, ("hen",)),
        (3.0, 1.0, ("dog",)),
    ]
    # A touch of 0.1 s is none.
    assert {labels for _, _, labels in cut(Event(2.0, 3.0, "dog"), Event(2.9, 3.9, "hen"))} == {("dog",), ("hen",)}


def test_labels_at_one_time_give_several_labels() -> None:
    clips = cut(Event(2.0, 5.0, "rain"), Event(3.2, 3.8, "hen"), Event(7.0, 8.0, "hen"))
    assert clips == [
        (2.0, 1.0, ("rain",)),
        (3.0, 1.0, ("hen", "rain")),
        (4.0, 1.0, ("rain",)),
        (7.0, 1.0, ("hen",)),
    ]
    assert (4.5, 1.0, ("click", "rain")) in cut(Event(2.0, 6.0, "rain"), Event(5.0, 5.0, "click"))


def test_background_is_what_has_no_label_and_no_more_than_that() -> None:
    found = cut(Event(2.0, 3.0, "dog"), Event(4.5, 5.5, "hen"), background="nothing", length=7.0)
    assert [c for c in found if c[2] == ("nothing",)] == [(0.0, 1.0, ("nothing",)), (3.0, 1.0, ("nothing",))]
    quiet = [c for c in cut(Event(2.0, 3.0, "dog"), background="nothing", length=3600.0) if c[2] == ("nothing",)]
    assert len(quiet) == 1


@pytest.mark.parametrize(("cache", "tolerance"), [(0, 1e-6), (10**7, 1e-4)])
def test_clips_hold_exactly_the_samples_of_the_recording(tmp_path: Path, cache: int, tolerance: float) -> None:
    for name, rate in (("a.wav", RATE), ("b.flac", 44100)):
        recording(tmp_path / "r" / name, 70, rate)
    names = ("dog", "hen")
    for n, stem in enumerate("ab"):
        label(tmp_path / "l" / f"{stem}.txt", *((s, s + 0.7, names[(n + s) % 2]) for s in (0, 12, 31, 45, 60, 69)))
    data = read_layout("custom", tmp_path / "r", labels=tmp_path / "l")
    found = examples(data)
    assert len(found) == 12
    loader = LabelledLoader(EvaluationPlan(found, 4), 2, workers=0, cache_bytes=cache)
    seen = 0
    for batch in loader:
        for waveform, length, number in zip(batch.waveforms, batch.lengths, batch.examples, strict=True):
            (part,) = found[number].parts
            assert part.seconds is not None
            whole = read_audio(part.path)
            first = round(part.start * RATE)
            expected = whole[first : first + round(part.seconds * RATE)]
            np.testing.assert_allclose(waveform[:length].numpy(), expected, atol=tolerance)
            assert length == len(expected) == round(part.seconds * RATE)
            seen += 1
    assert seen == 12


def test_no_recording_or_label_is_on_two_sides(tmp_path: Path) -> None:
    for n in range(5):
        recording(tmp_path / "r" / f"{n}.wav", 20)
        label(tmp_path / "l" / f"{n}.txt", (1, 2, "dog"), (4, 9, "hen"), (11, 12, "hen"), (13, 19, "dog"))
    data = read_layout("custom", tmp_path / "r", labels=tmp_path / "l", folds=5)
    assert len(data.folds) == 5
    for fold in data.folds:
        sides = [{part.path for e in side for part in e.parts} for side in (fold.train, fold.test)]
        assert not sides[0] & sides[1]
    assert "divided by recording" in data.notes[-1]
    for n in range(1, 5):
        (tmp_path / "l" / f"{n}.txt").unlink()
    label(
        tmp_path / "l" / "0.txt", *((s, s + 1.5, ("dog", "hen")[s // 4 % 2]) for s in range(0, 17, 4)), (17, 20, "hen")
    )
    data = read_layout("custom", tmp_path / "r", labels=tmp_path / "l", folds=2, seconds=0.5)
    assert "divided by label" in data.notes[-1]
    for fold in data.folds:
        starts = [{int(e.parts[0].start) // 4 for e in side} for side in (fold.train, fold.test)]
        assert starts[0] | starts[1] == {0, 1, 2, 3, 4}
        assert not starts[0] & starts[1]


def test_clips_that_share_audio_are_on_one_side(tmp_path: Path) -> None:
    recording(tmp_path / "a.wav", 40)
    rows = [(s, s + 1, "dog") for s in range(1, 38, 4)] + [(s + 0.5, s + 1.5, "hen") for s in range(1, 38, 4)]
    label(tmp_path / "a.txt", *rows)
    data = read_layout("custom", tmp_path, folds=3)
    assert data.multi_label
    for fold in data.folds:
        spans = [
            [(e.parts[0].start, e.parts[0].start + (e.parts[0].seconds or 0)) for e in s]
            for s in (fold.train, fold.test)
        ]
        assert spans[0]
        assert not [a for a in spans[0] for b in spans[1] if a[0] < b[1] and b[0] < a[1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 2, "dog"), (9, 10.2, "hen")], "line 2: the label 'hen' lasts from 9 to 10.2 s, but"),
        ([(1, 2, "dog"), (12, 13, "hen")], "ends at 10 s; correct the times"),
        ([(3, 2, "dog")], "line 1: the label 'dog' ends at 2 s, before"),
        ([(1, 2, "dog"), (3, 4, "dog")], "1 class only (dog); a classifier needs two or more"),
        ([], "no labels for the recordings of"),
    ],
)
def test_one_line_for_labels_that_do_not_fit(
    rows: list[tuple[float, float, str]], message: str, tmp_path: Path
) -> None:
    recording(tmp_path / "r" / "a.wav")
    label(tmp_path / "l" / "a.txt", *rows)
    with pytest.raises(DataError) as error:
        read_layout("custom", tmp_path / "r", labels=tmp_path / "l")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_label_may_end_a_little_late(tmp_path: Path) -> None:
    recording(tmp_path / "a.wav")
    label(tmp_path / "a.txt", (9, 10.08, "dog"))
    (found,), _ = labelled_recordings(tmp_path)
    assert found.events == (Event(9.0, 10.0, "dog"),)


def test_one_line_for_recordings_that_are_not_there(tmp_path: Path) -> None:
    recording(tmp_path / "r" / "marsh-01.wav")
    recording(tmp_path / "r" / "b.wav")
    stray = label(tmp_path / "l" / "marsh-02.txt", (1, 2, "dog"))
    with pytest.raises(DataError, match=r"marsh-02.txt: no recording marsh-02 in .*, did you mean 'marsh-01"):
        labelled_recordings(tmp_path / "r", tmp_path / "l")
    stray.unlink()
    with pytest.raises(DataError, match="no label files in this folder or below"):
        labelled_recordings(tmp_path / "r", tmp_path / "l")
    (tmp_path / "x.csv").write_text("path,start,end,label\nb.wav,1,2,dog\nc.wav,1,2,dog\n")
    with pytest.raises(DataError, match=r"x.csv: line 3: no recording c.wav in "):
        labelled_recordings(tmp_path / "r", tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"x.csv: line 2: no recording .*b.wav; paths are relative to the file"):
        labelled_recordings(tmp_path / "x.csv")
    label(tmp_path / "two" / "b.txt", (1, 2, "dog"))
    label(tmp_path / "two" / "b.selections.txt", (1, 2, "dog"))
    with pytest.raises(DataError, match=r"b.txt: b.wav has labels in .*b.selections.txt already; remove one"):
        labelled_recordings(tmp_path / "r", tmp_path / "two")
    (tmp_path / "r" / "b.wav").write_text("no audio")
    label(tmp_path / "ok" / "b.txt", (1, 2, "dog"))
    label(tmp_path / "ok" / "marsh-01.txt", (1, 2, "dog"))
    found, notes = labelled_recordings(tmp_path / "r", tmp_path / "ok")
    assert [r.key for r in found] == ["marsh-01.wav"]
    assert notes[0].startswith(f"left out with its labels: {tmp_path / 'r' / 'b.wav'}: ")


def test_one_recording_and_a_label_file_of_any_name(tmp_path: Path) -> None:
    path = recording(tmp_path / "r" / "a.wav")
    recording(tmp_path / "r" / "b.wav")
    for place in (tmp_path, tmp_path / "r"):
        (found,), _ = labelled_recordings(path, label(place / "Label Track.txt", (1, 2, "dog")))
    assert (found.key, found.events) == ("a.wav", (Event(1.0, 2.0, "dog"),))
