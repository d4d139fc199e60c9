"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ssamba.utils.atomic_write import atomic_write, make_folder, write_text
from ssamba.utils.errors import SsambaError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "notes.txt"
    write_text(path, "first")
    write_text(path, "zweites \N{LATIN SMALL LETTER O WITH DIAERESIS}")
    assert path.read_text(encoding="utf-8") == "zweites ö"
    assert names(path.parent) == ["notes.txt"]


@pytest.mark.parametrize("problem", [ValueError("bug"), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path: Path, problem: BaseException) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    expected = SsambaError if isinstance(problem, OSError) else type(problem)

    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the ne")
            assert path.read_text() == "old"
            raise problem

    with pytest.raises(expected):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["notes.txt"]


def test_a_failing_rename_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SsambaError, match=r"notes\.txt: cannot be written \(No space left on device\)"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["notes.txt"]


def test_the_temporary_file_lies_beside_with_the_same_ending(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out.npz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npz"
        assert temporary.name != "out.npz"
        temporary.write_bytes(b"x")


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "ours") as temporary:
        temporary.touch(mode=0o600)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(SsambaError, match="cannot be written"):
        write_text(tmp_path / "runs" / "notes.txt", "x")
    with pytest.raises(SsambaError, match="cannot be written"):
        make_folder(tmp_path / "runs")
