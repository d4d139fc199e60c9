"""The space in which recordings are compared: which layer is read, and two linear maps of what it gives.

One map is for the mean of many columns (a piece of a recording), one for a single patch column. Both centre, and weigh
directions by how much they tell recordings apart: learned for the model in the package, from the collection for others.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ssamba.inference.load import load
from ssamba.inference.model import Encoder
from ssamba.inference.search.arrays import FloatArray
from ssamba.inference.search.columns import Level
from ssamba.models.pretrained.load import ModelSource
from ssamba.utils.device import pick_device, pick_dtype
from ssamba.utils.errors import CheckpointError, ConfigError
from ssamba.utils.json_text import parse_json
from ssamba.utils.tensor_file import read_tensors, write_tensors

KINDS_OF_SPACE = ("learned", "fitted", "plain")
"""Learned on pairs of clean and degraded audio, whitened by the collection itself, or none at all."""
SPACES = ("auto", "fitted", "plain")
"""What may be asked for: auto takes the learned space where there is one, else a fitted one, else the plain one."""
ENOUGH_RECORDINGS = 50
"""Recordings from which a space can be fitted."""
PIECE_VALUES, COLUMN_VALUES = 128, 64
"""Values of a fitted space's vectors, where there is data for as many."""
_ARRAYS = ("piece_mean", "piece_map", "column_mean", "column_map")
_FACTS = "ssamba_space"
"""Tensors of a space's file, and the key of its other values in the metadata."""
SPACE_SHRINKAGE = 0.1
"""Share of the mean variance that is added to each direction's before whitening."""


@dataclass(frozen=True)
class Space:
    """Where vectors are compared by their cosine.

    ``kind`` of ``KINDS_OF_SPACE``. ``layer`` is the model's, from 1. ``piece_map`` (v, k) and ``piece_mean`` (v,) act
    on the mean of columns, ``column_map`` (v, c) and ``column_mean`` (v,) on one; v is rows of patches * width.
    ``digest``: of the model's weights.
    """

    kind: str
    digest: str
    layer: int
    level: Level | None
    piece_mean: FloatArray
    piece_map: FloatArray
    column_mean: FloatArray
    column_map: FloatArray

    def columns(self, vectors: FloatArray, audible: FloatArray) -> FloatArray:
        """(n, v) -> (n, c) of length 1, and 0 where nothing is audible."""
        return _unit((vectors - self.column_mean) @ self.column_map) * audible[:, None]

    def pieces(self, means: FloatArray) -> FloatArray:
        """Means of columns (n, v) -> (n, k) of length 1; a mean that is all 0, of silence, stays 0."""
        audible = np.any(means != 0, axis=1, keepdims=True)
        return _unit((means - self.piece_mean) @ self.piece_map) * audible


def _unit(vectors: npt.NDArray[np.floating]) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def weights_digest(model: Encoder) -> str:
    """SHA-256 of the encoder's weights in fp32 and its shape; heads and classifier take no part."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.split(".")[0] not in ("heads", "classifier", "decoder"):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).tobytes())
    return digest.hexdigest()


class StoredModel(NamedTuple):
    """A model at work, perhaps rounded to 16 bits, and the digest of its weights as they are stored."""

    model: Encoder
    digest: str


def load_stored(source: ModelSource | Encoder | None, device: str = "auto", dtype: str = "fp32") -> StoredModel:
    """``ssamba.load``, and the digest by which an index knows the model at any ``dtype``.

    A model in memory is taken as it is.
    """
    if isinstance(source, Encoder):
        return StoredModel(source, weights_digest(source))
    kind = pick_dtype(dtype, pick_device(device))
    model = load(source, device)
    digest = weights_digest(model)
    return StoredModel(model.to(kind), digest)


def default_layer(model: Encoder) -> int:
    """The layer that a space for a model without a learned one reads: two thirds of the way up."""
    return max(1, round(model.n_layers * 2 / 3))


def learned_space(digest: str) -> Space | None:
    """The space that comes with the package for the model of that digest, None when there is none."""
    path = Path(str(files("ssamba.inference.search"))) / "tiny_space.safetensors"
    if not path.is_file():
        return None
    space = load_space(path, digest_required=True)
    return space if space.digest == digest else None


def plain_space(model: Encoder, digest: str, level: Level | None) -> Space:
    """Without a fit: the last layer's columns, each the mean over its rows."""
    width, rows = model.config.width, model.config.grid[0]
    mean: FloatArray = np.zeros(rows * width, np.float32)
    average: FloatArray = np.tile(np.eye(width, dtype=np.float32) / np.float32(rows), (rows, 1))
    return Space("plain", digest, model.n_layers, level, mean, average, mean, average)


def fitted_space(digest: str, layer: int, level: Level | None, pieces: FloatArray, columns: FloatArray) -> Space:
    """Centred and whitened by a collection's piece means (n, v) and column vectors (m, v)."""
    piece_mean, piece_map = whitening(pieces, PIECE_VALUES)
    column_mean, column_map = whitening(columns, COLUMN_VALUES)
    return Space("fitted", digest, layer, level, piece_mean, piece_map, column_mean, column_map)


def whitening(samples: FloatArray, values: int, shrinkage: float = SPACE_SHRINKAGE) -> tuple[FloatArray, FloatArray]:
    """Mean (v,) and map (v, k) of samples (n, v) onto their first ``values`` directions, whitened with shrinkage.

    k is at most half of the samples: the last directions of few samples are noise.
    """
    mean = samples.mean(axis=0, dtype=np.float64).astype(np.float32)
    _, scale, directions = torch.linalg.svd(torch.from_numpy(samples - mean), full_matrices=False)
    k = max(1, min(values, len(samples) // 2, len(scale)))
    variance = (scale.double().square() / len(samples))[:k]
    weights = (variance + shrinkage * variance.mean() + 1e-12).rsqrt()
    return mean, (directions[:k].double() * weights[:, None]).T.float().contiguous().numpy()


def save_space(path: Path, space: Space, dtype: torch.dtype = torch.float32) -> None:
    """Write a space whole or not at all. Raises ``SsambaError`` when it cannot be written."""
    tensors = {name: torch.tensor(getattr(space, name), dtype=dtype, device="cpu") for name in _ARRAYS}
    level = None if space.level is None else asdict(space.level)
    facts = {"kind": space.kind, "digest": space.digest, "layer": space.layer, "level": level}
    write_tensors(path, tensors, {_FACTS: json.dumps(facts)})


def load_space(path: Path, digest_required: bool = False) -> Space:
    """Read a space. Raises ``CheckpointError`` for a file that holds none, values that are not finite among it.

    ``digest_required`` refuses a file without a digest; indexes of earlier versions have such.
    """
    tensors, metadata = read_tensors(path, digest_required=digest_required)
    try:
        facts = parse_json(metadata[_FACTS], str(path))
        level = None if facts["level"] is None else Level(**{k: float(v) for k, v in facts["level"].items()})
        arrays = {name: tensors[name].float().numpy() for name in _ARRAYS}
        space = Space(str(facts["kind"]), str(facts["digest"]), int(facts["layer"]), level, **arrays)
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{path}: is no space of ssamba; make the index again") from None
    values = space.piece_mean.shape
    fits = len(values) == 1 and space.column_mean.shape == values
    fits = fits and all(m.ndim == 2 and m.shape[0] == values[0] for m in (space.piece_map, space.column_map))
    if not fits or not all(np.isfinite(a).all() for a in arrays.values()):
        raise CheckpointError(f"{path}: holds maps that do not fit each other or are not finite; make the index again")
    return space
