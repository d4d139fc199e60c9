"""The state of a run in one file: weights, optimiser moments and everything else as JSON in the same safetensors file.

One file, renamed into place, so a run killed at any moment finds either the previous state or the new one, never a mix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ssamba.utils.errors import CheckpointError
from ssamba.utils.json_text import parse_json
from ssamba.utils.tensor_file import read_tensors, write_tensors

STATE_FILE = "state.safetensors"


def save_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write the state whole or not at all. Raises ``SsambaError`` when it cannot be written."""
    write_tensors(folder / STATE_FILE, tensors, {"state": json.dumps(values)})


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The saved state, or None for a run that has none yet. Raises ``CheckpointError`` for a damaged file."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    if "state" not in metadata:
        raise CheckpointError(f"{path}: is damaged (it holds no step); restore it or choose another --out")
    return tensors, parse_json(metadata["state"], str(path), CheckpointError)
