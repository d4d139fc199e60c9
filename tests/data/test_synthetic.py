from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.data.manifest import read_source
from ssamba.data.synthetic.generate import CLASS_NAMES, make_synthetic, synthesise
from ssamba.utils.errors import DataError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_set_is_a_manifest_with_every_class(tmp_path: Path) -> None:
    count = 4 * len(CLASS_NAMES)
    manifest = make_synthetic(tmp_path / "set", clips=count, seconds=0.6)
    clips = read_source(manifest)
    assert len(clips) == count
    for split, each in (("train", 3), ("test", 1)):
        labels = sorted(clip.labels[0] for clip in clips if clip.fields["split"] == split)
        assert labels == sorted(CLASS_NAMES * each)
    info = soundfile.info(clips[0].path)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 9600)
    assert not list((tmp_path / "set").rglob("*.part"))


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_same_seed_same_bytes(tmp_path: Path, format: str) -> None:
    for name, clips, seed in (("a", 20, 5), ("b", 20, 5), ("c", 20, 6), ("more", 24, 5)):
        make_synthetic(tmp_path / name, clips=clips, seconds=0.5, seed=seed, format=format)
    a, b, c, more = (contents(tmp_path / name) for name in ("a", "b", "c", "more"))
    assert a == b
    assert a["labels.csv"] == c["labels.csv"]
    assert sum(a[name] == c[name] for name in a) == 1
    assert all(more[name] == data for name, data in a.items() if name != "labels.csv")


@pytest.mark.parametrize("label", CLASS_NAMES)
def test_every_class_sounds_and_varies(label: str) -> None:
    sounds = [synthesise(label, 1.0, number=number).astype(float) / 32768 for number in range(6)]
    for sound in sounds:
        assert np.isfinite(sound).all()
        assert sound.shape == (16000,)
        assert 0.02 < np.abs(sound).max() <= 0.96
    loudness = [np.sqrt(np.mean(sound**2)) for sound in sounds]
    assert max(loudness) > 1.3 * min(loudness)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clips=0"):
        make_synthetic(tmp_path, clips=0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        make_synthetic(tmp_path / "file", clips=1)
