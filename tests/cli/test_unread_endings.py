"""Files that look like audio and are not read are named in one line, by every command that searches a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.cli import main
from ssamba.data.manifest import read_source
from ssamba.data.unread import take_unread, unread_line

NOTE = "ssamba: note: 3 files with endings that are not read: a.m4a, b.WMA, c.mp4; convert them, e.g. to .flac\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    take_unread()
    (tmp_path / "in" / "sub").mkdir(parents=True)
    soundfile.write(tmp_path / "in" / "a.wav", np.sin(np.arange(16000) / 9).astype(np.float32), 16000)
    for name in ("a.m4a", "b.WMA", "notes.txt", ".hidden.m4a", "sub/c.mp4"):
        (tmp_path / "in" / name).write_bytes(b"")
    return tmp_path / "in"


@pytest.mark.parametrize(
    "words",
    [["embed", "FOLDER", "--out", "OUT/x.npz"], ["stats", "FOLDER"]],
    ids=["embed", "stats"],
)
def test_the_line_comes_once_at_the_end(
    words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("FOLDER", str(folder)).replace("OUT", str(tmp_path)) for word in words]
    assert main.main(words) == 0
    assert capsys.readouterr().err.endswith(NOTE)
    assert main.main(["embed", str(folder / "a.wav"), "--out", str(tmp_path / "y.npz")]) == 0
    assert capsys.readouterr().err == ""


def test_a_folder_of_nothing_else_is_refused_with_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.wav").unlink()
    assert main.main(["embed", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("); 3 files with endings that are not read: a.m4a, b.WMA, c.mp4; convert them, e.g. to .flac\n")
    assert take_unread() == []


def test_what_is_named(folder: Path) -> None:
    assert [clip.key for clip in read_source(folder)] == ["a.wav"]
    read_source(folder)
    assert [Path(path).name for path in take_unread()] == ["a.m4a", "b.WMA", "c.mp4"]
    assert unread_line([]) == ""
    assert unread_line(["x/a.aac"]) == "1 file with an ending that is not read: a.aac; convert them, e.g. to .flac"
    assert "e.aac and 2 more; convert" in unread_line([f"{letter}.aac" for letter in "abcdefg"])
