"""Official `.pth` <-> model directory, tensor for tensor."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ssamba.config import Config
from ssamba.errors import CheckpointError, ConfigError, SsambaError
from ssamba.files import beside, explain, make_folder
from ssamba.interop.official import PREFIX, from_official, to_official
from ssamba.loading import read_source
from ssamba.models.store import EXTRAS, WEIGHTS_FILE, read_model, save_config, save_tensors

CLASSES = 1000
"""Outputs of the unused head that the reference's files carry."""
UNUSED_HEADS = {"ssamba": ("v.head",), "ssast": ("v.head", "v.head_dist")}
UNSTORED = ("mean", "std", "drop_path")
"""Values of the configuration that an official file has no place for; readers assume the reference's."""


def convert(source: str | os.PathLike[str], dest: Path) -> list[str]:
    """Convert an official `.pth` to a new model directory, or a directory to a new official `.pth`.

    Returns lines to show: what was written, and what the official form could not hold. Raises ``SsambaError`` when
    ``dest`` exists, is of the wrong kind or cannot be written; then nothing is left behind.
    """
    path = Path(source)
    if dest.exists() or dest.is_symlink():
        raise SsambaError(f"{dest}: exists already; give a new name, or remove it first")
    if path.is_dir():
        if dest.suffix != ".pth":
            raise ConfigError(
                f"{dest}: a model directory is converted to an official file, give a name that ends in .pth"
            )
        return _to_file(path, dest)
    if dest.suffix in (".pth", ".pt", ".safetensors"):
        raise ConfigError(f"{dest}: an official file is converted to a directory, give a name without '{dest.suffix}'")
    return _to_directory(path, dest)


def _to_directory(path: Path, dest: Path) -> list[str]:
    description, tensors = read_source(path)
    heads = description.heads
    with _new_directory(dest) as folder:
        save_config(folder, description)
        save_tensors(folder / WEIGHTS_FILE, tensors)
    return [f"{dest}: {len(tensors)} tensors {'with' if heads else 'without'} pretraining heads"]


@contextlib.contextmanager
def _new_directory(dest: Path) -> Iterator[Path]:
    """A temporary directory beside ``dest``, renamed to it when the block ends well and removed otherwise."""
    made = _missing_parents(dest)
    make_folder(dest.parent)
    folder = dest.with_name(f".{dest.name}.{secrets.token_hex(4)}")
    try:
        folder.mkdir()
        yield folder
        os.rename(folder, dest)
        made = []
    except OSError as error:
        raise explain(error, dest) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _missing_parents(path: Path) -> list[Path]:
    """Parents that do not exist, the innermost first."""
    return [parent for parent in path.parents if not parent.exists()]


def _to_file(path: Path, dest: Path) -> list[str]:
    description, tensors = read_model(path)
    config = description.config
    if description.classification is not None:
        raise CheckpointError(f"{path}: the official form has no place for a classifier; no file was written")
    state = official_state(config, tensors)
    back, _ = from_official(state, str(path), config.attention_heads or None)
    lost = {k: v for k, v in config.to_dict().items() if back.to_dict()[k] != v}
    if set(lost) - set(UNSTORED):
        names = ", ".join(sorted(set(lost) - set(UNSTORED)))
        raise CheckpointError(f"{path}: the official form has no place for this model's {names}; no file was written")
    with beside(dest) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # how torch's archive writer reports a full disk
            raise OSError(str(error).splitlines()[0]) from None
    lines = [f"{dest}: {len(state)} tensors in the official form"]
    return lines + [f"note: the official form does not hold {name} {value}" for name, value in lost.items()]


def official_state(config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an official file, from a directory's tensors.

    Tensors that the reference's loader expects and the model does not use are those that the directory kept from its
    own official file, else zeros (`v.head`) and the input's size (`p_input_*`).
    """
    weights = {k: v for k, v in tensors.items() if not k.startswith(EXTRAS)}
    extras = {
        "p_input_fdim": torch.tensor(config.mel_bins),
        "p_input_tdim": torch.tensor(config.frames),
    }
    for head in UNUSED_HEADS[config.encoder]:
        extras |= {f"{head}.weight": torch.zeros(CLASSES, config.width), f"{head}.bias": torch.zeros(CLASSES)}
    extras |= {k.removeprefix(EXTRAS): v for k, v in tensors.items() if k.startswith(EXTRAS)}
    return {PREFIX + k: v for k, v in extras.items()} | to_official(weights)
