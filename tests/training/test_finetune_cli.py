"""``ssamba finetune`` on the command line: what it prints, and one line with exit code 2 for each mistake."""

import re
from pathlib import Path

import layout_trees as trees
import pytest

from ssamba.cli.main import main
from ssamba.models.pretrained.load import check_shape

SMALL = ["--width", "32", "--depth", "2", "--frames", "32", "--stride", "16", "--epochs", "1", "--batch", "8"]
SMALL += ["--freq-mask", "0", "--time-mask", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.custom_table(tmp_path_factory.mktemp("data"))


def finetune(*words: object) -> int:
    return main(["finetune", *map(str, words), "--device", "cpu", *SMALL])


def test_it_runs_and_tells_the_result(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("custom", "--data", data, "--from", "none", "--out", tmp_path / "run")
    assert finetune(*words) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("custom: accuracy ")
    assert "results.md has every fold" in shown.out
    assert finetune(*words) == 0  # finished: told again
    assert capsys.readouterr().out == shown.out
    assert main(["finetune", *map(str, words), "--device", "cpu", *SMALL, "--lr", "0.5"]) == 2
    assert "this command says 0.5" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["info", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "(fine-tuned run)" in shown
    assert re.search(r"^result +accuracy [01](\.\d+)?; the best epoch on validation clips$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--encoder", "ssast"],
            "has encoder ssamba, the command says ssast; leave --encoder out, or start from random",
        ),
        (["--size", "base"], "has size width 32, the command says base"),
        (["--depth", "2"], "has depth 4, the command says 2"),
        (["--residual-scale", "1"], "has residual_scale 2, the command says 1; leave --residual-scale out"),
    ],
)
def test_another_encoder_than_the_sources_is_refused(
    words: list[str], message: str, data: Path, official_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a comparison of two encoders could be one of SSAMBA with itself."""
    out = tmp_path / "run"
    source = ["--from", str(official_path), "--device", "cpu", "--out", str(out)]
    assert main(["finetune", "custom", "--data", str(data), *source, *words]) == 2
    assert f"{official_path}: {message}" in capsys.readouterr().err
    assert main(["pretrain", str(data), *source, *words]) == 2
    assert f"{official_path}: {message}" in capsys.readouterr().err
    assert not out.exists()


def test_what_the_source_has_may_be_said(official_path: Path, tmp_path: Path) -> None:
    check_shape(official_path, {"encoder": "ssamba", "width": 32, "depth": 4, "directions": 0})
    check_shape("tiny", {"size": "tiny", "residual_scale": 1})
    check_shape(tmp_path / "nowhere", {"epochs": 3})  # nothing to compare


def test_notes_of_the_data_are_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trees.custom_folders(tmp_path / "data")
    assert finetune("custom", "--data", data, "--from", "none", "--out", tmp_path / "run") == 0
    assert "ssamba: note: no splits given" in capsys.readouterr().err


def test_help_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("recipes: arabic-speech-commands, audioset-20k", "urbansound8k", "--freq-mask", "--mixup"):
        assert text in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["esc-50", "--data", "D", "--from", "none", "--out", "R"], "unknown recipe 'esc-50', did you mean 'esc50'?"),
        (["custom", "--from", "none", "--out", "R"], "required: --data"),
        (["custom", "--data", "D", "--from", "none", "--out", "R"], "D: no such file or folder"),
        (["esc50", "--data", "T", "--from", "none", "--out", "R"], "T/meta/esc50.csv: no such file"),
        (["custom", "--data", "one", "--from", "none", "--out", "R"], "1 class only (kind0)"),
        (["custom", "--data", "T", "--from", "none.pth", "--out", "R"], "none.pth: no such file or directory"),
        (["custom", "--data", "T", "--from", "none", "--out", "R", "--loss", "mse"], "choose auto or ce or bce"),
        (["custom", "--data", "T", "--from", "none", "--out", "R", "--decy", "1"], "did you mean --decay?"),
        (
            ["custom", "--data", "many", "--from", "none", "--out", "R", "--loss", "ce"],
            "many/clips/0_1.wav: has 2 labels",
        ),
        (["arabic-speech-commands", "--data", "words", "--from", "none", "--out", "R"], "'nien' is none of the 40"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trees.custom_table(Path("T"))
    trees.custom_table(Path("one"), classes=1)
    trees.custom_table(Path("many"), multi_label=True)
    if "words" in words:
        listing = trees.arabic(Path("words"), published=False) / "meta.csv"
        listing.write_text(listing.read_text().replace(",nine\n", ",nien\n"))
    assert main(["finetune", *words, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("ssamba: error: ")
    assert message in error
    assert not Path("R").exists()


def test_an_unfinished_run_says_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("custom", "--data", data, "--from", "none", "--out", tmp_path / "run") == 0
    for name in ("config.json", "model.safetensors", "results.json"):
        (tmp_path / "run" / name).unlink()
    capsys.readouterr()
    clip = str(data / "clips/0_0.wav")
    assert main(["predict", clip, "--model", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert (
        "fine-tuning has not finished there; start its command again, or give a fold such as" in capsys.readouterr().err
    )
    assert main(["predict", clip, "--model", str(tmp_path / "run/fold-1"), "--device", "cpu"]) == 0
