"""The CUDA C++ is in files of its own, which an installed package has, too."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ssamba
from ssamba.ops.cuda import sources as shared
from ssamba.ops.mamba.cuda import sources

PACKAGE = Path(ssamba.__file__).parent
ROOT = Path(__file__).parents[2]
FOLDERS = {Path(of.__file__).parent: of for of in (sources, shared)}
FILES = sorted(path for folder in FOLDERS for path in [*folder.glob("kernels/*.cu"), *folder.glob("include/**/*.cuh")])
MAX_LINES = 300


def test_no_python_file_holds_cuda() -> None:
    found = [p for p in PACKAGE.rglob("*.py") if re.search(r"__device__|__global__", p.read_text(encoding="utf-8"))]
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_files_are_short_and_explained(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 120
    assert re.match(r"// [A-Z].*\w", lines[0])
    assert ("#pragma once" in lines) == (path.suffix == ".cuh")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_include_is_handed_to_the_compiler(path: Path) -> None:
    (of,) = (of for folder, of in FOLDERS.items() if path.is_relative_to(folder))
    names = {name for name, _ in of.headers()}
    included = re.findall(r"^#include (.*)$", path.read_text(encoding="utf-8"), re.M)
    assert {f'"{name}"' for name in names} >= set(included)


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")
def test_the_wheel_holds_every_source(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    # Weights are large and not asked about.
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns("*.safetensors", "*.egg-info"))
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert FILES
    assert {f"ssamba/{path.relative_to(PACKAGE).as_posix()}" for path in FILES} <= inside
