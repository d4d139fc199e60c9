"""``rejection.safetensors`` in a run directory: what tells unlike sounds, bound to the weights it was made with."""

from __future__ import annotations

from pathlib import Path

from ssamba.inference.rejection.score import DISTANCE_TENSORS, Rejection
from ssamba.models.pretrained.model_dir import WEIGHTS_FILE
from ssamba.utils.errors import CheckpointError, ConfigError
from ssamba.utils.tensor_file import DIGEST, read_header, read_tensors, renew_tensors

REJECTION_FILE = "rejection.safetensors"
_WEIGHTS = "weights"


def write_rejection(folder: Path, rejection: Rejection) -> None:
    """Write the file next to the weights that lie there. Raises ``SsambaError``."""
    digest = read_header(folder / WEIGHTS_FILE).metadata.get(DIGEST, "")
    renew_tensors(folder / REJECTION_FILE, rejection.tensors(), {_WEIGHTS: digest})


def read_rejection(folder: Path, values: int) -> Rejection | None:
    """What the folder holds for a classifier of ``values`` values; None without the file.

    Raises ``CheckpointError`` naming the file: damaged, of another form, or made with other weights.
    """
    path = folder / REJECTION_FILE
    if not path.is_file():
        return None
    tensors, metadata = read_tensors(path, digest_required=True)
    rejection = Rejection.of_tensors(tensors)
    if rejection is None:
        raise CheckpointError(
            f"{path}: does not hold {', '.join(sorted(DISTANCE_TENSORS))}; remove it or fit the run anew"
        )
    if metadata.get(_WEIGHTS, "") != read_header(folder / WEIGHTS_FILE).metadata.get(DIGEST, ""):
        raise CheckpointError(f"{path}: was made with other weights than {WEIGHTS_FILE} has; remove it")
    try:
        rejection.check(values, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    return rejection
