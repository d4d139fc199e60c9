"""Trees of every layout, made once, and copies of them that a test may damage; decoding that always takes processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from layout_cases import BUILDERS

from ssamba.data.loaders import workers


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a builder -> its tree, made once. Tests that change a tree take a copy."""
    roots: dict[str, Path] = {}
    base = tmp_path_factory.mktemp("layouts")

    def build(name: str) -> Path:
        maker = BUILDERS[name][1]
        if name not in roots:
            same = next((other for other in roots if BUILDERS[other][1] is maker), None)
            roots[name] = roots[same] if same else maker(base / name)
        return roots[name]

    return build


@pytest.fixture
def always_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes for any number of workers and any amount of work."""
    monkeypatch.setattr(workers, "MIN_PROCESSES", 1)
    monkeypatch.setattr(workers, "MIN_ROWS_PER_PROCESS", 0)


@pytest.fixture
def tree(built: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy that a test may damage; files are linked, so replace or remove them, do not write into them."""

    def copy(name: str) -> Path:
        root = tmp_path / name
        shutil.copytree(built(name), root, copy_function=lambda a, b: Path(b).hardlink_to(a))
        return root

    return copy
