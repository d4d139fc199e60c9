"""The digest of ``config.json``: a changed number there changes every output, and nothing else would tell.

It covers what ssamba reads (``OWN_KEYS``), not what transformers adds. A file without one is accepted: those of older
versions, of transformers, and those whose digest a user removed after an edit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssamba.utils.errors import CheckpointError

OWN_KEYS = ("format", "encoder", "heads", "config", "classification")
CONFIG_DIGEST = "digest"
"""Key in ``config.json``."""


def digest_of_config(values: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the values under ``OWN_KEYS`` as JSON without spaces, keys sorted."""
    own = {key: values[key] for key in OWN_KEYS if key in values}
    return hashlib.sha256(json.dumps(own, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_config_digest(values: Mapping[str, Any], path: Path | str) -> None:
    """Refuse values that their digest does not fit. Raises ``CheckpointError`` that names ``path``."""
    stated = values.get(CONFIG_DIGEST)
    if stated is not None and stated != digest_of_config(values):
        raise CheckpointError(
            f"{path}: is damaged or was edited (its content does not fit its digest); restore it from a copy, or, if "
            f'you edited it on purpose, remove its line "{CONFIG_DIGEST}"'
        )
