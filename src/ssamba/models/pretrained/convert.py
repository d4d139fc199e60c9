"""Official `.pth` <-> model directory, tensor for tensor; and a model directory in half precision, to be shipped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.audio.front_end import FrontEnd
from ssamba.models.config import WIDTHS, Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.load import ModelSource, locate, read_model_source
from ssamba.models.pretrained.model_dir import EXTRAS, WEIGHTS_FILE, Description, build, read_model, save_config
from ssamba.models.pretrained.official import (
    PREFIX,
    doubling,
    from_official,
    to_official,
    with_free_decays,
    with_tied_decays,
)
from ssamba.models.pretrained.tensor_checks import check_tensors
from ssamba.utils.atomic_write import atomic_write, explain, make_folder, missing_parents, temporary_name
from ssamba.utils.errors import CheckpointError, ConfigError, SsambaError
from ssamba.utils.lock import lock_output
from ssamba.utils.tensor_file import write_tensors
from ssamba.utils.torch_defaults import HOST_FLOAT32

FILES = (".pth", ".pt", ".safetensors")
HALF = torch.float16
"""Of trained weights fp16 keeps 11 significant bits and bf16 8; they need its range nowhere (docs/embedding.md)."""
CLASSES = 1000
"""Outputs of the unused head that the reference's files carry."""
UNUSED_HEADS = {"ssamba": ("v.head",), "ssast": ("v.head", "v.head_dist")}
UNSTORED = ("mean", "std", "drop_path")
"""Values of the configuration that an official file has no place for; readers assume the reference's."""


def convert(
    source: ModelSource | None,
    dest: Path,
    half: bool = False,
    attention_heads: int | None = None,
    decay: str | None = None,
) -> list[str]:
    """Convert an official `.pth` to a new model directory, or a directory to a new official `.pth`.

    With ``half`` either becomes a new model directory in fp16. ``attention_heads`` is for an official SSAST of another
    width than the published, whose file does not say. ``decay`` "tied" makes a directory of tied decays from an
    official file whose decays are exactly those. Returns lines to show: what was written, and what the
    official form could not hold. Raises ``SsambaError`` when ``dest`` exists, is of the wrong kind or cannot be
    written; then nothing is left behind.
    """
    if dest.exists() or dest.is_symlink():
        raise SsambaError(f"{dest}: exists already; give a new name, or remove it first")
    with lock_output(dest):
        return _convert(source, dest, half, attention_heads, decay == "tied")


def _convert(source: ModelSource | None, dest: Path, half: bool, attention_heads: int | None, tie: bool) -> list[str]:
    path = locate(source)
    if tie and path.is_dir():
        raise ConfigError(f"{source}: --decay is for official files, this is a directory; leave --decay out")
    if half:
        if dest.suffix in FILES:
            raise ConfigError(f"{dest}: half precision goes to a directory, give a name without '{dest.suffix}'")
        return _to_half(source, dest, attention_heads, tie)
    if path.is_dir():
        if dest.suffix != ".pth":
            raise ConfigError(
                f"{dest}: a model directory is converted to an official file, give a name that ends in .pth"
            )
        return _to_file(path, dest)
    if dest.suffix in FILES:
        raise ConfigError(f"{dest}: an official file is converted to a directory, give a name without '{dest.suffix}'")
    return _to_directory(source, dest, attention_heads, tie)


def _read(source: ModelSource | None, attention_heads: int | None, tie: bool) -> tuple[Description, dict[str, Tensor]]:
    description, tensors = read_model_source(source, attention_heads)
    if not tie:
        return description, tensors
    config, tensors = with_tied_decays(description.config, tensors, str(source))
    return dataclasses.replace(description, config=config), tensors


def _to_directory(source: ModelSource | None, dest: Path, attention_heads: int | None, tie: bool) -> list[str]:
    description, tensors = _read(source, attention_heads, tie)
    heads = description.heads
    with _new_directory(dest) as folder:
        save_config(folder, description)
        write_tensors(folder / WEIGHTS_FILE, tensors)
    return [f"{dest}: {len(tensors)} tensors {'with' if heads else 'without'} pretraining heads"]


def _to_half(source: ModelSource | None, dest: Path, attention_heads: int | None, tie: bool) -> list[str]:
    """Everything that the model uses in fp16: its encoder, its pretraining heads or its classifier."""
    description, tensors = _read(source, attention_heads, tie)
    used = {k: v for k, v in tensors.items() if not k.startswith(EXTRAS)}
    halved = {k: v.to(HALF) for k, v in used.items()}
    lost = [k for k, v in halved.items() if not torch.isfinite(v).all()]
    if lost:
        raise CheckpointError(f"{source}: {lost[0]} has values that fp16 cannot hold; no directory was written")
    full, rounded = (build(description, x).eval() for x in (used, halved))
    with torch.no_grad():
        expected, found = (_clip_embedding(model) for model in (full, rounded))
    error = ((found - expected).norm() / expected.norm()).item()
    with _new_directory(dest) as folder:
        save_config(folder, description)
        write_tensors(folder / WEIGHTS_FILE, halved)
    size = (dest / WEIGHTS_FILE).stat().st_size / 1e6
    return [f"{dest}: {len(halved)} tensors in fp16, {size:.1f} MB; the embedding's relative error is {error:.1e}"]


def _clip_embedding(model: Encoder) -> Tensor:
    """Mean patch token (1, d) of the test sound, cut to the model's grid."""
    config = model.config
    front_end = config.front_end
    log_mels = log_mel.filter_bank(_test_sound(front_end), front_end)[: config.frames]
    features = front_end.normalise(log_mels)[None]
    return model.encode(features)[:, model.prefix_tokens :].mean(dim=1)


def _test_sound(front_end: FrontEnd) -> Tensor:
    """Ten seconds: a tone that rises through the whole band, in noise."""
    t = torch.arange(10 * front_end.sample_rate, **HOST_FLOAT32) / front_end.sample_rate
    noise = torch.randn(t.shape, generator=torch.Generator().manual_seed(0), **HOST_FLOAT32)
    return 0.2 * torch.sin(2 * torch.pi * (front_end.nyquist / 20) * t.square()) + 0.02 * noise


@contextlib.contextmanager
def _new_directory(dest: Path) -> Iterator[Path]:
    """A temporary directory next to ``dest``, renamed to it when the block ends well and removed otherwise."""
    made = missing_parents(dest)
    make_folder(dest.parent)
    folder = temporary_name(dest)
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


def _to_file(path: Path, dest: Path) -> list[str]:
    description, tensors = read_model(path)
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    config = description.config
    if description.classification is not None:
        raise CheckpointError(f"{path}: the official form has no place for a classifier; no file was written")
    if config.directions != 2:
        how = "" if config.scan == "forward" else " in each block"
        raise CheckpointError(f"{path}: the official form has two directions, this model one{how}; no file was written")
    if config.encoder == "ssamba" and config.residual_scale == 1:
        config, tensors = config.replace(residual_scale=2), doubling(tensors)
    notes = []
    if config.decay == "tied":
        config, tensors = with_free_decays(config, tensors)
        notes.append("note: the official form has a decay for each state: give --decay tied when the file is read")
    if description.heads and config.decoder_depth:
        # The heads read the decoder's tokens: without it they mean nothing.
        tensors = {k: v for k, v in tensors.items() if not k.startswith(("decoder.", "heads."))}
        notes.append("note: the official form does not hold the decoder, nor the heads that read it")
    if config.encoder == "ssast" and config.width not in WIDTHS.values():
        heads = config.attention_heads
        notes.append(f"note: the official form does not hold attention_heads {heads}: give it when the file is read")
    config = config.replace(decoder_depth=0)
    state = official_state(config, tensors)
    check_tensors(state, dest)  # a deep model's doubled stream may need numbers that no reader takes
    back, _ = from_official(state, str(path), config.attention_heads or None)
    lost = {k: v for k, v in config.to_dict().items() if back.to_dict()[k] != v}
    if set(lost) - set(UNSTORED):
        names = ", ".join(sorted(set(lost) - set(UNSTORED)))
        raise CheckpointError(f"{path}: the official form has no place for this model's {names}; no file was written")
    with atomic_write(dest) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # how torch's archive writer reports a full disk
            raise OSError(str(error).splitlines()[0]) from None
    lines = [f"{dest}: {len(state)} tensors in the official form"]
    return lines + notes + [f"note: the official form does not hold {name} {value}" for name, value in lost.items()]


def official_state(config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an official file, from a directory's tensors.

    Tensors that the reference's loader expects and the model does not use are those that the directory kept from its
    own official file, else zeros (`v.head`) and the input's size (`p_input_*`).
    """
    weights = {k: v for k, v in tensors.items() if not k.startswith(EXTRAS)}
    extras = {
        "p_input_fdim": torch.tensor(config.mel_bins, device="cpu"),
        "p_input_tdim": torch.tensor(config.frames, device="cpu"),
    }
    for head in UNUSED_HEADS[config.encoder]:
        extras |= {
            f"{head}.weight": torch.zeros(CLASSES, config.width, **HOST_FLOAT32),
            f"{head}.bias": torch.zeros(CLASSES, **HOST_FLOAT32),
        }
    extras |= {k.removeprefix(EXTRAS): v for k, v in tensors.items() if k.startswith(EXTRAS)}
    return {PREFIX + k: v for k, v in extras.items()} | to_official(weights)
