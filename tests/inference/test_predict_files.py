"""Classifying files: the numbers of the arrays, as JSON, CSV and table; the timeline; what goes wrong."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.cli import main
from ssamba.inference import file_stream
from ssamba.inference.model import make_encoder
from ssamba.inference.predict_files import PICTURE_COLUMNS, load_classifier, predict_files, spectrogram
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("rain, light", "dog", "siren", "Glocke ä", "clock", "hen")
LENGTHS = {"a.wav": (0.6, 16000), "b.wav": (3.3, 44100), "c.flac": (5.3, 16000)}


def sound(seconds: float, rate: int) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (200 * t + 90 * t * t)) + 0.05 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio")
    for name, (seconds, rate) in LENGTHS.items():
        soundfile.write(path / name, sound(seconds, rate), rate)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    model = make_encoder(Config(width=32, depth=2, frames=128), classification=Classification(CLASSES, recipe="test"))
    save_model(path, model)
    return path


def command(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main.main(["predict", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("every", [None, 0.5])
def test_files_give_what_arrays_give(
    folder: Path, run: Path, tmp_path: Path, every: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_stream, "BLOCK_SECONDS", 1.1)
    model = load_classifier(run, "cpu")
    files = [str(folder / name) for name in LENGTHS]
    report = predict_files(files, model, tmp_path / "x.json", top=None, every=every, batch=3)
    assert (report.written, report.failures, report.text) == (3, [], "")
    written = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert (written["classes"], written["multi_label"], written["recipe"]) == (list(CLASSES), False, "test")
    assert [entry["path"] for entry in written["files"]] == files
    for entry in written["files"]:
        (expected,) = model.predict(read_audio(entry["path"]), every=every)
        rows = entry["rows"] if every else [{"start": 0, "end": entry["seconds"], "scores": entry["scores"]}]
        assert [[r["start"], r["end"]] for r in rows] == [pytest.approx(s) for s in expected.spans.tolist()]
        for i, row in enumerate(rows):
            assert [s["score"] for s in row["scores"]] == pytest.approx([s for _, s in expected.ranked(i)], abs=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_half_precision(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], several: bool
) -> None:
    """Nearly the same scores, of one model and of two with one encoder."""
    models: list[object] = ["--model", run]
    if several:
        models += ["--model", shutil.copytree(run, tmp_path / "other")]
    found = {}
    for dtype in ("fp32", "bf16"):
        out = tmp_path / f"{dtype}.json"
        code, _, err = command(capsys, folder / next(iter(LENGTHS)), *models, "--dtype", dtype, "--out", out)
        assert code == 0, err
        written = json.loads(out.read_text(encoding="utf-8"))
        (entry,) = written["files"]
        scores = entry["predictions"][0]["scores"] if several else entry["scores"]
        found[dtype] = {s["class"]: s["score"] for s in scores}
        assert ("bfloat16" in json.dumps(written)) == (dtype == "bf16")
    assert found["fp32"] != found["bf16"]
    assert found["bf16"] == pytest.approx(found["fp32"], abs=0.02)
    code, _, err = command(capsys, folder / next(iter(LENGTHS)), *models, "--dtype", "half")
    assert (code, err) == (2, "ssamba: error: dtype 'half': give auto, fp32, bf16, fp16\n")


def test_csv_holds_what_json_holds(folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.json", "x.csv"):
        code, out, err = command(
            capsys, folder, "--model", run, "--out", tmp_path / name, "--every", "0.5", "--top", 2, "--device", "cpu"
        )
        assert (code, out, err) == (0, f"{tmp_path / name}: 3 files\n", "")
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        {
            "path": entry["path"],
            "start": row["start"],
            "end": row["end"],
            "rank": rank,
            "class": score["class"],
            "score": score["score"],
        }
        for entry in json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["files"]
        for row in entry["rows"]
        for rank, score in enumerate(row["scores"], start=1)
    ]
    numbers = ("start", "end", "rank", "score")
    assert [{k: float(v) if k in numbers else v for k, v in row.items()} for row in rows] == expected
    command(capsys, folder, "--model", run, "--out", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes().startswith(b"path,rank,class,score\r\n")


def test_table(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, folder / "a.wav", folder / "c.flac", "--model", run, "--top", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 6
    assert lines[0] == f"{folder / 'a.wav'} (0.60 s)"
    assert lines[3] == f"{folder / 'c.flac'} (5.30 s)"
    assert all(line.endswith(" %") for line in lines[1:3])
    code, out, _ = command(capsys, folder / "c.flac", "--model", run, "--every", 2, "--window", 0.5)
    assert [line[:16] for line in out.splitlines()[1:]] == ["  0.00 - 2.00 s ", "  2.00 - 4.00 s ", "  4.00 - 5.30 s "]


def test_timeline(folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("matplotlib.image")
    picture = tmp_path / "x.png"
    argv = [folder / "c.flac", "--model", run, "--every", "0.5", "--picture", picture, "--top", 4]
    assert command(capsys, *argv)[0] == 0
    assert image.imread(picture).shape[:2] == (round(150 * (4.4 + 0.32 * 6)), 1500)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png"]
    for words, message in (
        ([folder / "c.flac", "--picture", picture], "give --every"),
        ([folder, "--picture", picture, "--every", 1], "3 files are given"),
        ([folder / "c.flac", "--picture", tmp_path / "x.jpg", "--every", 1], "unknown ending"),
    ):
        code, _, err = command(capsys, *words, "--model", run)
        assert code == 2
        assert message in err


def test_a_spectrogram_of_any_length_fits_its_picture(folder: Path, run: Path, tmp_path: Path) -> None:
    model = load_classifier(run, "cpu")
    short = spectrogram(folder / "c.flac", model)
    np.testing.assert_allclose(short, ssamba.features(read_audio(folder / "c.flac"), mean=0.0, std=0.5)[0], atol=1e-3)
    assert short.shape == (528, 128)
    soundfile.write(tmp_path / "long.wav", sound(70, 8000), 8000)
    pooled = spectrogram(tmp_path / "long.wav", model)
    assert pooled.shape == (-(-6998 // 5), 128)
    assert len(pooled) <= PICTURE_COLUMNS


def test_unreadable_files_are_listed(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    out = tmp_path / "x.json"
    code, text, err = command(capsys, tmp_path / "bad.wav", folder / "a.wav", "--model", run, "--out", out)
    assert (code, text) == (1, f"{out}: 1 files\n")
    assert err.startswith(f"ssamba: left out {tmp_path / 'bad.wav'}: is not audio")
    assert [e["path"] for e in json.loads(out.read_text())["files"]] == [str(folder / "a.wav")]
    out.unlink()
    code, text, err = command(capsys, tmp_path / "bad.wav", "--model", run, "--out", out)
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.wav"]


def test_mistakes(folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "bare", make_encoder(Config(width=32, depth=2, frames=128)))
    for words, message in (
        (["--model", tmp_path / "bare"], f"{tmp_path / 'bare'}: has no classifier"),
        (["--model", run, "--out", tmp_path / "x.txt"], "unknown ending '.txt', give one of .json, .csv"),
        (["--model", run, "--out", tmp_path], "is a folder"),
        (["--model", run, "--every", "0"], "every is 0 s: give 0.025 or more"),
        (["--model", run, "--window", "1"], "give every as well"),
        (["--model", run, "--top", "0"], "argument --top: 0: give a whole number above 0"),
    ):
        code, out, err = command(capsys, folder, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("ssamba: error: ")
        assert message in err
    with pytest.raises(ConfigError, match="batch is 0"):
        predict_files([str(folder / "a.wav")], load_classifier(run, "cpu"), batch=0)
