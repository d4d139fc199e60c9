"""Compiled kernels on disk: a second process compiles nothing, and no state of the disk makes a call fail."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssamba.ops.jit import kernel_cache, nvrtc

resource = pytest.importorskip("resource", reason="owners and modes of files are those of Unix")

KEY, OTHER = "1" * 64, "2" * 64
CUBIN = bytes(range(256)) * 40

COMPILE = """
    import hashlib
    from ssamba.ops.jit import nvrtc
    from ssamba.ops.mamba.cuda.sources import defines, unit
    macros = defines(DTYPE=1, W=4, DIRS=2, V=2, STEPS=4, THREADS=64, ALTERNATING=0)
    for capability in ((8, 0), (9, 0)):
        cubin = nvrtc.cubin(unit("conv_backward.cu"), macros, capability)
        print(nvrtc.compilations, hashlib.sha256(cubin).hexdigest())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which does not exist yet."""
    path = tmp_path / "cache" / "kernels"
    monkeypatch.setenv("SSAMBA_CACHE_DIR", str(path))
    return path


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def unit() -> nvrtc.Unit:
    """A unit of a moment, which no other test has compiled."""
    try:
        nvrtc.version()
    except nvrtc.Unavailable:
        pytest.skip("nvidia-cuda-nvrtc is not installed; where it has a wheel, '.[dev]' brings it")
    return nvrtc.Unit(Path("one.cu"), '#include "one.cuh"\nextern "C" __global__ void one(int *a) { *a = ONE; }', ONE)


ONE = (("one.cuh", "#define ONE 1\n"),)
TWO = (("one.cuh", "#define ONE 2\n"),)


def compiled(unit: nvrtc.Unit, defines: tuple[str, ...] = ("A=1",), capability: tuple[int, int] = (8, 0)) -> int:
    """How many compilations it takes a process that has nothing in memory to have the cubin."""
    nvrtc.cubin.cache_clear()
    before = nvrtc.compilations
    assert nvrtc.cubin(unit, defines, capability).startswith(b"\x7fELF")
    return nvrtc.compilations - before


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.usefixtures("unit")
def test_a_second_process_compiles_nothing(folder: Path) -> None:
    first = run_python(COMPILE).split()
    second = run_python(COMPILE).split()
    assert first[::2] == ["1", "2"]
    assert second[::2] == ["0", "0"]
    assert first[1::2] == second[1::2]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.usefixtures("folder", "no_warnings")
def test_what_was_stored_is_found(folder: Path) -> None:
    assert kernel_cache.load(KEY) is None
    assert not folder.exists()
    kernel_cache.store(KEY, CUBIN)
    assert kernel_cache.load(KEY) == CUBIN
    assert kernel_cache.load(OTHER) is None
    assert folder.stat().st_mode & 0o777 == 0o700
    (entry,) = folder.iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("no_warnings")
def test_an_entry_of_another_key_is_not_taken(folder: Path) -> None:
    kernel_cache.store(KEY, CUBIN)
    (folder / f"{KEY}.cubin").rename(folder / f"{OTHER}.cubin")
    assert kernel_cache.load(OTHER) is None


@pytest.mark.usefixtures("folder")
def test_everything_that_decides_the_cubin_is_in_the_key(unit: nvrtc.Unit) -> None:
    assert compiled(unit) == 1
    assert compiled(unit) == 0
    assert compiled(nvrtc.Unit(Path("moved.cu"), unit.source, unit.headers)) == 0
    assert compiled(unit, ("A=2",)) == 1
    assert compiled(unit, capability=(9, 0)) == 1
    assert compiled(nvrtc.Unit(unit.path, unit.source, TWO)) == 1
    assert compiled(nvrtc.Unit(unit.path, unit.source + "\n", unit.headers)) == 1


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "longer", "no magic"])
def test_a_damaged_entry_is_compiled_and_written_again(damage: str, folder: Path, unit: nvrtc.Unit) -> None:
    assert compiled(unit) == 1
    (entry,) = folder.iterdir()
    good = entry.read_bytes()
    middle = len(good) // 2
    entry.write_bytes(
        {
            "empty": b"",
            "cut": good[:-1],
            "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
            "longer": good + b"\0",
            "no magic": good[1:],
        }[damage]
    )
    assert compiled(unit) == 1
    assert entry.read_bytes() == good
    assert compiled(unit) == 0


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("place", ["below a file", "is a file", "null"])
def test_a_folder_that_cannot_be_made_costs_the_cache_alone(
    place: str, tmp_path: Path, unit: nvrtc.Unit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    path = {"below a file": tmp_path / "file" / "x", "is a file": tmp_path / "file", "null": Path("/dev/null/x")}[place]
    monkeypatch.setenv("SSAMBA_CACHE_DIR", str(path))
    with caplog.at_level(logging.DEBUG, logger="ssamba"):
        assert compiled(unit) == 1
        assert compiled(unit) == 1
    assert len([r for r in caplog.records if "not cached" in r.message]) == 1
    assert all(r.levelno == logging.DEBUG for r in caplog.records)


def test_a_full_disk_costs_the_cache_alone(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    code = f"""
        import logging, resource, signal, sys, warnings
        from ssamba.ops.jit import kernel_cache
        warnings.simplefilter("error")
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(levelname)s %(message)s")
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, {hard}))
        for _ in range(2):
            kernel_cache.store({KEY!r}, bytes(10000))
        print(kernel_cache.load({KEY!r}))
    """
    lines = run_python(code).splitlines()
    assert lines[-1] == "None"
    assert len([line for line in lines if line.startswith("DEBUG") and "not cached" in line]) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_is_refused(mode: int, folder: Path, unit: nvrtc.Unit) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.warns(RuntimeWarning, match=rf"kernels can be written by others \(mode {mode:o}\)") as caught:
        twice = [compiled(unit), compiled(unit)]
    assert twice == [1, 1]
    assert len(caught) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_entry_that_others_may_write_is_refused(mode: int, folder: Path, unit: nvrtc.Unit) -> None:
    assert compiled(unit) == 1
    (entry,) = folder.iterdir()
    entry.chmod(mode)
    with pytest.warns(RuntimeWarning, match=rf"{entry.name} can be written by others \(mode {mode:o}\)") as caught:
        twice = [compiled(unit), compiled(unit)]
    assert twice == [1, 1]
    assert len(caught) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["folder", "entry"])
def test_what_belongs_to_another_user_is_refused(what: str, folder: Path, unit: nvrtc.Unit) -> None:
    assert compiled(unit) == 1
    (entry,) = folder.iterdir()
    os.chown(folder if what == "folder" else entry, 12345, -1)
    with pytest.warns(RuntimeWarning, match="belongs to another user") as caught:
        twice = [compiled(unit), compiled(unit)]
    assert twice == [1, 1]
    assert len(caught) == 1


@pytest.mark.usefixtures("no_warnings")
def test_a_link_in_place_of_an_entry_is_not_followed(folder: Path, tmp_path: Path) -> None:
    kernel_cache.store(KEY, CUBIN)
    entry = folder / f"{KEY}.cubin"
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert kernel_cache.load(KEY) is None
