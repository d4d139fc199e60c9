"""The state of a run in one file: weights, optimiser moments and everything else as JSON in the same safetensors file.

One file, renamed into place, so a run killed at any moment finds either the previous state or the new one, never a mix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssamba.utils.atomic_write import atomic_write
from ssamba.utils.errors import CheckpointError

STATE_FILE = "state.safetensors"


def save_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write the state whole or not at all. Raises ``SsambaError`` when it cannot be written."""
    with atomic_write(folder / STATE_FILE) as temporary:
        try:
            plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_file(plain, temporary, metadata={"state": json.dumps(values)})
        except SafetensorError as error:
            raise OSError(str(error)) from None


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The saved state, or None for a run that has none yet. Raises ``CheckpointError`` for a damaged file."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})["state"])
            return {k: file.get_tensor(k) for k in file.keys()}, values  # noqa: SIM118 (safe_open is no dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); restore it or choose another --out") from None
