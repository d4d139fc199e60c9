"""Models of other sample rates and mel bins: the extractor brings recordings to the model's front end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hf_models import CLASSES, shaken
from test_models import auto

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.audio.log_mel import filter_bank
from ssamba.inference.model import make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import AudioError

CLOSE = 1e-5
FILE_RATE = 44_100


@pytest.fixture(params=[(32_000, 64), (22_050, 80), (8_000, 32)], ids=lambda p: f"{p[0]}-{p[1]}")
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A fine-tuned model of another front end; at 22,050 Hz frame and hop are no whole milliseconds."""
    rate, bins = request.param
    config = Config(width=16, depth=2, frames=64, state_size=4, sample_rate=rate, mel_bins=bins, mean=-5.0, std=3.0)
    save_model(tmp_path / "other", shaken(make_encoder(config, classification=Classification(CLASSES))))
    return tmp_path / "other"


@pytest.fixture
def recordings(other: Path) -> list[np.ndarray]:
    """Shorter than the grid and longer, at the model's rate."""
    rng, rate = np.random.default_rng(0), ssamba.load(other, "cpu").config.sample_rate
    return [(0.1 * rng.standard_normal(round(rate * s))).astype(np.float32) for s in (0.4, 1.7)]


@torch.no_grad()
def test_the_extractor_has_the_models_front_end(hf: Any, other: Path, recordings: list[np.ndarray]) -> None:
    reference, extractor = ssamba.load(other, "cpu"), auto(other, "AutoFeatureExtractor")
    front_end = reference.config.front_end
    assert (extractor.sampling_rate, extractor.feature_size) == (front_end.sample_rate, front_end.mel_bins)
    assert extractor.padding_value == front_end.pad_value == auto(other).config.silence
    batch = extractor(recordings, return_tensors="pt")
    for values, mask, wave in zip(batch["input_values"], batch["attention_mask"], recordings, strict=True):
        expected = front_end.normalise(filter_bank(torch.from_numpy(wave), front_end))
        assert int(mask.sum()) == len(expected)
        assert (values[: len(expected)] - expected).abs().max() < CLOSE
        assert (values[len(expected) :] == np.float32(front_end.pad_value)).all()
    pooled = auto(other)(**batch).pooler_output
    for found, wave in zip(pooled, recordings, strict=True):
        assert (found - reference.embed(wave, front_end.sample_rate).clip[0]).abs().max() < CLOSE


def test_files_and_arrays_of_any_rate(hf: Any, other: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    path, model = tmp_path / "sound.wav", ssamba.load(other, "cpu")
    soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal(60_000), FILE_RATE)
    rate, extractor = model.config.sample_rate, auto(other, "AutoFeatureExtractor")
    expected = extractor(read_audio(path, rate), return_tensors="pt")["input_values"]
    audio = soundfile.read(path, dtype="float32")[0]
    for given in (path, path.read_bytes(), {"array": audio, "sampling_rate": FILE_RATE}):
        found = extractor(given, return_tensors="pt")["input_values"]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    scores = {e["label"]: e["score"] for e in pipeline("audio-classification", model=str(other))(str(path))}
    assert scores == pytest.approx(dict(model.predict(audio, FILE_RATE)[0].ranked()), abs=CLOSE)
    with pytest.raises(AudioError, match=f"at {rate / 1000:g} kHz"):
        extractor(np.zeros(rate // 50, np.float32))


def test_the_plain_module_has_the_same_features(hf: Any, other: Path, recordings: list[np.ndarray]) -> None:
    from ssamba.inference.hf.plain.feature_extraction_ssamba import SsambaFeatureExtractor

    plain, fast = SsambaFeatureExtractor.from_pretrained(other), auto(other, "AutoFeatureExtractor")
    found, expected = plain(recordings, return_tensors="pt"), fast(recordings, return_tensors="pt")
    assert torch.equal(found["attention_mask"], expected["attention_mask"])
    torch.testing.assert_close(found["input_values"], expected["input_values"], atol=1e-4, rtol=0)


def test_the_model_card_says_the_rate(other: Path, tmp_path: Path) -> None:
    ssamba.hf.export(other, tmp_path / "folder")
    rate = ssamba.load(other, "cpu").config.sample_rate
    assert f"{rate / 1000:g} kHz mono" in (tmp_path / "folder" / "README.md").read_text()
    values = json.loads((tmp_path / "folder" / "preprocessor_config.json").read_text())
    assert values["sampling_rate"] == rate
