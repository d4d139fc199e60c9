from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssamba.audio.decode import read_audio
from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.audio.log_mel import filter_bank
from ssamba.data.manifest import read_sources
from ssamba.data.statistics import compute_statistics
from ssamba.utils.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(12):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * rng.standard_normal(4000 + 1000 * number), 16000)
    return tmp_path


@pytest.mark.parametrize("front_end", [PUBLISHED, FrontEnd(32000, 64), FrontEnd(8000, 40)], ids=lambda f: f.description)
def test_equals_all_values_at_once(folder: Path, front_end: FrontEnd) -> None:
    sources = read_sources([str(folder)])
    waves = [torch.from_numpy(read_audio(clip.path, front_end.sample_rate)) for clip in sources[0].clips]
    values = torch.cat([filter_bank(wave, front_end).flatten() for wave in waves]).double()
    calls: list[tuple[int, int]] = []
    result = compute_statistics(sources, front_end, progress=lambda *call: calls.append(call))
    assert result.mean == pytest.approx(float(values.mean()), rel=1e-9)
    assert result.std == pytest.approx(float(values.std(correction=0)), rel=1e-9)
    assert (result.frames, result.clips) == (len(values) // front_end.mel_bins, 12)
    assert calls[-1] == (12, 12)
    assert compute_statistics(sources, front_end, threads=4) == result


def test_long_files_in_blocks(tmp_path: Path) -> None:
    """More than a minute is read in pieces, which lose a frame at their ends and each its mean."""
    audio = 0.1 * np.random.default_rng(0).standard_normal(16000 * 150).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", audio, 16000, subtype="FLOAT")
    blocks = compute_statistics(read_sources([str(tmp_path)]), PUBLISHED)
    whole = filter_bank(torch.from_numpy(audio), PUBLISHED)
    assert blocks.mean == pytest.approx(float(whole.mean()), rel=1e-2)
    assert blocks.std == pytest.approx(float(whole.std()), rel=1e-2)
    assert len(whole) * 0.99 < blocks.frames < len(whole)


def test_choice_of_clips_is_seeded(folder: Path) -> None:
    sources = read_sources([str(folder)])
    some = compute_statistics(sources, PUBLISHED, max_clips=5, seed=1)
    assert some.clips == 5
    assert some == compute_statistics(sources, PUBLISHED, max_clips=5, seed=1)
    assert some != compute_statistics(sources, PUBLISHED, max_clips=5, seed=2)


def test_bad_sets(folder: Path) -> None:
    (folder / "bad.wav").write_text("no sound")
    with pytest.raises(DataError, match="1 of 13 clips cannot be read"):
        compute_statistics(read_sources([str(folder)]), PUBLISHED)
    with pytest.raises(DataError, match="no readable clips"):
        compute_statistics([], PUBLISHED)
    soundfile.write(folder / "silence.wav", np.zeros(16000), 16000)
    with pytest.raises(DataError, match="silence"):
        compute_statistics(read_sources([str(folder / "silence.wav")]), PUBLISHED)
