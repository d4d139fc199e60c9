"""Runs on disks that fill, on read-only places and without inodes: real small file systems, which take root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pretrain_runs import command, same_results

from ssamba.utils.atomic_write import LEFTOVER, make_folder, write_text
from ssamba.utils.errors import ConfigError, SsambaError
from ssamba.utils.tensor_file import verify_tensors


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB and 200 inodes."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=200", "tmpfs", str(place)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_disk_that_fills_during_a_run(disk: Path, sounds: Path, tmp_path: Path, small: dict[str, object]) -> None:
    """The line names file, cause and the state that is safe; with space the run ends as an undisturbed one."""
    out, whole = disk / "run", tmp_path / "whole"
    small["steps"] = 400
    small["log_every"] = 1
    assert run(command(sounds, out, small | {"steps": 8})).returncode == 0
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 300_000))
    line = last_line(run(command(sounds, out, small)))
    assert re.search(r"run/\S+: cannot be written \(No space left on device\); free some space", line)
    assert "the state of step 8 is safe" in line
    verify_tensors(out / "state.safetensors")
    assert not [p for p in out.iterdir() if LEFTOVER.fullmatch(p.name)]
    (disk / "ballast").unlink()
    small["steps"] = 16
    assert run(command(sounds, out, small)).returncode == 0
    assert run(command(sounds, whole, small)).returncode == 0
    same_results(whole, out)


def test_a_disk_that_fills_at_the_log(disk: Path, sounds: Path, small: dict[str, object]) -> None:
    """log.csv and TensorBoard's events meet it first."""
    out = disk / "run"
    small |= {"steps": 3000, "log_every": 1, "save_minutes": 60.0, "validate_every": 3000}
    assert run(command(sounds, out, small | {"steps": 8})).returncode == 0
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
    line = last_line(run(command(sounds, out, small)))
    assert re.search(r"run/(log\.csv|tensorboard|checks\.json): cannot be written \(No space left on device\)", line), (
        line
    )


def test_no_inodes(disk: Path, sounds: Path, small: dict[str, object]) -> None:
    for number in range(1000):
        try:
            (disk / str(number)).touch()
        except OSError:
            break
    line = last_line(run(command(sounds, disk / "run", small)))
    assert re.search(r"disk/run: cannot be written \(No space left on device\); .*inodes: df -i", line)


def test_a_read_only_file_system(disk: Path, sounds: Path, small: dict[str, object]) -> None:
    out = disk / "run"
    assert run(command(sounds, out, small | {"steps": 8})).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert run(command(sounds, out, small | {"steps": 8})).returncode == 0  # finished: nothing to write
    line = last_line(run(command(sounds, out, small)))
    assert "cannot be written (Read-only file system); choose a place where you may write" in line
    assert ".ssamba" not in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="switches users, which takes root")
def test_a_folder_where_one_may_not_write(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        "import os, sys; from pathlib import Path; from ssamba.utils.atomic_write import write_text\nos.setuid(65534)\n"
        "try: write_text(Path(sys.argv[1]), 'x')\nexcept Exception as error: print(error)"
    )
    path = tmp_path / "ours" / "notes.txt"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: cannot be written (Permission denied); choose a place where you may write\n"


@pytest.mark.parametrize("length", [200, 247, 254, 255])
def test_names_as_long_as_file_systems_take(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("ä" * ((length - 4) // 2) + "x" * (length % 2) + ".npz")
    assert len(os.fsencode(path.name)) in (length, length - 1)
    write_text(path, "x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    folder = tmp_path / ("x" * length)
    make_folder(folder)
    assert folder.is_dir()


def test_a_name_that_is_too_long(tmp_path: Path, sounds: Path) -> None:
    """Refused before any work, in one line."""
    with pytest.raises(ConfigError, match=r"a name of 256 bytes, file systems take 255"):
        make_folder(tmp_path / ("x" * 256))
    words = ["embed", str(sounds), "--out", str(tmp_path / ("x" * 252 + ".npz"))]
    done = run([sys.executable, "-m", "ssamba", *words])
    assert last_line(done).endswith("a name of 256 bytes, file systems take 255; give a shorter one")


def test_a_long_name_of_an_output(tmp_path: Path, sounds: Path) -> None:
    sound = next(p for p in sounds.rglob("*") if p.suffix == ".flac")
    for length in (247, 255):
        out = tmp_path / ("x" * (length - 4) + ".npz")
        assert run([sys.executable, "-m", "ssamba", "embed", str(sound), "--out", str(out)]).returncode == 0
        assert out.exists()


def test_a_folder_in_the_place_of_a_result(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    with pytest.raises(SsambaError, match=r"results\.json: cannot be written \(Is a directory\); remove the folder"):
        write_text(tmp_path / "results.json", "{}")
    assert len(list(tmp_path.iterdir())) == 1
