"""Folders that cannot be searched as a whole: what is left out is named, and the exit code says so."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.data.folders import Problems, find_files
from ssamba.data.manifest import read_source, read_sources
from ssamba.inference.model import make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="drops capabilities of root as on Linux")
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A set with a locked folder in it, and a model."""
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    for name in ("a/1.wav", "a/2.wav", "a/3.wav", "b/1.wav", "b/2.wav", "b/3.wav", "locked/1.wav"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "data" / name, noise, 16000)
    classes = Classification(("x", "y"), recipe="test")
    save_model(tmp_path / "model", make_encoder(Config(width=32, depth=2, frames=32), classification=classes))
    (tmp_path / "out").mkdir()
    (tmp_path / "data/locked").chmod(0)
    yield tmp_path
    (tmp_path / "data").chmod(0o755)
    (tmp_path / "data/locked").chmod(0o755)


def bound_by_permissions() -> None:
    """root without its capabilities to pass over permissions, which the command that is started then lacks."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "the capability cannot be dropped")


def ssamba(folder: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ssamba", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=bound_by_permissions,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


LEFT_OUT = "left out data/locked: the folder cannot be searched (Permission denied)"


@pytest.mark.parametrize(
    "line",
    [
        "embed data --model model --device cpu --out out/x.npz",
        "predict data --model model --device cpu --out out/x.csv",
        "stats data",
        "pretrain data --out out/run --device cpu --width 32 --depth 2 --frames 32 --mask 8 --validation-mask 8"
        " --batch 2 --steps 1 --validation 0.2",
    ],
)
def test_a_locked_folder_is_named(folder: Path, line: str) -> None:
    code, out, err = ssamba(folder, *line.split())
    assert code == 1, err
    assert [line for line in err.splitlines() if "locked" in line and line.endswith(LEFT_OUT)], err
    assert sum("locked" in line for line in err.splitlines()) == 1
    assert "6 files" in out or "pretrain" in line


@pytest.mark.parametrize(
    "line", ["probe custom --data data --model model", "finetune custom --data data --out out/run"]
)
def test_a_labelled_set_with_a_locked_folder_is_refused(folder: Path, line: str) -> None:
    code, out, err = ssamba(folder, *line.split(), "--device", "cpu")
    assert (code, out) == (2, "")
    expected = "data/locked: the folder cannot be searched (Permission denied); make it readable, or remove it"
    assert err.startswith(f"ssamba: error: {expected}")
    assert len(err.splitlines()) == 1


def test_the_folder_itself(folder: Path) -> None:
    code, _, err = ssamba(folder, "stats", "data/locked")
    assert (code, err) == (2, "ssamba: error: data/locked: cannot be read (Permission denied)\n")
    shutil.rmtree(folder / "data/a")
    shutil.rmtree(folder / "data/b")
    code, _, err = ssamba(folder, "stats", "data")
    assert code == 2
    assert "no audio files" in err
    assert "data/locked: the folder cannot be searched" in err


def test_links_names_and_loops(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/one.wav").touch()
    (tmp_path / "a/b/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("/nowhere/at/all")
    (tmp_path / "gone.wav").symlink_to("/nowhere/at/all.wav")
    (tmp_path / "notes.txt").symlink_to("/nowhere/at/all.txt")
    problems: Problems = []
    clips = read_source(tmp_path, problems)
    assert [clip.key for clip in clips] == ["a/b/one.wav", "gone.wav"]  # the second is met where it is decoded
    assert sorted(problems) == [(str(tmp_path / name), "the link leads nowhere") for name in ("gone", "self")]


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    before = here
    try:
        for _ in range(20):
            os.mkdir("d" * 250, dir_fd=here)
            there = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
            if here != before:
                os.close(here)
            here = there
        os.close(os.open("deep.wav", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
        os.close(before)
    (tmp_path / "one.wav").touch()
    problems: Problems = []
    (source,) = read_sources([str(tmp_path)], problems)
    assert [clip.key for clip in source.clips] == ["one.wav"]
    ((_, reason),) = problems
    assert reason == "the folder cannot be searched (File name too long)"


def test_a_folder_that_goes_while_it_is_searched(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.wav").touch()

    def chosen(name: str) -> bool:
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        return name.endswith(".wav")

    found, problems = find_files(str(tmp_path), chosen)
    assert [key for _, key in found] == ["a/one.wav", "c/one.wav"]
    assert problems == [(str(tmp_path / "b"), "the folder cannot be searched (No such file or directory)")]


@pytest.mark.parametrize("command", ["embed", "predict"])
def test_an_output_that_is_an_input_is_refused(folder: Path, command: str) -> None:
    (folder / "data/list.csv").write_text("path\na/1.wav\n")
    (folder / "out/list.csv").symlink_to(folder / "data/list.csv")
    out = {"embed": "out/x.npz", "predict": "out/list.csv"}[command]
    if command == "embed":
        (folder / "x.csv").write_text("path\ndata/a/1.wav\n")
        (folder / "out/x.npz").symlink_to(folder / "x.csv")
    data = {"embed": "x.csv", "predict": "data/list.csv"}[command]
    code, _, err = ssamba(folder, command, data, "--model", "model", "--device", "cpu", "--out", out)
    assert (code, err) == (
        2,
        f"ssamba: error: {out}: is an input of this command, which it would replace; choose another --out\n",
    )
    (folder / "data").chmod(0o555)
    code, _, err = ssamba(folder, command, data, "--model", "model", "--out", f"data/new.{out[-3:]}")
    assert code == 2
    assert err.startswith(f"ssamba: error: data/new.{out[-3:]}: cannot be written (Permission denied)")
