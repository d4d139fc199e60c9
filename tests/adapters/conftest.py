"""Folders of models in miniature, and the audio of the contracts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssamba.inference.model import SSAMBA, make_encoder
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model


@pytest.fixture
def folder(tmp_path: Path, small_model: SSAMBA, one_thread: None) -> str:
    """A model directory: 8 x 8 patches, two pairs of blocks, width 16."""
    save_model(tmp_path / "model", small_model)
    return str(tmp_path / "model")


@pytest.fixture
def bats(tmp_path: Path, one_thread: None) -> str:
    """A model of 96 kHz, which no other package's interface has."""
    save_model(tmp_path / "bats", make_encoder(Config(width=16, depth=2, frames=64, state_size=4, sample_rate=96000)))
    return str(tmp_path / "bats")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> Tensor:
    """Three sounds of 2.1 s, longer than the grid of 1.28 s."""
    return noise(3, 33700)


@pytest.fixture
def unequal() -> list[Tensor]:
    """Sounds from a sample to beyond the grid."""
    return [noise(n, seed=n) for n in (33700, 1, 800, 2561, 16000)]


@pytest.fixture
def damaged() -> Tensor:
    audio = noise(2, 8000)
    audio[1, 77] = np.nan
    return audio
