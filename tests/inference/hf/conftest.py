"""Folders of small models, recordings, and the classes of transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hf_models import CLASSES, shaken

from ssamba.inference.model import SSAMBA, make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model

WITHOUT_TRANSFORMERS = ("test_push.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of this folder that need transformers are skipped where it is not installed."""
    if importlib.util.find_spec("transformers") is not None:
        return
    skip = pytest.mark.skip(reason="transformers is not installed: pip install 'ssamba[transformers]'")
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in WITHOUT_TRANSFORMERS:
            item.add_marker(skip)


@pytest.fixture
def hf(one_thread: None) -> Any:
    """``ssamba.hf``, registered."""
    import ssamba

    ssamba.hf.register()
    return ssamba.hf


@pytest.fixture
def folder(tmp_path: Path, small_model: SSAMBA) -> Path:
    """A model directory with heads: 8 x 8 patches, two pairs of blocks."""
    save_model(tmp_path / "model", small_model)
    return tmp_path / "model"


@pytest.fixture
def task() -> Classification:
    return Classification(CLASSES)


@pytest.fixture
def classifying(tmp_path: Path, small_config: Config, task: Classification) -> Path:
    """A fine-tuned model's directory: three classes."""
    save_model(tmp_path / "fine", shaken(make_encoder(small_config, classification=task)))
    return tmp_path / "fine"


@pytest.fixture
def ssast_folder(tmp_path: Path) -> Path:
    config = Config(encoder="ssast", width=16, depth=2, frames=128, attention_heads=2, drop_path=0.0)
    save_model(tmp_path / "ssast", shaken(make_encoder(config, heads=True)))
    return tmp_path / "ssast"


@pytest.fixture
def waves() -> list[np.ndarray]:
    """Four recordings of different lengths, one of them longer than the grid of 128 frames, at 16 kHz."""
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(round(16000 * s))).astype(np.float32) for s in (0.3, 0.71, 1.29, 3.3)]


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """Two channels at 44.1 kHz, longer than the grid."""
    path = tmp_path / "sound.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal((100000, 2)), 44100)
    return path


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """No bars in the tests' output."""
    if importlib.util.find_spec("transformers") is not None:
        from transformers.utils import logging

        logging.disable_progress_bar()
