"""predict --events: the events of the arrays in each format, which names files get, and what goes wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.audio.decode import read_audio
from ssamba.cli import main
from ssamba.cli.commands.recordings import predict
from ssamba.data.labels.formats import LABEL_FORMATS, read_label_file
from ssamba.inference.events.write import recording_names
from ssamba.inference.model import make_encoder
from ssamba.inference.predict import default_every
from ssamba.inference.predict_files import load_classifier
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("rain, light", "dog", "Glocke ä")
OPTIONS = {"threshold": 0.35, "low": 0.33, "min_seconds": 0.5, "merge_gap": 0.25}
WORDS = ("--threshold", "0.35", "--low", "0.33", "--min-seconds", "0.5", "--merge-gap", "0.25")
FILES = ("one/a.wav", "one/b.wav", "two/a.flac")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio")
    for number, name in enumerate(FILES):
        (path / name).parent.mkdir(exist_ok=True)
        rng = np.random.default_rng(number)
        loud = np.repeat(rng.uniform(0.001, 0.5, 9), 8000)
        soundfile.write(path / name, (loud * rng.uniform(-1, 1, len(loud))).astype(np.float32), 16000)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    model = make_encoder(Config(width=32, depth=2, frames=80), classification=Classification(CLASSES, recipe="test"))
    save_model(path, model)
    return path


def command(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main.main(["predict", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def expected(folder: Path, run: Path) -> dict[str, list[tuple[float, float, str]]]:
    model = load_classifier(run, "cpu")
    found = {}
    for name in FILES:
        (prediction,) = model.predict(read_audio(folder / name), every=default_every(model))
        events = prediction.events(**OPTIONS)
        found[name] = [(e.start, e.end, e.label) for e in events]
    assert sum(map(len, found.values())) >= 3
    return found


def in_file(path: Path) -> list[tuple[float, float, str]]:
    return [(r.event.start, r.event.end, r.event.label) for r in read_label_file(path)]


def test_rows_are_as_long_as_the_window_suggests(run: Path) -> None:
    assert default_every(load_classifier(run, "cpu")) == 0.25
    for frames, every in ((32, 0.1), (160, 0.5), (1024, 1.0)):
        config = Config(width=32, depth=2, frames=frames)
        assert default_every(make_encoder(config, classification=Classification(CLASSES))) == every


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_a_folder_gets_a_file_for_each_recording(
    name: str, folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capsys, folder, "--model", run, "--format", name, "--out", tmp_path / "x", *WORDS)
    assert (code, out, err) == (0, f"{tmp_path / 'x'}: 3 files\n", "")
    suffix = LABEL_FORMATS[name].suffix
    written = sorted(p.relative_to(tmp_path / "x").as_posix() for p in (tmp_path / "x").rglob("*") if p.is_file())
    assert written == [f"{Path(file).with_suffix('')}{suffix}" for file in FILES]
    for file, events in expected(folder, run).items():
        assert in_file((tmp_path / "x" / file).with_suffix(suffix)) == events


@pytest.mark.parametrize("name", ["x.csv", "x.json"])
def test_one_file_may_hold_all_recordings(
    name: str, folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(capsys, folder, "--model", run, "--events", "--out", tmp_path / name, *WORDS)
    assert (code, out) == (0, f"{tmp_path / name}: 3 files\n")
    assert in_file(tmp_path / name) == [event for events in expected(folder, run).values() for event in events]
    if name == "x.json":
        content = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        head = {key: value for key, value in content.items() if key != "files"}
        asked = {**OPTIONS, "without": [], "every": 0.25, "window": None, "reject": False}
        assert head.pop("provenance")["options"] == asked
        assert head == {"classes": list(CLASSES), "multi_label": False, "recipe": "test", **OPTIONS, "without": []}
        assert [(f["path"], f["seconds"]) for f in content["files"]] == [(str(folder / f), 4.5) for f in FILES]
    else:
        with open(tmp_path / name, encoding="utf-8", newline="") as file:
            assert {row["path"] for row in csv.DictReader(file)} <= {str(folder / f) for f in FILES}


def test_the_table_and_the_printed_formats(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / FILES[0]
    code, out, err = command(capsys, path, "--model", run, "--events", *WORDS)
    events = expected(folder, run)[FILES[0]]
    assert (code, err, len(out.splitlines())) == (0, "", 1 + len(events))
    assert out.startswith(f"{path} (4.50 s)\n  {events[0][0]:.2f} - {events[0][1]:.2f} s  {events[0][2]} ")
    assert command(capsys, path, "--model", run, "--events", "--threshold", "1")[1].endswith("\n  no events\n")
    assert command(capsys, path, "--model", run, "--format", "audacity", *WORDS)[1].splitlines() == [
        f"{start:.6f}\t{end:.6f}\t{name}" for start, end, name in events
    ]


def test_classes_may_be_left_out(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = expected(folder, run)[FILES[0]]
    first = found[0][2]
    words = ["--format", "audacity", *WORDS, "--without", first]
    out = command(capsys, folder / FILES[0], "--model", run, *words)[1]
    kept = [f"{start:.6f}\t{end:.6f}\t{name}" for start, end, name in found if name != first]
    assert out.splitlines() == (kept or [""])


def test_the_ending_decides_for_one_recording(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / FILES[0]
    for name in ("x.txt", "x.jams", "x.csv"):
        assert command(capsys, path, "--model", run, "--events", "--out", tmp_path / name, *WORDS)[0] == 0
        assert in_file(tmp_path / name) == expected(folder, run)[FILES[0]]
    argv = [path, "--model", run, "--format", "raven", "--out", tmp_path / "x.txt", *WORDS]
    assert command(capsys, *argv)[0] == 0
    assert (tmp_path / "x.txt").read_text(encoding="utf-8").startswith("Selection\tView\t")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("x.csv", "x.csv.provenance.json", "x.jams", "x.txt", "x.txt.provenance.json")
    ]


def test_events_are_drawn(folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("matplotlib.image")
    for name, more in (("rows.png", ("--every", "0.25")), ("events.png", ("--events", *WORDS))):
        argv = [folder / FILES[0], "--model", run, "--picture", tmp_path / name, *more]
        assert command(capsys, *argv)[0] == 0
    rows, events = (image.imread(tmp_path / name) for name in ("rows.png", "events.png"))
    assert rows.shape == events.shape
    white = [(part[len(part) // 2 :, 200:1200, :3] == 1).all(axis=2).mean() for part in (rows, events)]
    assert white[1] > white[0]


def test_names_of_files() -> None:
    def names(*files: str) -> list[str]:
        return [path.as_posix() for path in recording_names(files, ".txt")]

    assert names("a.wav") == ["a.txt"]
    assert names("x/a.wav", "x/b.wav") == ["a.txt", "b.txt"]
    assert names("x/a.wav", "y/a.wav", "y/z/b.ogg") == ["x/a.txt", "y/a.txt", "y/z/b.txt"]
    assert names("a.wav", "a.flac", "b.wav") == ["a.wav.txt", "a.flac.txt", "b.txt"]
    assert names("A.wav", "a.flac") == ["A.wav.txt", "a.flac.txt"]
    with pytest.raises(ConfigError, match=r"a.wav.ogg: its labels would have the name of those of a.wav"):
        names("a.wav", "a.flac", "a.wav.ogg")


def test_unreadable_files_leave_no_labels(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    out = tmp_path / "out"
    argv = [tmp_path / "bad.wav", folder / FILES[0], "--model", run, "--format", "audacity", "--out", out]
    code, _, err = command(capsys, *argv)
    assert code == 1
    assert err.startswith(f"ssamba: left out {tmp_path / 'bad.wav'}: ")
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["a.txt"]
    code, _, err = command(capsys, tmp_path / "bad.wav", "--model", run, "--events", "--out", tmp_path / "x.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "x.csv").exists()
    argv = [tmp_path / "bad.wav", "--model", run, "--format", "audacity", "--out", tmp_path / "none"]
    assert command(capsys, *argv)[0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.wav", "out"]


def test_mistakes_with_events(folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for words, message in (
        (["--low", "0.5"], "--low goes with events: give --events as well"),
        (["--threshold", "1.5"], "threshold is 1.5: give a score from 0 to 1"),
        (["--events", "--threshold", "0"], "threshold is 0: give a score above 0"),
        (["--events", "--low", "0.9"], "low is 0.9: give a score above 0 and at most the threshold, 0.5"),
        (["--events", "--min-seconds", "-1"], "argument --min-seconds: -1: give seconds"),
        (["--format", "raven"], "raven labels are of one recording, and 3 are given: give --out FOLDER"),
        (["--events", "--out", tmp_path / "x.txt"], "audacity labels are of one recording, and 3 are given"),
        (["--events", "--out", tmp_path / "x.xml"], "unknown ending '.xml'"),
        (["--events", "--out", tmp_path], "for a folder of label files give --format audacity, raven"),
        (["--events", "--out", tmp_path / "x"], "for a folder of label files give --format audacity, raven"),
        (["--format", "jams", "--out", tmp_path / "file"], "unknown ending ''"),
        (["--format", "csv", "--out", tmp_path / "x.json"], "unknown ending '.json'"),
        (["--events", "--without", "dgo"], "without is 'dgo': no class of the model, did you mean 'dog'?"),
        (["--format", "ravne"], "did you mean 'raven'"),
    ):
        code, out, err = command(capsys, folder, "--model", run, *words)
        assert (code, out, err.count("\n")) == (2, "", 1), words
        assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_the_command_names_every_format() -> None:
    assert tuple(LABEL_FORMATS) == predict.FORMATS
