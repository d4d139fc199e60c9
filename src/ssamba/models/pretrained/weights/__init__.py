"""The models that come with the package: one folder each, ``config.json`` next to ``model.safetensors``."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from ssamba.utils.errors import CheckpointError
from ssamba.utils.files import sha256_of

SHIPPED = ("tiny",)
DEFAULT = "tiny"
"""What is loaded when nothing is named."""

SHA256 = {
    "tiny": {
        "config.json": "26805c07b4a674dabce5f2c015caadbdc8f260410cdea24c2e450bd5bdbd5856",
        "model.safetensors": "785c3226491692abbf9c3f331c1af4986c1a4c83ac94f6c9b700dfd8f279c9c0",
    }
}
"""Digests of what the package comes with, checked when a name is looked up: ``sha256sum`` of each file."""

LICENCE = "apache-2.0"
"""Of the weights, as the hub names it (WEIGHTS.md)."""
SECTIONS_FILE = "CARD.md"
"""In a model's folder: the sections of its card that no other file says."""


def root() -> Path:
    """The folder that holds one folder for each name."""
    return Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """The model directory of a name in ``SHIPPED``.

    Raises ``CheckpointError`` where this installation has none, and where its files are not those of the package.
    """
    folder = root() / name
    if not folder.is_dir():
        raise CheckpointError(
            f"{name}: this installation comes without its weights; give a run directory or an official .pth, or "
            "install a release of ssamba that has them"
        )
    for file, expected in SHA256[name].items():
        path = folder / file
        try:
            state = os.stat(path)
        except OSError:
            raise CheckpointError(f"{path}: is missing; install ssamba again") from None
        if _digest(path, state.st_size, state.st_mtime_ns) != expected:
            raise CheckpointError(
                f"{path}: is not the file that ssamba comes with (its sha256 differs); install ssamba again, or copy "
                "the folder and give its path if it was changed on purpose"
            )
    return folder


def is_shipped(folder: Path) -> bool:
    """Whether a model directory is one of those that come with the package."""
    return folder.parent == root() and folder.name in SHIPPED


@lru_cache(maxsize=16)
def _digest(path: Path, size: int, modified: int) -> str:
    """Of a file in this state, read once in a process."""
    return sha256_of(path, CheckpointError)
