"""The state of a run in one file: weights, optimiser moments and everything else as JSON in the same safetensors file.

One file, renamed into place, so a run killed at any moment finds either the previous state or the new one, never a mix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ssamba.utils.atomic_write import atomic_write
from ssamba.utils.errors import CheckpointError

STATE_FILE = "state.safetensors"


Named = Iterable[tuple[str, nn.Parameter]]


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: Named) -> dict[str, Tensor]:
    """AdamW's moments by parameter name: ``optimizer.<moment>.<parameter>``."""
    out: dict[str, Tensor] = {}
    for name, parameter in named:
        for moment, value in optimizer.state.get(parameter, {}).items():
            out[f"optimizer.{moment}.{name}"] = torch.as_tensor(value)
    return out


def restore_optimizer(optimizer: torch.optim.Optimizer, named: Named, tensors: dict[str, Tensor]) -> None:
    """The reverse of ``optimizer_tensors``, on the parameters' own devices."""
    for name, parameter in named:
        moments = {}
        for key, value in tensors.items():
            if key.startswith("optimizer.") and key.endswith(f".{name}") and key.split(".", 2)[2] == name:
                moment = key.split(".", 2)[1]
                # The step counter of a non-fused optimiser stays on the CPU.
                fused = bool(optimizer.defaults.get("fused"))
                moments[moment] = value if moment == "step" and not fused else value.to(parameter.device)
        if moments:
            optimizer.state[parameter] = moments


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
