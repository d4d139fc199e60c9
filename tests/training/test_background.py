"""``--background FOLDER``: recordings of nothing of interest have no class; one line for folders that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.cli.main import main
from ssamba.data.synthetic.generate import synthesise
from ssamba.evaluation.rejection_fit import BackgroundCounts
from ssamba.models.pretrained.model_dir import read_model
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.fit.run import fit

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS, NOTHING = ("siren", "bird", "vowel"), "melody_rising"
TINY = ["--epochs", "1", "--device", "cpu"]


def write(folder: Path, kind: str, numbers: range, seconds: float = 1.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        soundfile.write(folder / f"{kind}-{n}.wav", synthesise(kind, seconds, 0, n), 16000)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "sounds"
    for kind in KINDS:
        write(root / kind, kind, range(12))
    return root


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nothing") / "nothing"
    write(root, NOTHING, range(20))
    return root


def names(out: Path, kind: str, numbers: range) -> list[str | None]:
    model = ssamba.load(out, device="cpu")
    audio = [synthesise(kind, 1.0, 0, n).astype(np.float32) / 32768 for n in numbers]
    found = model.predict(audio, sample_rate=16000, reject=True)
    return [prediction.ranked()[0][0] if prediction.ranked() else None for prediction in found]


def test_fit_knows_what_has_no_class(
    sounds: Path, nothing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--data", str(sounds), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "without")]) == 0
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "with"), "--background", str(nothing)]) == 0
    err = capsys.readouterr().err
    assert "background: 20 of 20 clips of 0.975 s in 20 recordings of " in err
    results = json.loads((tmp_path / "with" / "results.json").read_text())
    counts = BackgroundCounts(**results["background"])
    assert f"note: {counts.line()}" in err
    assert counts.line() in (tmp_path / "with" / "results.md").read_text().replace("Background:", "background:")
    assert (counts.clips, counts.known) == (20, 36)
    passed, passed_without = counts.clips - counts.rejected, counts.clips - counts.rejected_without
    assert passed <= min(4, passed_without / 2), "at least half of what passed without the sounds is rejected with them"
    assert passed_without >= 6, "too few clips pass without the sounds for them to show anything"
    assert counts.kept >= 32
    before, after = (names(tmp_path / run, NOTHING, range(100, 115)).count(None) for run in ("without", "with"))
    assert after >= before + 4
    for kind in KINDS:
        assert names(tmp_path / "with", kind, range(100, 108)).count(kind) >= 6
    (_, one), (_, other) = (read_model(tmp_path / run) for run in ("without", "with"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()), "with a softmax scores stay"
    assert main([*words, "--out", str(tmp_path / "with"), "--background", str(nothing)]) == 0
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "with")]) == 2
    assert "the data changed since the run began" in capsys.readouterr().err


def test_with_several_labels_background_lowers_every_score(sounds: Path, nothing: Path, tmp_path: Path) -> None:
    rows = [(path.relative_to(sounds).as_posix(), path.parent.name) for path in sorted(sounds.rglob("*.wav"))]
    table = sounds / "labels.csv"
    table.write_text("path,labels\n" + "".join(f"{path},{name}\n" for path, name in rows))
    try:
        for out, background in (("without", None), ("with", nothing)):
            fit(FitRecipe(calibrate=False), table, tmp_path / out, "tiny", "cpu", background=background)
    finally:
        table.unlink()
    audio = [synthesise(NOTHING, 1.0, 0, n).astype(np.float32) / 32768 for n in range(100, 115)]
    highest = []
    for out in ("without", "with"):
        found = ssamba.load(tmp_path / out, device="cpu").predict(audio, sample_rate=16000)
        highest.append(float(np.mean([prediction.scores.max() for prediction in found])))
    assert highest[1] < 0.25 < highest[0]


def test_finetune_knows_it_too(sounds: Path, nothing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "custom", "--data", str(sounds), "--out", str(tmp_path / "run"), "--folds", "2", *TINY]
    assert main([*words, "--background", str(nothing)]) == 0
    counts = BackgroundCounts(**json.loads((tmp_path / "run" / "results.json").read_text())["background"])
    assert counts.line() in capsys.readouterr().err
    assert counts.clips == 4
    assert names(tmp_path / "run", NOTHING, range(100, 115)).count(None) >= 11
    assert sum(names(tmp_path / "run", kind, range(100, 108)).count(kind) for kind in KINDS) >= 17
    assert main([*words, "--background", str(nothing)]) == 0
    write(tmp_path / "other", NOTHING, range(5))
    capsys.readouterr()
    assert main([*words, "--background", str(tmp_path / "other")]) == 2
    assert "the data changed since the run began" in capsys.readouterr().err


def test_mistakes(sounds: Path, nothing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, text, copy = tmp_path / "empty", tmp_path / "text", tmp_path / "copy"
    for folder in (empty, text, copy):
        folder.mkdir()
    (text / "a.wav").write_text("no audio")
    shutil.copy(sounds / "bird" / "bird-3.wav", copy / "renamed.wav")
    for command in (["fit"], ["finetune", "custom", *TINY]):
        for background, message in (
            (str(empty), "empty: no audio files in this folder or below"),
            (str(text), "text: no background recording can be read; the first: "),
            (str(tmp_path / "none"), "none: no such file or folder"),
            ("missing", "has no labels with times, and so no stretches without label for missing; or is that the name"),
            (str(sounds / "bird"), "is background in"),
            (str(sounds), "and a clip of the set as well"),
            (str(copy), "bird-3.wav); keep it in one of them"),
            (str(sounds / "bird" / "bird-3.wav"), "is background in"),
        ):
            words = ["--data", str(sounds), "--out", str(tmp_path / "run"), "--background", background]
            assert main([*command, *words]) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1, err
            assert err.startswith("ssamba: error: ")
            assert message in err
            assert not (tmp_path / "run").exists()
    words = ["finetune", "custom", "--data", str(sounds), "--out", str(tmp_path / "run"), "--background", str(nothing)]
    assert main([*words, "--calibrate", "no"]) == 2
    assert "background goes with the calibration of custom sets" in capsys.readouterr().err


def test_too_few_clips_to_use_it(nothing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS[:2]:
        write(tmp_path / "few" / kind, kind, range(3), 0.4)
    words = ["--data", str(tmp_path / "few"), "--out", str(tmp_path / "run"), "--background", str(nothing)]
    assert main(["fit", *words, "--device", "cpu"]) == 0
    assert "note: background: not used, since fewer than 10 clips were held out" in capsys.readouterr().err
    assert not (tmp_path / "run" / "rejection.safetensors").exists()
