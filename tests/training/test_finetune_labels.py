"""``ssamba finetune custom --labels``: label files of recordings to a model of events, and one line for mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.cli.main import main
from ssamba.models.pretrained.model_dir import read_config

SMALL = ["--from", "none", "--width", "32", "--depth", "2", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings with tones of two pitches, labelled in three formats."""
    folder = tmp_path_factory.mktemp("field")
    (folder / "recordings").mkdir()
    (folder / "labels").mkdir()
    for n in range(3):
        audio = np.random.default_rng(n).normal(0, 0.01, 12 * 16000)
        rows = [(0.5 + 1.5 * i, 1.0 + 1.5 * i, ("high", "low")[i % 2]) for i in range(7)]
        for start, end, name in rows:
            t = np.arange(round(start * 16000), round(end * 16000))
            audio[t] += 0.3 * np.sin(2 * np.pi * {"high": 3000, "low": 300}[name] / 16000 * t)
        soundfile.write(folder / "recordings" / f"{n}.wav", audio.astype(np.float32), 16000)
        if n == 0:
            text = "".join(f"{start}\t{end}\t{name}\n" for start, end, name in rows)
        elif n == 1:
            text = "start;end;label\n" + "".join(
                f"{start};{end};{name}\n".replace(".", ",") for start, end, name in rows
            )
        else:
            text = "Selection\tBegin Time (s)\tEnd Time (s)\tAnnotation\n"
            text += "".join(f"{i}\t{start}\t{end}\t{name}\n" for i, (start, end, name) in enumerate(rows))
        (folder / "labels" / f"{n}.txt").write_text(text)
    return folder


def finetune(field: Path, out: Path, *words: str) -> int:
    data = ["--data", str(field / "recordings"), "--labels", str(field / "labels"), "--out", str(out)]
    return main(["finetune", "custom", *data, *SMALL, *words])


@pytest.mark.usefixtures("one_thread")
def test_label_files_make_a_model_whose_window_fits_them(
    field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(field, tmp_path / "run", "--background", "nothing") == 0
    told = capsys.readouterr()
    assert "note: 21 labels in 3 recordings give 42 clips of 0.5 s" in told.err
    assert "divided by recording (seed 0), folds: 3" in told.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["folds"]) == 3
    assert read_config(tmp_path / "run").config.frames == 48
    assert (tmp_path / "run" / "classes.csv").read_text().splitlines()[1].startswith("high,")
    # The same command finds the finished run again, with the clips of the first time.
    assert finetune(field, tmp_path / "run", "--background", "nothing") == 0
    assert capsys.readouterr().out == told.out
    assert finetune(field, tmp_path / "run") == 2
    words = ["predict", str(field / "recordings"), "--model", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*words, "--format", "audacity", "--out", str(tmp_path / "found"), "--threshold", "0.3"]) == 0
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == ["0.txt", "1.txt", "2.txt"]


def test_a_clip_may_be_given_its_length(field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(field, tmp_path / "run", "--frames", "32", "--folds", "1") == 0
    assert "21 labels in 3 recordings give 21 clips of 0.335 s" in capsys.readouterr().err


def test_mistakes_with_labels(field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "labels"
    bad.mkdir()
    (bad / "0.txt").write_text("0.5\t1\thigh\n2\t99\tlow\n")
    data = ["--data", str(field / "recordings"), "--out", str(tmp_path / "run"), *SMALL]
    for words, message in (
        (["custom", "--labels", str(bad)], "0.txt: line 2: the label 'low' lasts from 2 to 99 s"),
        (["custom", "--labels", str(tmp_path / "none")], "none: no such file or folder; give the labels"),
        (["esc50", "--labels", str(bad)], "labels with times go with the recipe custom; esc50 has its own"),
        (["esc50", "--background", "x"], "labels with times go with the recipe custom; esc50 has its own"),
    ):
        assert main(["finetune", *words, *data]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
    assert not (tmp_path / "run").exists()
