"""The models that come with the package: one folder each, ``config.json`` next to ``model.safetensors``."""

from __future__ import annotations

from pathlib import Path

from ssamba.utils.errors import CheckpointError

SHIPPED = ("tiny",)
DEFAULT = "tiny"
"""What is loaded when nothing is named."""


def root() -> Path:
    """The folder that holds one folder for each name."""
    return Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """The model directory of a name in ``SHIPPED``. Raises ``CheckpointError`` where this installation has none."""
    folder = root() / name
    if not folder.is_dir():
        raise CheckpointError(
            f"{name}: this installation comes without its weights; give a run directory or an official .pth, or "
            "install a release of ssamba that has them"
        )
    return folder
