"""A model on disk: ``config.json`` next to ``model.safetensors``, checked strictly when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssamba.models.classifier import Classification
from ssamba.models.config import ENCODERS, FORMAT, Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.config_digest import CONFIG_DIGEST, check_config_digest, digest_of_config
from ssamba.models.pretrained.tensor_checks import check_tensors, check_type
from ssamba.models.pretrained.transformers_files import config_keys, write_preprocessor
from ssamba.models.registry import KINDS, Kind, make_encoder
from ssamba.utils.atomic_write import write_text
from ssamba.utils.errors import CheckpointError
from ssamba.utils.json_text import read_json
from ssamba.utils.tensor_file import read_header, read_tensors, write_tensors
from ssamba.utils.terminal import shorten

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SUMMARY_FILE, RESULTS_FILE = "state.json", "results.json"
"""What a pretraining run and a finished fine-tuning run hold in addition to these."""
EXTRAS = "extras."
"""Prefix of tensors that an official file carried and the model does not use; kept for converting back."""


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, checked by its digest if it has one. Raises ``CheckpointError``."""
    return read_tensors(path)[0]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, of which only the header is read. Raises ``CheckpointError``."""
    return {name: entry.shape for name, entry in read_header(path).entries.items()}


@dataclass(frozen=True)
class Description:
    """What ``config.json`` says: dimensions and front end, whether there are pretraining heads, the classifier."""

    config: Config
    heads: bool = False
    classification: Classification | None = None


def save_config(folder: Path, description: Description) -> None:
    """Write ``config.json``, with a digest, next to the weights, and the front end as transformers reads it."""
    config, task = description.config, description.classification
    plain = {k: v for k, v in config.to_dict().items() if k != "encoder"}
    values = {"format": FORMAT, "encoder": config.encoder, "heads": description.heads, "config": plain}
    if task is not None:
        values["classification"] = task.to_dict()
    values[CONFIG_DIGEST] = digest_of_config(values)
    values |= config_keys(description.heads, task)
    write_preprocessor(folder, config)
    write_text(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")


def describe_model(model: Encoder) -> Description:
    """A model's description."""
    task = None if model.classifier is None else model.classifier.task
    return Description(model.config, model.heads is not None, task)


def save_model(
    folder: Path,
    model: Encoder,
    extras: dict[str, Tensor] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``; ``weights`` stand in for the model's own."""
    tensors = dict(weights or model.state_dict()) | {EXTRAS + k: v for k, v in (extras or {}).items()}
    save_config(folder, describe_model(model))
    write_tensors(folder / WEIGHTS_FILE, tensors)


def read_config(folder: Path) -> Description:
    """What the directory holds. Raises ``ConfigError``, ``CheckpointError``."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        folds = sorted(path.parent for path in folder.glob(f"fold-*/{CONFIG_FILE}"))
        if folds:
            raise CheckpointError(
                f"{folder}: fine-tuning has not finished there; start its command again, or give a fold such as "
                f"{folds[-1]}"
            )
        raise CheckpointError(f"{folder}: holds no {CONFIG_FILE}, so it is no run or model directory")
    values = read_json(path)
    check_config_digest(values, path)
    encoder = values.get("encoder")
    if values.get("format") != FORMAT or not isinstance(encoder, str) or encoder not in ENCODERS:
        raise CheckpointError(
            f"{path}: format {shorten(values.get('format'))} with encoder {shorten(encoder)}, this version reads "
            f"format {FORMAT} with encoder {' or '.join(map(repr, ENCODERS))}"
        )
    config, heads, task = values.get("config"), values.get("heads", False), values.get("classification")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: has no 'config' object")
    if not isinstance(heads, bool):
        raise CheckpointError(f"{path}: heads is {shorten(heads)}: give true or false")
    return Description(
        Config.from_dict({**config, "encoder": encoder}, str(path)),
        heads,
        None if task is None else Classification.from_dict(task, str(path)),
    )


def read_model(folder: Path) -> tuple[Description, dict[str, Tensor]]:
    """Description and tensors, extras included.

    Raises ``CheckpointError`` naming the file and what does not fit, ``ConfigError`` for a damaged ``config.json``.
    """
    description = read_config(folder)
    return description, read_weights(folder / WEIGHTS_FILE, description)


def read_weights(path: Path, description: Description) -> dict[str, Tensor]:
    """The tensors of a weights file, checked against what it is to hold. Raises ``CheckpointError`` naming the file."""
    # Shapes first: a configuration that the weights do not fit takes no memory.
    _check_fit(path, description)
    tensors = load_tensors(path)
    check_tensors(tensors, path)
    return tensors


def _check_fit(path: Path, description: Description) -> None:
    """Compare names, shapes and types in the file's header with those of the model. Raises ``CheckpointError``."""
    entries = read_header(path).entries
    with torch.device("meta"):
        expected = make_encoder(description.config, description.heads, description.classification).state_dict()
    problems = [f"missing {k}" for k in expected if k not in entries]
    problems += [f"unexpected {_short(k)}" for k in entries if k not in expected and not k.startswith(EXTRAS)]
    problems += [
        f"{k} has shape {entries[k].shape}, {CONFIG_FILE} says {tuple(v.shape)}"
        for k, v in expected.items()
        if k in entries and entries[k].shape != tuple(v.shape)
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path}: {'; '.join(problems[:5])}{more}")
    for name, entry in entries.items():
        check_type(name, entry.dtype, path)


def _short(name: str) -> str:
    """A foreign name for a message."""
    return shorten(name)[1:-1]


def build(description: Description, tensors: dict[str, Tensor]) -> Encoder:
    """A model out of tensors that fit it, without drawing initial weights. Tensors of parts it lacks are left out."""
    return build_as(KINDS, description, tensors)


def build_as(kinds: Mapping[str, type[Kind]], description: Description, tensors: dict[str, Tensor]) -> Kind:
    """As ``build``, of the class that ``kinds`` has for the kind of encoder."""
    with torch.device("meta"):
        model = kinds[description.config.encoder](description.config, description.heads, description.classification)
    wanted = model.state_dict()
    model.load_state_dict({k: tensors[k].to(torch.float32) for k in wanted}, assign=True)
    return model
