"""A folder for the Hugging Face hub: weights, configurations, the plain modules and a model card."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ssamba.inference.hf.card import model_card
from ssamba.models.pretrained.load import ModelSource, locate, read_model_source
from ssamba.models.pretrained.model_dir import CONFIG_FILE, WEIGHTS_FILE, save_config
from ssamba.models.pretrained.transformers_files import MODEL_MAP, write_preprocessor
from ssamba.utils.atomic_write import explain, make_folder, write_text
from ssamba.utils.errors import ConfigError
from ssamba.utils.files import read_text
from ssamba.utils.json_text import read_json
from ssamba.utils.tensor_file import write_tensors

CODE = ("configuration_ssamba.py", "encoder_ssamba.py", "feature_extraction_ssamba.py", "modeling_ssamba.py")
CARD_FILE = "README.md"


def code_file(name: str) -> Path:
    """A module in plain torch, as it lies in the package."""
    return Path(__file__).parent / "plain" / name


def write_code(folder: Path) -> None:
    """Copy the modules in plain torch into a folder. Raises ``SsambaError`` when it cannot be written."""
    for name in CODE:
        try:
            shutil.copyfile(code_file(name), folder / name)
        except OSError as error:
            raise explain(error, folder / name) from None


def export(
    source: ModelSource | None,
    folder: str | os.PathLike[str],
    name: str | None = None,
    licence: str | None = None,
    card: str | os.PathLike[str] | None = None,
    remote_code: bool = True,
) -> list[Path]:
    """Write a model of any kind that ``ssamba.load`` takes into a new folder, as the hub wants it; gives its files.

    ``ssamba.load`` and transformers read the folder, with ``remote_code`` (and ``trust_remote_code=True`` there) also
    where ssamba is not installed. Weights keep their precision. ``name`` and ``licence`` are for the model card;
    ``card`` is a file to take instead. Raises ``ConfigError`` for a folder that holds files, and as ``ssamba.load``.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists already and is no empty folder; give a new name")
    text = None if card is None else read_text(card)
    description, tensors = read_model_source(source)
    make_folder(folder)
    save_config(folder, description)
    write_preprocessor(folder, description.config, remote_code)
    if remote_code:
        values = read_json(folder / CONFIG_FILE) | {"auto_map": MODEL_MAP}
        write_text(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")
        write_code(folder)
    write_tensors(folder / WEIGHTS_FILE, tensors)
    if text is None:
        text = model_card(name or folder.name, description, tensors, locate(source), licence, remote_code)
    write_text(folder / CARD_FILE, text)
    return sorted(folder.iterdir())
