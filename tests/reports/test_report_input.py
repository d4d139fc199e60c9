"""What cannot be reported is refused in a line, what is unfinished is called so, and no other file is read."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import yaml
from pretrain_runs import command, killed_at
from report_runs import PRETRAINING, tone

import ssamba
from ssamba.cli.commands import COMMANDS
from ssamba.cli.main import main
from ssamba.cli.parser import Parser, given
from ssamba.reports.commands import command_of
from ssamba.reports.runs import read_run
from ssamba.training.finetune.recipe import FinetuneRecipe, load_finetune_recipe
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.pretrain.recipe import PretrainRecipe, make_recipe
from ssamba.utils.errors import CheckpointError, ConfigError, DataError, SsambaError, WriteError


def refused(words: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main(["report", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("ssamba: error: ")
    return lines[0].removeprefix("ssamba: error: ")


def test_what_is_no_run_is_refused(
    runs: dict[str, Path], source: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused([tmp_path / "none"], capsys) == f"{tmp_path}/none: is missing; give the folder of a run"
    assert refused([table], capsys) == f"{table}: is a file; give the folder of a run"
    assert "holds no run (no recipe.yaml, results.json or index.json)" in refused([table.parent], capsys)
    assert refused([source], capsys) == f"{source}: holds a model and no run; ssamba info {source} describes it"
    fold = runs["fine-tuning"] / "fold-1"
    assert refused([fold], capsys) == f"{fold}: is one fold of a run; give {fold.parent}"
    space = tmp_path / "index"
    space.mkdir()
    shutil.copy(runs["index"] / "space.safetensors", space)
    assert "holds an index that was never finished" in refused([space], capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index"]
    assert not (source / "report.html").exists()


def test_outputs_and_numbers_out_of_range_are_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["fit"]
    assert "unknown ending '.pdf'" in refused([run, "--out", tmp_path / "x.pdf"], capsys)
    (tmp_path / "x.html").mkdir()
    assert "is a folder" in refused([run, "--out", tmp_path / "x.html"], capsys)
    assert "clips is -1: give a number from 0 to 5000" in refused([run, "--clips", "-1"], capsys)
    assert "give a whole number" in refused([run, "--clips", "few"], capsys)
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="in the place of a folder"):
        ssamba.report(run, tmp_path / "file" / "x.html", clips=0)
    with pytest.raises(ConfigError, match="clips is 5001"):
        ssamba.report(run, tmp_path / "y.html", clips=5001)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x.html"]


EDITS = {
    "fit": [
        ("results.json", '"classes": 3', '"classes": 4'),
        ("recipe.yaml", "head", "hat"),
        ("classes.csv", "1", "2"),
    ],
    "fine-tuning": [("fold-1/log.csv", "\n2", "\n1"), ("predictions.csv", ",", ";")],
    "pretraining": [("state.json", "24", "25"), ("log.csv", "0.", "1.")],
}


@pytest.mark.parametrize(("kind", "edit"), [(k, e) for k, edits in EDITS.items() for e in edits], ids=str)
def test_damaged_runs_are_refused(
    kind: str, edit: tuple[str, str, str], runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs[kind], tmp_path / "run")
    name, before, after = edit
    text = (run / name).read_text()
    assert before in text
    (run / name).write_text(text.replace(before, after, 1))
    line = refused([run, "--out", tmp_path / "x.html"], capsys)
    assert line.startswith(f"{run / name}: is damaged or was edited")
    assert not (tmp_path / "x.html").exists()


def test_damaged_weights_and_values_without_a_list_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["fit"], tmp_path / "run")
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (run / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        ssamba.report(run, tmp_path / "x.html")
    shutil.copy(runs["fit"] / "model.safetensors", run)
    (run / "checks.json").unlink()  # a run of an earlier version
    good = json.loads((run / "results.json").read_text())
    changes: list[dict[str, object]] = [
        {"metric": 3}, {"mean": None}, {"folds": [{}]}, {"folds": 5}, {"classes": -1}, {"calibration": {"clips": 1}},
        {"counted": {"right": 9, "clips": 3}}, {"sample_deviation": [1]}, {"from": 7}, {"mean": {"accuracy": "high"}},
    ]  # fmt: skip
    for change in changes:
        (run / "results.json").write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError, match=r"results.json: is damaged \("):
            ssamba.report(run, tmp_path / "x.html", clips=0)
    (run / "results.json").write_text(json.dumps(good))
    (run / "predictions.csv").write_text("fold,clip,class,predicted,score\n1,a.wav,dog,dog,1.5\n")
    with pytest.raises(CheckpointError, match=r"predictions.csv: is damaged"):
        ssamba.report(run, tmp_path / "x.html", clips=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_markup_in_the_values_of_a_run_is_text(runs: dict[str, Path], tmp_path: Path) -> None:
    """A run from elsewhere may hold anything: its page still holds no tag of it."""
    evil = "</style></script><script>window.hacked=1</script><svg onload=x>"
    run = shutil.copytree(runs["fine-tuning"], tmp_path / "run")
    (run / "checks.json").unlink()
    results = json.loads((run / "results.json").read_text())
    results |= {"recipe": evil, "layout": evil, "chosen": evil, "model": evil, "from": evil, "metric": evil}
    results["mean"] = {evil: 0.5}
    results["sample_deviation"] = {evil: 0.1}
    for fold in results["folds"]:
        fold |= {"name": evil, "metrics": {evil: 0.5}}
    results["calibration"]["fitted_on"] = evil
    results["calibration"].pop("note", None)
    (run / "results.json").write_text(json.dumps(results))
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    stored["data"], stored["recipe"][evil], stored["from"] = [evil], evil, evil
    (run / "recipe.yaml").write_text(yaml.safe_dump(stored))
    page = ssamba.report(run, tmp_path / "x.html", clips=3, device="cpu").read_text(encoding="utf-8")
    assert evil not in page
    assert "<svg onload" not in page
    assert page.count("<script") == 2
    assert page.count("&lt;svg onload=x&gt;") >= 8


@pytest.mark.parametrize("kind", ["fit", "fine-tuning", "pretraining", "probe", "index"])
def test_random_damage_ends_in_a_page_or_in_a_line(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    run, draw = shutil.copytree(runs[kind], tmp_path / "run"), random.Random(kind)
    for listed in run.rglob("checks.json"):
        listed.unlink()
    names = ("results.json", "predictions.csv", "classes.csv", "recipe.yaml", "fold-1/log.csv", "state.json", "log.csv")
    files = {run / name: (run / name).read_text() for name in (*names, "index.json") if (run / name).exists()}
    refused = 0
    for _ in range(40):
        path, text = draw.choice(sorted(files.items()))
        places = [found.span() for found in re.finditer(r'-?[\d.]+|"[^"]*"|\w+', text)]
        begin, end = draw.choice(places)
        word = draw.choice(["null", "-1", "1e999", "[]", "{}", '"x"', "", "nan", "0", "<b>", "9" * 40, "true"])
        path.write_text(text[:begin] + word + text[end:])
        try:
            ssamba.report(run, tmp_path / "x.html", clips=0, device="cpu")
        except SsambaError:
            refused += 1
        path.write_text(text)
    assert refused


def test_damaged_probes_and_indexes_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    probe = shutil.copytree(runs["probe"], tmp_path / "probe")
    good = json.loads((probe / "results.json").read_text())
    for change in ({"rows": [1]}, {"rows": []}, {"metric": None}, {"examples": 0.5}):
        (probe / "results.json").write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError, match=r"results.json: is damaged \("):
            ssamba.report(probe)
    index = shutil.copytree(runs["index"], tmp_path / "index")
    (index / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index\.json"):
        ssamba.report(index)
    assert not list(tmp_path.rglob("*.html"))


def test_an_unfinished_pretraining_is_called_so(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed_at(command(table.parent, run, PRETRAINING), "state", 16)
    page = ssamba.report(run, tmp_path / "x.html", clips=6, device="cpu").read_text(encoding="utf-8")
    assert '<span class="badge open">unfinished: step 16 of 24</span>' in page
    assert 'id="curves"' in page
    assert 'id="reconstructions"' in page  # the best model so far


def test_unfinished_fits_fine_tunings_and_probes_are_called_so(runs: dict[str, Path], tmp_path: Path) -> None:
    """What a killed run leaves: folders without results."""
    for kind in ("fit", "fine-tuning", "probe"):
        run = shutil.copytree(runs[kind], tmp_path / kind)
        for name in (
            "results.json",
            "results.md",
            "predictions.csv",
            "classes.csv",
            "checks.json",
            "model.safetensors",
        ):
            (run / name).unlink(missing_ok=True)
        page = ssamba.report(run, clips=6, device="cpu").read_text(encoding="utf-8")
        assert '<span class="badge open">unfinished' in page
        assert "has not come to its end" in page
        assert ('id="curves"' in page) == (kind == "fine-tuning")
        assert 'id="confusion"' not in page


def players(page: str) -> int:
    return len(set(re.findall(r'"(\d+)":"', page.partition('id="clips">')[2].partition("</script>")[0])))


def test_recordings_that_moved_are_found_with_data(
    runs: dict[str, Path], table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(table.parent, tmp_path / "moved")
    gone = tmp_path / "gone"
    for kind in ("fit", "fine-tuning", "pretraining"):
        run = shutil.copytree(runs[kind], tmp_path / kind)
        recipe = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(recipe.replace(str(table.parent), str(gone)))
        (run / "checks.json").unlink()
        page = ssamba.report(run, clips=6, device="cpu").read_text(encoding="utf-8")
        assert players(page) == 0
        assert f"{gone}" in page.partition('id="left-out"')[2]
        assert "--data FOLDER" in page
        place = moved if kind == "pretraining" else moved / "labels.csv"
        assert main(["report", str(run), "--data", str(place), "--clips", "6", "--device", "cpu"]) == 0
        capsys.readouterr()
        assert players((run / "report.html").read_text(encoding="utf-8")) >= 6
        line = refused([run, "--data", tmp_path / "elsewhere"], capsys)
        assert str(tmp_path / "elsewhere") in line


@pytest.mark.parametrize("kind", ["fit", "fine-tuning", "pretraining"])
def test_changed_recordings_are_not_read(
    kind: str, runs: dict[str, Path], table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same names and lengths with other content: nothing of them gets into a page."""
    moved = shutil.copytree(table.parent, tmp_path / "moved")
    soundfile.write(moved / "0-03.wav", tone(2, 99, 0.7), 16000)
    place = moved if kind == "pretraining" else moved / "labels.csv"
    line = refused([runs[kind], "--data", place, "--out", tmp_path / "x.html"], capsys)
    assert line == f"{place}: a recording changed since the run (same names, other content)"
    (moved / "0-03.wav").unlink()
    assert str(moved) in refused([runs[kind], "--data", place, "--out", tmp_path / "x.html"], capsys)
    assert not (tmp_path / "x.html").exists()


def test_recordings_of_an_index_are_those_of_its_sizes_and_times(runs: dict[str, Path], tmp_path: Path) -> None:
    melodies = runs["index"].parent / "melodies"
    moved = shutil.copytree(melodies, tmp_path / "moved")
    with open(moved / "copy.wav", "ab") as file:
        file.write(b"\0" * 100)
    page = ssamba.report(runs["index"], tmp_path / "x.html", data=moved, device="cpu").read_text(encoding="utf-8")
    assert "1 of 7 recordings moved or changed since" in page
    assert players(page) == 6
    with pytest.raises(DataError, match="holds no recording of the index"):
        ssamba.report(runs["index"], tmp_path / "y.html", data=tmp_path, device="cpu")


def test_the_command_makes_the_same_recipe(runs: dict[str, Path]) -> None:
    """What the page gives as the command is read by the command line as the run's own values."""
    for kind, recipe in (("pretraining", PretrainRecipe), ("fine-tuning", FinetuneRecipe), ("fit", FitRecipe)):
        run = read_run(runs[kind])
        words = command_of(run)
        assert words[0] == "ssamba"
        parser = Parser(prog="ssamba")
        COMMANDS[words[1]].add_options(parser)
        arguments = parser.read(words[2:])
        values = given(arguments, recipe)
        assert str(arguments.out) == f"{runs[kind]}-again"
        if kind == "pretraining":
            assert make_recipe(None, values).to_dict() == run.recipe
            assert tuple(arguments.data) == run.data
            continue
        assert (str(arguments.data), arguments.source) == (*run.data, run.source)
        if kind == "fit":
            assert FitRecipe(**values).to_dict() == run.recipe
        else:
            made = load_finetune_recipe(arguments.recipe, values).to_dict()
            assert made == run.recipe
