"""Several classifiers on one encoder: one pass, the values of separate runs bit for bit, a field for the model."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.cli.main import main
from ssamba.inference.model import Encoder, make_encoder
from ssamba.inference.predict_files import load_classifier, predict_files
from ssamba.inference.several.files import predict_files_with_each
from ssamba.inference.several.predict import load_classifiers
from ssamba.models.classifier import Classification, Classifier
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError, SsambaError
from ssamba.utils.lock import lock_output

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = Config(width=32, depth=2, frames=128)
TASKS = {
    "animals": Classification(("dog", "hen", "Kuh, groß"), pooling="rows", recipe="fit"),
    "weather": Classification(("rain", "wind"), multi_label=True, recipe="fit"),
    "token": Classification(("a", "b", "c", "d"), pooling="cls", recipe="fit"),
}


def save(folder: Path, task: Classification | None, config: Config = CONFIG, seed: int = 0) -> Path:
    """A model whose encoder depends on configuration and seed alone."""
    model = make_encoder(config, generator=torch.Generator().manual_seed(seed))
    if task is not None:
        model.classifier = Classifier(model.config, task)
        model.classifier.reset_parameters(torch.Generator().manual_seed(len(task.classes)))
    save_model(folder, model)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    return [str(save(folder / name, task)) for name, task in TASKS.items()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for name, seconds, rate in (("a.wav", 0.6, 16000), ("b.wav", 3.3, 44100), ("c.flac", 5.3, 16000)):
        soundfile.write(folder / name, 0.1 * rng.standard_normal(round(seconds * rate)), rate)
    return [str(folder / name) for name in ("a.wav", "b.wav", "c.flac")]


def count_passes(model: Encoder) -> list[int]:
    """A list that grows by the number of segments of each pass of this encoder."""
    seen: list[int] = []
    model.patch_embed.register_forward_hook(lambda module, given, result: seen.append(len(result)))
    return seen


@pytest.mark.parametrize("every", [None, 0.5])
def test_one_pass_and_the_values_of_separate_runs(runs: list[str], files: list[str], every: float | None) -> None:
    audio = [read_audio(path) for path in files]
    models = [load_classifier(run, "cpu") for run in runs]
    expected = [model.predict(audio, every=every) for model in models]
    passes = [count_passes(model) for model in models]
    found = ssamba.predict_each(models, audio, every=every)
    assert [len(each) for each in found] == [3, 3, 3]
    for m, predictions in enumerate(expected):
        for r, prediction in enumerate(predictions):
            assert torch.equal(found[r][m].scores, prediction.scores)
            assert torch.equal(found[r][m].spans, prediction.spans)
            assert found[r][m].classes == TASKS[list(TASKS)[m]].classes
    assert passes[0]
    assert passes[1:] == [[], []]
    alone = count_passes(models[2])
    models[2].predict(audio, every=every)
    assert alone == passes[0]  # as many segments in as many passes as one model alone


def test_sources_are_loaded(runs: list[str], files: list[str]) -> None:
    audio = read_audio(files[0])
    ((first, second),) = ssamba.predict_each(runs[:2], audio, top=1)
    assert torch.equal(first.scores, ssamba.load(runs[0]).predict(audio)[0].scores)
    assert len(second.ranked()) == 1


@pytest.mark.parametrize("every", [None, "0.5"])
@pytest.mark.parametrize("top", ["1", "3"])
def test_files_hold_what_separate_files_hold(
    runs: list[str], files: list[str], tmp_path: Path, every: str | None, top: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--top", top, "--device", "cpu", *(["--every", every] if every else [])]
    both = [word for run in runs[:2] for word in ("--model", run)]
    for ending in ("json", "csv"):
        for words, name in ((both, "both"), (both[:2], "one"), (both[2:], "two")):
            assert main(["predict", *files, *words, "--out", str(tmp_path / f"{name}.{ending}"), *more]) == 0
    assert capsys.readouterr().err == ""
    together, *alone = (json.loads((tmp_path / f"{n}.json").read_text("utf-8")) for n in ("both", "one", "two"))
    assert [head.pop("model") for head in together["models"]] == runs[:2]
    for m, single in enumerate(alone):
        entries = single.pop("files")
        assert together["models"][m] == single
        for entry, own in zip(together["files"], entries, strict=True):
            assert entry["predictions"][m]["model"] == runs[m]
            own_scores = {k: v for k, v in own.items() if k in ("scores", "rows")}
            assert {k: v for k, v in entry["predictions"][m].items() if k != "model"} == own_scores
            assert (entry["path"], entry["seconds"]) == (own["path"], own["seconds"])
    rows, *parts = (table(tmp_path / f"{n}.csv") for n in ("both", "one", "two"))
    assert list(rows[0])[:2] == ["path", "model"]
    for m, part in enumerate(parts):
        assert [{k: v for k, v in row.items() if k != "model"} for row in rows if row["model"] == runs[m]] == part


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_for_the_reader(runs: list[str], files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", files[0], "--model", runs[0], "--model", runs[1], "--device", "cpu"]
    assert main([*words, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{files[0]} (0.60 s)"
    assert [line for line in lines if not line.startswith("    ")][1:] == [f"  {runs[0]}", f"  {runs[1]}"]
    assert lines[2].count(" %") == 2
    assert main([*words, "--every", "0.3"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("    0.00 - 0.30 s  ")


def test_unreadable_files_are_listed(
    runs: list[str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    words = ["--model", runs[0], "--model", runs[1], "--device", "cpu", "--out", str(tmp_path / "x.json")]
    assert main(["predict", str(tmp_path / "bad.wav"), files[0], *words]) == 1
    assert "left out" in capsys.readouterr().err
    assert [e["path"] for e in json.loads((tmp_path / "x.json").read_text())["files"]] == [files[0]]
    (tmp_path / "x.json").unlink()
    assert main(["predict", str(tmp_path / "bad.wav"), *words]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bad.wav"]


def test_what_cannot_share_is_one_line(
    runs: list[str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = save(tmp_path / "longer", TASKS["animals"], CONFIG.replace(frames=144))
    trained = save(tmp_path / "trained", TASKS["animals"], seed=1)
    bare = save(tmp_path / "bare", None)
    seconds = save(tmp_path / "seconds", Classification(("x", "y"), per_second=True))
    for words, message in (
        ([longer], f"{longer}: its encoder is not that of {runs[0]} (frames 144, there 128); classify with one"),
        ([trained], f"{trained}: its encoder is not that of {runs[0]} (other weights)"),
        ([bare], f"{bare}: has no classifier"),
        ([seconds], f"{seconds}: answers for each second"),
        ([runs[0]], f"{runs[0]}: is given twice"),
        ([runs[1], "--picture", tmp_path / "x.png", "--every", 1], "--picture draws the scores of one model"),
        ([runs[1], "--window", 1], "give every as well"),
        ([runs[1], "--out", tmp_path / "x.txt"], "unknown ending"),
    ):
        before = sorted(tmp_path.iterdir())
        code = main(["predict", files[0], "--model", runs[0], "--model", *map(str, words), "--device", "cpu"])
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ConfigError, match="no models given"):
        ssamba.predict_each([], np.zeros(16000))


def test_one_model_is_as_before(runs: list[str], files: list[str], tmp_path: Path) -> None:
    predict_files(files, load_classifier(runs[0], "cpu"), tmp_path / "library.json")
    assert main(["predict", *files, "--model", runs[0], "--device", "cpu", "--out", str(tmp_path / "x.json")]) == 0
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "library.json").read_bytes()
    report = predict_files_with_each(files, load_classifiers(runs[:1], "cpu"), tmp_path / "each.csv", batch=2)
    assert report.written == 3


def test_names_of_any_bytes_come_back(runs: list[str], files: list[str], tmp_path: Path) -> None:
    """As with one model: CSV holds the name's bytes, JSON escapes those that are no UTF-8."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    name = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav")
    shutil.copyfile(files[0], name)
    for ending in ("csv", "json"):
        words = [word for run in runs[:2] for word in ("--model", run)]
        assert main(["predict", name, *words, "--out", str(tmp_path / f"x.{ending}")]) == 0
    with open(tmp_path / "x.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {name}
    (entry,) = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["files"]
    assert entry["path"] == name


def test_a_second_writer_is_refused(runs: list[str], files: list[str], tmp_path: Path) -> None:
    with lock_output(tmp_path / "x.csv"), pytest.raises(SsambaError, match="another process writes there"):
        predict_files_with_each(files[:1], load_classifiers(runs[:2], "cpu"), tmp_path / "x.csv")
