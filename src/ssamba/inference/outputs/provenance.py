"""Where an output on disk comes from: version, model, weights, grid and options, kept with the numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssamba import __version__
from ssamba.data.labels.formats import SIDECAR_SUFFIX
from ssamba.inference.model import Encoder
from ssamba.models.pretrained.digest import add_tensors, model_key
from ssamba.utils.atomic_write import NAME_LIMIT, write_text
from ssamba.utils.errors import DataError
from ssamba.utils.files import check_regular, read_text, sha256_of, stored_name
from ssamba.utils.json_text import dump_json, parse_json, read_json

INDEX_TABLE = "index.json"
"""The table of an index, in its folder."""
KEY = "provenance"
"""Name of the array in a .npz and of the entry in JSON."""
PARQUET_KEY = b"ssamba.provenance"
"""Key of the JSON text in a Parquet schema's metadata."""
OUTPUT_LIMIT = 1 << 30
"""Most bytes of a JSON output whose provenance is read."""


def provenance_of(model: Encoder, output: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is written with an output of ``model``, as plain values of JSON (docs/embedding.md, "Provenance").

    ``output`` says what the rows are: "embedding", "scores", "events" or "index". ``options`` are those that change
    them.
    """
    config = model.config
    found: dict[str, Any] = {
        "ssamba": __version__,
        "output": output,
        "model": stored_name(model.source).encode("utf-8", "backslashreplace").decode(),
        "model_digest": model_key(model),
        "encoder": config.encoder,
        "layer": config.depth,
        "dtype": str(model.positions.dtype).removeprefix("torch."),
        "sample_rate": config.sample_rate,
        "grid": {
            "rows": config.grid[0],
            "columns": config.grid[1],
            "frames": config.frames,
            "stride_frequency": config.stride_frequency,
            "stride_time": config.stride_time,
        },
        "options": dict(options),
    }
    if output not in ("embedding", "index") and model.classifier is not None:
        found["classifier_digest"] = _classifier_key(model)
    return found


def _classifier_key(model: Encoder) -> str:
    assert model.classifier is not None
    digest = hashlib.blake2b(json.dumps(model.classifier.task.to_dict(), sort_keys=True).encode(), digest_size=16)
    add_tensors(digest, model.classifier.state_dict())
    return digest.hexdigest()


def write_sidecar(out: Path, provenance: Any) -> None:
    """Write the provenance of a finished table as text next to it, with the SHA-256 of the bytes that it is of."""
    write_text(sidecar_of(out), dump_json({KEY: provenance, "sha256": sha256_of(out)}, indent=1) + "\n")


def sidecar_of(out: Path) -> Path:
    """The file that holds the provenance of a table as text; a name that would be too long becomes its hash."""
    name = os.fsencode(out.name)
    if len(name) + len(SIDECAR_SUFFIX) > NAME_LIMIT:
        return out.with_name(hashlib.blake2b(name, digest_size=16).hexdigest() + SIDECAR_SUFFIX)
    return out.with_name(out.name + SIDECAR_SUFFIX)


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of what ``ssamba embed`` or ``predict`` wrote: .npz, .parquet, .json, .jams, .csv or .txt.

    ``path`` may also be the folder of an index. Of a file of several models it is {"models": [...]}. Raises
    ``DataError`` for a file without it, and for a table that is not the one its provenance was written for.
    """
    if path.is_dir():
        path = path / INDEX_TABLE
    check_regular(path, DataError)
    reader = {".npz": _of_npz, ".parquet": _of_parquet, ".json": _of_json, ".jams": _of_jams}.get(
        path.suffix, _of_sidecar
    )
    found = reader(path)
    if isinstance(found, list):
        found = {"models": found}
    if not isinstance(found, dict):
        raise DataError(
            f"{path}: does not say where it comes from; ssamba embed, predict and index of today write that"
        )
    return found


def _of_npz(path: Path) -> Any:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            text = str(arrays[KEY]) if KEY in arrays else None
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(f"{path}: is no .npz that can be read ({problem})") from None
    return None if text is None else parse_json(text, str(path), DataError)


def _of_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as file:  # a name of any bytes
            text = (pq.read_schema(file).metadata or {}).get(PARQUET_KEY)
    except pa.ArrowException as problem:
        raise DataError(f"{path}: is no Parquet file ({problem})") from None
    return None if text is None else parse_json(text.decode("utf-8", "replace"), str(path), DataError)


def _of_sidecar(path: Path) -> Any:
    held_in = sidecar_of(path)
    if not held_in.exists():
        return None
    held = read_json(held_in, DataError)
    if held.get("sha256") != sha256_of(path, DataError):
        raise DataError(f"{held_in}: is of another content of {path.name}, which was changed since")
    return held.get(KEY)


def _of_json(path: Path) -> Any:
    content = parse_json(read_text(path, OUTPUT_LIMIT, DataError), str(path), DataError)
    heads = content.get("models")
    if isinstance(heads, list) and all(isinstance(head, dict) and KEY in head for head in heads):
        return [head[KEY] for head in heads]
    return content.get(KEY)


def _of_jams(path: Path) -> Any:
    annotations = parse_json(read_text(path, OUTPUT_LIMIT, DataError), str(path), DataError).get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    sandbox = first.get("sandbox") if isinstance(first, dict) else None
    return sandbox.get(KEY) if isinstance(sandbox, dict) else None
