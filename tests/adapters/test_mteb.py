"""mteb runs a task of its own kind on the adapter, without a network."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

import ssamba
from ssamba.utils.errors import AudioError, CheckpointError, ConfigError

mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install mteb")

from mteb.abstasks.classification import AbsTaskClassification  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import EncoderProtocol  # noqa: E402

from ssamba.adapters.mteb import SsambaMteb  # noqa: E402

METADATA = {
    "description": "three tones in noise",
    "dataset": {"path": "local", "revision": "1"},
    "type": "AudioClassification",
    "category": "a2c",
    "eval_splits": ["test"],
    "eval_langs": ["zxx-Zxxx"],
    "main_score": "accuracy",
    "date": ("2026-01-01", "2026-01-01"),
    "domains": ["AudioScene"],
    "task_subtypes": [],
    "license": "cc0-1.0",
    "annotations_creators": "derived",
    "dialect": [],
    "modalities": ["audio"],
    "sample_creation": "created",
    "bibtex_citation": "",
    "reference": None,
}


class Tones(AbsTaskClassification):
    """Classes by the height of a tone."""

    metadata = TaskMetadata(name="SsambaTones", **METADATA)
    input_column_name = "audio"
    label_column_name = "label"
    samples_per_label = 8
    is_cross_validation = False

    def load_data(self, **kwargs: Any) -> None:
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        rng = np.random.default_rng(0)
        t = np.arange(12000) / 16000

        def split(n: int) -> Any:
            heights = [(300, 1200, 3500)[i % 3] * rng.uniform(0.9, 1.1) for i in range(n)]
            sounds = [0.1 * np.sin(2 * np.pi * f * t) + 0.02 * rng.standard_normal(len(t)) for f in heights]
            audio = [{"array": sound.tolist(), "sampling_rate": 16000} for sound in sounds]
            return datasets.Dataset.from_dict({"audio": audio, "label": [i % 3 for i in range(n)]})

        self.dataset = datasets.DatasetDict(train=split(36), test=split(18))
        self.data_loaded = True


@pytest.fixture
def model(one_thread: None) -> SsambaMteb:
    return SsambaMteb("tiny", device="cpu")


def test_a_task_end_to_end(model: SsambaMteb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = mteb.evaluate(model, Tones(), cache=None, overwrite_strategy="always")
    (task,) = result.task_results
    assert task.get_score() > 0.9  # by chance 0.33
    assert result.model_name == "ssamba/tiny"
    assert result.model_revision == model.mteb_model_meta.revision


def test_the_protocol_and_the_meta_data(model: SsambaMteb, folder: str) -> None:
    assert isinstance(model, EncoderProtocol)
    meta = model.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.modalities) == ("ssamba/tiny", 192, ["audio"])
    other = SsambaMteb(folder, device="cpu", pool="rows").mteb_model_meta
    assert (other.name, other.embed_dim) == ("ssamba/model-rows", 2 * 8 * 16)
    assert other.revision != meta.revision
    # What meta.load_model does once it has found torchaudio, which mteb asks of every model of audio.
    again = other.loader(other.name, other.revision, device="cpu", **other.loader_kwargs)
    assert again.mteb_model_meta.revision == other.revision
    assert again.pool == "rows"
    similarity = np.asarray(model.similarity(np.eye(2, 192), np.eye(2, 192)))
    np.testing.assert_allclose(similarity, np.eye(2), atol=1e-6)


def encode(model: SsambaMteb, rows: list[Any], size: int = 2) -> np.ndarray:
    loader = DataLoader([{"audio": row} for row in rows], batch_size=size)
    return model.encode(loader, task_metadata=None, hf_split="test", hf_subset="default")


def test_recordings_of_every_form_are_as_alone(folder: str, tmp_path: Path) -> None:
    model = SsambaMteb(folder, device="cpu")
    rng = np.random.default_rng(0)
    sounds = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (400, 33700, 8000, 9000)]
    soundfile.write(tmp_path / "x.wav", sounds[0], 16000, subtype="FLOAT")
    encoded = io.BytesIO()
    soundfile.write(encoded, sounds[1], 16000, format="WAV", subtype="FLOAT")
    rows = [
        {"bytes": None, "path": str(tmp_path / "x.wav")},
        {"bytes": encoded.getvalue(), "path": "gone.wav"},
        {"array": sounds[2], "sampling_rate": 16000},
        {"array": np.stack([sounds[3], sounds[3]]), "sampling_rate": 44100},
        str(tmp_path / "x.wav"),
    ]
    found = encode(model, rows)
    assert found.dtype == np.float32
    expected = [model.model.embed(x, r).clip[0] for x, r in zip(sounds, (16000, 16000, 16000, 44100), strict=True)]
    np.testing.assert_allclose(found, torch.stack([*expected, expected[0]]), rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused(folder: str) -> None:
    model = SsambaMteb(folder, device="cpu")
    bad = {"array": np.full(8000, np.nan, np.float32), "sampling_rate": 16000}
    with pytest.raises(AudioError, match="recording 1: holds NaN"):
        encode(model, [bad, bad])
    with pytest.raises(AudioError, match="399 samples"):
        encode(model, [{"array": np.zeros(399, np.float32), "sampling_rate": 16000}])
    with pytest.raises(AudioError, match="no such file"):
        encode(model, ["nowhere.wav"])
    with pytest.raises(AudioError, match="recording 1: has neither array"):
        encode(model, [{"bytes": None, "path": None}])
    loader = DataLoader([{"text": "a"}])
    with pytest.raises(ConfigError, match="a batch has text: give tasks whose input is audio"):
        model.encode(loader, task_metadata=None, hf_split="test", hf_subset="default")
    with pytest.raises(ConfigError, match=r"its revision is [0-9a-f]{16}, not 'main'"):
        SsambaMteb(folder, "main")
    with pytest.raises(ConfigError, match="pool is 'max'"):
        SsambaMteb(folder, pool="max")
    with pytest.raises(CheckpointError, match="nowhere"):
        SsambaMteb("./nowhere")
    assert issubclass(CheckpointError, ssamba.SsambaError)
