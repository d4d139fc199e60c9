"""A model on disk: ``config.json`` beside ``model.safetensors``, checked strictly when read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssamba.config import FORMAT, Config, read_json
from ssamba.errors import CheckpointError
from ssamba.files import beside, write_text
from ssamba.models.ssamba import SSAMBA

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
EXTRAS = "extras."
"""Prefix of tensors that an official file carried and the model does not use; kept for converting back."""


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all. Raises ``SsambaError`` when it cannot be written."""
    with beside(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
        except SafetensorError as error:  # how the library reports a full disk or a refused write
            raise OSError(str(error)) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ``CheckpointError``."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file ({error})") from None


def save_config(folder: Path, config: Config, heads: bool) -> None:
    """Write ``config.json`` beside the weights."""
    description = {"format": FORMAT, "encoder": "ssamba", "heads": heads, "config": config.to_dict()}
    write_text(folder / CONFIG_FILE, json.dumps(description, indent=2) + "\n")


def save_model(folder: Path, model: SSAMBA, extras: dict[str, Tensor] | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``."""
    tensors = dict(model.state_dict()) | {EXTRAS + k: v for k, v in (extras or {}).items()}
    save_config(folder, model.config, model.heads is not None)
    save_tensors(folder / WEIGHTS_FILE, tensors)


def read_config(folder: Path) -> tuple[Config, bool]:
    """Configuration, and whether the weights have pretraining heads. Raises ``ConfigError``, ``CheckpointError``."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: holds no {CONFIG_FILE}, so it is no run or model directory")
    description = read_json(path)
    if description.get("format") != FORMAT or description.get("encoder") != "ssamba":
        raise CheckpointError(
            f"{path}: format {description.get('format')!r} with encoder {description.get('encoder')!r}, this version "
            f"reads format {FORMAT} with encoder 'ssamba'"
        )
    values = description.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: has no 'config' object")
    return Config.from_dict(values, str(path)), bool(description.get("heads"))


def read_model(folder: Path) -> tuple[Config, dict[str, Tensor]]:
    """Configuration and tensors, extras included.

    Raises ``CheckpointError`` naming the file and what does not fit, ``ConfigError`` for a damaged ``config.json``.
    """
    config, heads = read_config(folder)
    tensors = load_tensors(folder / WEIGHTS_FILE)
    with torch.device("meta"):
        expected = SSAMBA(config, heads=heads).state_dict()
    problems = [f"missing {k}" for k in expected if k not in tensors]
    problems += [f"unexpected {k}" for k in tensors if k not in expected and not k.startswith(EXTRAS)]
    problems += [
        f"{k} has shape {tuple(tensors[k].shape)}, {CONFIG_FILE} says {tuple(v.shape)}"
        for k, v in expected.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: {'; '.join(problems[:5])}{more}")
    return config, tensors


def build(config: Config, tensors: dict[str, Tensor], heads: bool) -> SSAMBA:
    """A model out of tensors that fit it, without drawing initial weights; heads only when asked for."""
    with torch.device("meta"):
        model = SSAMBA(config, heads=heads)
    wanted = model.state_dict()
    model.load_state_dict({k: tensors[k].to(torch.float32) for k in wanted}, assign=True)
    return model
