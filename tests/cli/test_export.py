"""``ssamba export``: a file and what it says, and one line where it cannot be written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from ssamba.cli.main import main
from ssamba.inference.model import SSAMBA
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, SSAMBA(Config(width=16, depth=2, frames=128), heads=True))
    return folder


def test_a_file_and_what_is_said_of_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.onnx"
    assert main(["export", str(model), str(path)]) == 0
    size = path.stat().st_size
    said = rf"{re.escape(str(path))}: waveform to tokens, \d+ nodes, {size / 1e6:.1f} MB\n"
    assert re.fullmatch(said, capsys.readouterr().out)
    words = ["--output", "clip", "--from", "features", "--weights", "int8"]
    assert main(["export", str(model), str(path), *words]) == 0
    first, *errors = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: features to clip, ")
    assert [re.sub(r"[\d.]+(e-\d+)? of", "X of", line) for line in errors] == [
        f"int8 weights change {name} of a test sound by X of their norm" for name in ("tokens", "clip")
    ]
    graph = onnx.load(path).graph
    assert ([x.name for x in graph.input], [x.name for x in graph.output]) == (["features"], ["clip"])


def test_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = Config(width=16, depth=2, frames=128)
    save_model(folder, SSAMBA(config, classification=Classification(("a", "b"), pooling="rows")))
    assert main(["export", str(folder), str(tmp_path / "x.onnx"), "--output", "logits", "--weights", "fp16"]) == 0
    assert "change logits of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "dest", "words", "reason"),
    [
        (None, "x.onnx", ["--output", "logits"], "has no classifier for output logits; fine-tune it first"),
        (None, "x.pth", [], "x.pth: give a file that ends in .onnx"),
        (None, "folder.onnx", [], "folder.onnx: is a directory"),
        (None, "text/x.onnx", [], "cannot be written"),
        (None, "x.onnx", ["--weights", "int4"], "--weights int4: choose fp32 or fp16 or int8, did you mean 'int8'?"),
        (None, "x.onnx", ["--from", "wave"], "--from wave: choose waveform or features, did you mean 'waveform'?"),
        (None, "x.onnx", ["--output", "token"], "did you mean 'tokens'?"),
        ("nowhere", "x.onnx", [], "nowhere: no such file or directory"),
        ("text", "x.onnx", [], "text: is not a plain file of tensors"),
    ],
)
def test_bad_input(
    source: str | None, dest: str, words: list[str], reason: str, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "text").write_text("this is a letter\n")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(tmp_path / source if source else model), str(tmp_path / dest), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ssamba: error: ")
    assert err.count("\n") == 1
    assert reason in err
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_package(model: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None; from ssamba.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "export", str(model), str(tmp_path / "x.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "ssamba: error: writing ONNX files takes the package onnx: pip install 'ssamba[onnx]'\n"
    assert not list(tmp_path.iterdir())
