from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssamba.data.manifest import read_sources
from ssamba.data.statistics import compute_statistics
from ssamba.utils.errors import DataError


def features(waveform: torch.Tensor) -> torch.Tensor:
    """(samples,) -> (frames, 4): enough like a log-mel for counting."""
    frames = waveform.unfold(0, 400, 160)
    return torch.stack([frames.mean(1), frames.abs().amax(1), frames.square().mean(1), frames[:, 0]], dim=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(12):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * rng.standard_normal(4000 + 1000 * number), 16000)
    return tmp_path


def test_equals_all_values_at_once(folder: Path) -> None:
    sources = read_sources([str(folder)])
    waves = [torch.from_numpy(soundfile.read(clip.path, dtype="float32")[0]) for clip in sources[0].clips]
    values = torch.cat([features(wave).flatten() for wave in waves]).double()
    calls: list[tuple[int, int]] = []
    result = compute_statistics(sources, features, progress=lambda *call: calls.append(call))
    assert result.mean == pytest.approx(float(values.mean()), rel=1e-9)
    assert result.std == pytest.approx(float(values.std(correction=0)), rel=1e-9)
    assert (result.frames, result.clips) == (len(values) // 4, 12)
    assert calls[-1] == (12, 12)
    assert compute_statistics(sources, features, threads=4) == result


def test_long_files_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(16000 * 20), 16000)
    sources = read_sources([str(tmp_path)])
    whole = compute_statistics(sources, features)
    monkeypatch.setattr("ssamba.data.statistics._BLOCK_SECONDS", 3.0)
    blocks = compute_statistics(sources, features)
    assert blocks.std == pytest.approx(whole.std, rel=1e-2)
    assert whole.frames * 0.99 < blocks.frames < whole.frames


def test_choice_of_clips_is_seeded(folder: Path) -> None:
    sources = read_sources([str(folder)])
    some = compute_statistics(sources, features, max_clips=5, seed=1)
    assert some.clips == 5
    assert some == compute_statistics(sources, features, max_clips=5, seed=1)
    assert some != compute_statistics(sources, features, max_clips=5, seed=2)


def test_bad_sets(folder: Path) -> None:
    (folder / "bad.wav").write_text("no sound")
    with pytest.raises(DataError, match="1 of 13 clips cannot be read"):
        compute_statistics(read_sources([str(folder)]), features)
    with pytest.raises(DataError, match="no readable clips"):
        compute_statistics([], features)
    soundfile.write(folder / "silence.wav", np.zeros(16000), 16000)
    with pytest.raises(DataError, match="silence"):
        compute_statistics(read_sources([str(folder / "silence.wav")]), features)
