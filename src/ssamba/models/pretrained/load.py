"""``ssamba.load``: one way in for every kind of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ssamba.models.config import WIDTHS, Config
from ssamba.models.pretrained import hub
from ssamba.models.pretrained.model_dir import Description, read_config, read_model, read_weights
from ssamba.models.pretrained.official import EXTRAS_OF, PREFIX, from_official
from ssamba.models.pretrained.pth_file import read_pth
from ssamba.models.pretrained.weights import DEFAULT, SHIPPED, shipped_folder
from ssamba.utils.errors import CheckpointError, ConfigError, nearest

ModelSource = str | os.PathLike[str]
SHAPE = ("encoder", "size", "width", "depth", "directions", "decay", "scan", "residual_scale")
LONGEST_NAME = 60
"""Nothing longer is compared with the names of models."""


def model_names() -> list[str]:
    """Every name that stands for a model: those that come with the package, then the official checkpoints."""
    return [*SHIPPED, *hub.OFFICIAL]


def locate(source: ModelSource | None = None) -> Path:
    """Where a model lies: a path as it is, a name's folder or (downloaded) file, and for None the shipped default.

    Raises ``ConfigError`` for a name that a directory here has too, ``CheckpointError`` for what is neither name nor
    path and for a model that cannot be had.
    """
    if source is None:
        return shipped_folder(DEFAULT)
    name, path = os.fspath(source), Path(source)
    if name in model_names():
        if os.path.exists(path):
            raise ConfigError(f"{name}: names a model and also lies in this folder; give ./{name} for what lies here")
        return shipped_folder(name) if name in SHIPPED else hub.fetch(name)
    if not os.path.exists(path):
        raise CheckpointError(f"{source}: no such file or directory{_instead(name)}")
    return path


def _instead(name: str) -> str:
    """What to give instead of what is not there; the names too where a name can have been meant."""
    from ssamba.models.pretrained.weights.earlier import EARLIER

    if name in EARLIER:
        return f"; it is the model of ssamba {EARLIER[name].release}: docs/models/tiny.md says how to get its folder"
    if os.path.basename(name) != name or len(name) > LONGEST_NAME:
        return "; give a run directory, an official .pth or the name of a model"
    near = nearest(name.removesuffix(".pth"), model_names())
    return f"{near or ', and no model of that name.'} Models are named {', '.join(model_names())}"


def read_model_source(
    source: ModelSource | None = None, attention_heads: int | None = None
) -> tuple[Description, dict[str, Tensor]]:
    """Description and tensors of a model's name, of a run or model directory or of an official `.pth`.

    A file with the weights of a model that came with an earlier version is read too.

    Raises ``CheckpointError``, or ``ConfigError`` for a damaged ``config.json``.
    """
    path = locate(source)
    if path.is_dir():
        return read_model(path)
    from ssamba.models.pretrained.weights.earlier import earlier_weights

    if (earlier := earlier_weights(path)) is not None:
        description = Description(Config.from_dict(dict(earlier.config), str(path)), heads=True)
        return description, read_weights(path, description)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{source}: weights alone do not make a model, give the directory that holds them")
    if source not in hub.OFFICIAL:
        return _read_official(path, attention_heads)
    try:
        description, tensors = _read_official(path, attention_heads)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}; remove that file to download it again") from None
    if description.config.width != hub.width_of(str(source)):
        raise CheckpointError(f"{source}: {path} holds a model of width {description.config.width}, which is another")
    return description, tensors


def _read_official(path: Path, attention_heads: int | None) -> tuple[Description, dict[str, Tensor]]:
    state = read_pth(path)
    config, tensors = from_official(state, str(path), attention_heads)
    bare = {k.removeprefix(PREFIX): v for k, v in state.items()}
    extras = {f"extras.{k}": bare[k] for k in EXTRAS_OF[config.encoder] if k in bare}
    return Description(config, any(k.startswith("heads.") for k in tensors)), tensors | extras


def check_shape(source: ModelSource | None, given: Mapping[str, Any]) -> None:
    """Refuse values of an encoder's shape that a user gave with a source of another: the source's would be taken.

    ``given`` may hold what ``SHAPE`` names, as recipes do; 0 says nothing. Without a source all may be given. Raises
    ``ConfigError``, and as ``read_model_source``.
    """
    wanted = {name: given[name] for name in SHAPE if given.get(name)}
    if source is None or not wanted:
        return
    path = locate(source)
    config = (read_config(path) if path.is_dir() else read_model_source(source)[0]).config
    sizes = {width: size for size, width in WIDTHS.items()}
    for name, value in wanted.items():
        own = sizes.get(config.width, f"width {config.width}") if name == "size" else getattr(config, name)
        if value != own:
            raise ConfigError(
                f"{source}: has {name} {own}, the command says {value}; leave --{name.replace('_', '-')} out, or start "
                "from random weights"
            )
