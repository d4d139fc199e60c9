"""Features kept on disk between probes, under names that depend on everything that the features depend on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ssamba.audio.front_end import PUBLISHED
from ssamba.data.examples import Example
from ssamba.evaluation.probe.features import LOG_MEL, Wanted, extract, layer_name, rows_name
from ssamba.inference.file_stream import Progress
from ssamba.inference.model import Encoder
from ssamba.models.pretrained.digest import model_key
from ssamba.models.pretrained.model_dir import load_tensors
from ssamba.utils.errors import AudioError, CheckpointError
from ssamba.utils.tensor_file import write_tensors

FEATURES_FORMAT = 2
"""Increased when features are computed in another way, so that older ones are no longer read."""


def data_key(layout: str, examples: Sequence[Example]) -> str:
    """A hash of which audio is read: keys, stretches, and each file's size and time of change.

    Raises ``AudioError`` for a file that is not there.
    """
    digest = hashlib.blake2b(layout.encode(), digest_size=16)
    for example in examples:
        digest.update(repr(example.key).encode("utf-8", "surrogateescape"))
        for part in example.parts:
            try:
                status = os.stat(part.path)
            except OSError as error:
                raise AudioError(part.path, f"cannot be read ({error.strerror})") from None
            digest.update(repr((part.start, part.seconds, part.at, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def cached_features(
    folder: Path | None,
    layout: str,
    examples: Sequence[Example],
    model: Encoder,
    layers: Sequence[int],
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], bool]:
    """Features of ``extract`` for these layers and log-mel, and whether all of them were read from ``folder``.

    One layer alone comes with its rows; for many of them that would be much to keep.

    What is missing there, was damaged or belongs to another model or data set is computed and written. Without a
    folder nothing is kept. Raises ``AudioError``, and ``SsambaError`` when the folder cannot be written.
    """
    data = data_key(layout, examples)
    front_end = model.config.front_end
    bands = () if front_end.same_bands(PUBLISHED) else (front_end.description,)
    plain = None if folder is None else _path(folder, "log-mel", data, *bands)
    layer_file = None if folder is None else _path(folder, "layers", data, model_key(model), *map(str, layers))
    rows = len(layers) == 1 and model.config.grid[0] > 1
    names = [name(layer) for layer in layers for name in ((layer_name, rows_name) if rows else (layer_name,))]
    found = _read(plain, [LOG_MEL], len(examples)) | _read(layer_file, names, len(examples))
    missing = Wanted(None if names[0] in found else model, tuple(layers), LOG_MEL not in found, rows, front_end)
    if missing.model is None and not missing.log_mel:
        return found, True
    made = extract(examples, missing, progress)
    if plain is not None and missing.log_mel:
        write_tensors(plain, {LOG_MEL: made[LOG_MEL]})
    if layer_file is not None and missing.model is not None:
        write_tensors(layer_file, {name: made[name] for name in names})
    return found | made, False


def _path(folder: Path, kind: str, *key: str) -> Path:
    digest = hashlib.blake2b(" ".join([str(FEATURES_FORMAT), kind, *key]).encode(), digest_size=8).hexdigest()
    return folder / f"{kind}-{digest}.safetensors"


def _read(path: Path | None, names: Sequence[str], rows: int) -> dict[str, Tensor]:
    """These tensors of a file; none when it is not there, or is not what it should be."""
    if path is None or not path.is_file():
        return {}
    try:
        tensors = load_tensors(path)
    except CheckpointError:
        return {}
    if any(name not in tensors or len(tensors[name]) != rows for name in names):
        return {}
    return {name: tensors[name] for name in names}
