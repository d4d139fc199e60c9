"""Models that came with earlier versions: no longer looked up by a name, but loaded from what a user kept of them.

Their folder is a model directory as any other, under any name. Their weights alone are a file without a configuration:
it is known by its SHA-256, whatever it is called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssamba.utils.errors import CheckpointError
from ssamba.utils.files import sha256_of


@dataclass(frozen=True)
class EarlierModel:
    """What stands for a model of an earlier version.

    ``release`` is the last one that has it. ``size`` (bytes) and ``sha256`` are those of its ``model.safetensors``,
    which has pretraining heads; ``config`` is the object of that name in its ``config.json``, with the encoder.
    """

    name: str
    release: str
    size: int
    sha256: str
    config: Mapping[str, Any]


TINY_0_1 = EarlierModel(
    name="tiny-0.1",
    release="0.2.0",
    size=14_047_288,
    sha256="a2f709a2be1d91066f7806bf943dbf7b8687ff2131a45fda28da8e0a46528607",
    config={
        "encoder": "ssamba",
        "width": 192,
        "depth": 24,
        "frames": 208,
        "patch_frequency": 16,
        "patch_time": 16,
        "stride_frequency": 16,
        "stride_time": 16,
        "state_size": 16,
        "expand": 2,
        "conv_width": 4,
        "dt_rank": 12,
        "directions": 2,
        "residual_scale": 1,
        "drop_path": 0.0,
        "mel_bins": 128,
        "sample_rate": 16000,
        "mean": -6.867616899595753,
        "std": 4.813886693960385,
    },
)
EARLIER = {model.name: model for model in (TINY_0_1,)}


def earlier_weights(path: Path) -> EarlierModel | None:
    """The earlier model whose weights a file holds, byte for byte; None for every other file.

    Only a file of exactly that size is read. Raises ``CheckpointError`` when it cannot be.
    """
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError):
        return None
    for model in EARLIER.values():
        if size == model.size and sha256_of(path, CheckpointError) == model.sha256:
            return model
    return None
