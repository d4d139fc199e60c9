"""``ssamba fit --labels``: the label files that fine-tuning reads, to events, and from these to the next fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.cli.main import main
from ssamba.data.labels.event import Event, RecordingEvents
from ssamba.data.labels.formats import LABEL_FORMATS, read_label_file
from ssamba.models.pretrained.model_dir import read_config
from ssamba.training.finetune.facts import read_data, timed_labels
from ssamba.training.finetune.recipe import load_finetune_recipe
from ssamba.training.fit.data import read_fit_data
from ssamba.training.fit.recipe import FitRecipe

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = {"audacity": "{}.txt", "raven": "{}.Table.1.selections.txt", "csv": "all.csv", "json": "all.json"}
NAMES |= {"jams": "{}.jams"}
RECORDINGS = 4


def events_of(number: int) -> tuple[Event, ...]:
    return tuple(Event(0.5 + 1.5 * i, 1.0 + 1.5 * i, ("high", "low")[(i + number) % 2]) for i in range(7))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 12 s of quiet noise with tones of two pitches, half a second each."""
    folder = tmp_path_factory.mktemp("field") / "recordings"
    folder.mkdir()
    for n in range(RECORDINGS):
        audio = np.random.default_rng(n).normal(0, 0.01, 12 * 16000)
        for event in events_of(n):
            t = np.arange(round(event.start * 16000), round(event.end * 16000))
            audio[t] += 0.3 * np.sin(2 * np.pi * {"high": 3000, "low": 300}[event.label] / 16000 * t)
        soundfile.write(folder / f"{n}.wav", audio.astype(np.float32), 16000)
    return folder


def write_labels(folder: Path, form: str, numbers: range) -> Path:
    """Label files of recordings in a format, as ``ssamba predict`` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [RecordingEvents(f"{n}.wav", 12.0, events_of(n)) for n in numbers]
    parts = [found] if form in ("csv", "json") else [[one] for one in found]
    for number, part in zip(numbers, parts, strict=False):
        text = LABEL_FORMATS[form].write(part)
        (folder / NAMES[form].format(number)).write_text(text, encoding="utf-8")
    return folder


def fit(recordings: Path, labels: Path, out: Path, *words: str) -> int:
    data = ["--data", str(recordings), "--labels", str(labels), "--out", str(out)]
    return main(["fit", *data, "--device", "cpu", *words])


@pytest.mark.parametrize("form", NAMES)
def test_the_whole_circle(form: str, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label two recordings, fit, write events of two others in the format, and fit on all four."""
    labels = write_labels(tmp_path / "labels", form, range(2))
    assert fit(recordings, labels, tmp_path / "first", "--background", "nothing") == 0
    told = capsys.readouterr()
    assert "note: 14 labels in 2 recordings give 28 clips of 0.5 s" in told.err
    assert "divided by recording (seed 0), folds: 2" in told.err
    assert read_config(tmp_path / "first").config.frames == 48
    counted = json.loads((tmp_path / "first" / "results.json").read_text())["counted"]
    assert counted["clips"] == 28
    assert counted["right"] >= 24
    others = [str(recordings / f"{n}.wav") for n in (2, 3)]
    words = ["predict", *others, "--model", str(tmp_path / "first"), "--device", "cpu", "--without", "nothing"]
    one_file = form in ("csv", "json")
    out = labels / f"found.{form}" if one_file else labels
    shape = ["--every", "0.25", "--min-seconds", "0.3"]
    assert main([*words, *shape, "--format", form, "--out", str(out)]) == 0
    ending = {"raven": ".selections.txt", "audacity": ".txt", "jams": ".jams"}.get(form, "")
    files = [out] if one_file else [labels / f"{n}{ending}" for n in (2, 3)]
    found = [row.event for file in files for row in read_label_file(file)]
    truth = [*events_of(2), *events_of(3)]
    hits = sum(any(f.label == e.label and f.start < e.end and e.start < f.end for f in found) for e in truth)
    assert hits >= 12
    assert fit(recordings, labels, tmp_path / "second", "--background", "nothing") == 0
    assert "in 4 recordings give" in capsys.readouterr().err
    assert json.loads((tmp_path / "second" / "results.json").read_text())["counted"]["clips"] >= 42


def test_clips_are_those_of_fine_tuning(recordings: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels", "audacity", range(RECORDINGS))
    recipe = load_finetune_recipe("custom", {"folds": 4})
    _, tuned = read_data(recipe, recordings, timed_labels(recipe, labels, "nothing"))
    fitted = read_fit_data(FitRecipe(folds=4), recordings, labels, "nothing")
    assert tuned == fitted


def test_labels_next_to_recordings_are_all_trained_on(recordings: Path, tmp_path: Path) -> None:
    """Each clip is a test clip once, and recordings are on one side."""
    folder = tmp_path / "field"
    write_labels(folder, "audacity", range(RECORDINGS))
    for path in recordings.iterdir():
        (folder / path.name).symlink_to(path)
    data = read_fit_data(FitRecipe(), folder)
    assert sorted(e.key for fold in data.folds for e in fold.test) == sorted(
        e.key for e in (*data.folds[0].train, *data.folds[0].test)
    )
    assert len({e.key for fold in data.folds for e in fold.test}) == 28
    for fold in data.folds:
        assert not {e.key.split("@")[0] for e in fold.train} & {e.key.split("@")[0] for e in fold.test}


def test_the_only_label_of_a_class_is_trained_on(recordings: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    rows = [(e.start, e.end, e.label) for e in events_of(0)]
    rows[6] = (*rows[6][:2], "odd")
    (labels / "0.txt").write_text("".join(f"{a}\t{b}\t{name}\n" for a, b, name in rows))
    data = read_fit_data(FitRecipe(), recordings, labels)
    odd = data.classes.index("odd")
    assert all(odd in {n for e in fold.train for n in e.labels} for fold in data.folds)
    assert len({e.key for fold in data.folds for e in fold.test}) == 6
    (labels / "0.txt").write_text("0.5\t1\thigh\n2\t2.5\tlow\n")
    assert fit(recordings, labels, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["folds"] == []


def test_mistakes(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "labels"
    bad.mkdir()
    (bad / "0.txt").write_text("0.5\t1\thigh\n2\t99\tlow\n")
    for labels, words, message in (
        (bad, (), "0.txt: line 2: the label 'low' lasts from 2 to 99 s"),
        (tmp_path / "none", (), "none: no such file or folder; give the labels"),
        (bad, ("--layout", "esc10"), "labels with times go with the recipe custom; esc10 has its own"),
    ):
        assert fit(recordings, labels, tmp_path / "run", *words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
    assert not (tmp_path / "run").exists()
