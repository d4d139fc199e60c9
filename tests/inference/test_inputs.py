"""What models take: paths, file objects, bytes, arrays and lists of them, with the bits of the path's form."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.audio import checks, encoded
from ssamba.audio.decode import audio_info, read_audio, stream_audio
from ssamba.audio.encoded import Encoded
from ssamba.inference.model import Encoder, make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.utils.errors import AudioError

pytestmark = pytest.mark.usefixtures("one_thread")
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_24"),
    "w64": ("W64", "FLOAT"),
    "caf": ("CAF", "PCM_16"),
}


def sound(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (200 * t + 40 * t * t)) + 0.05 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Encoder:
    config = Config(width=16, depth=2, frames=128, patch_frequency=32, stride_frequency=32)
    return make_encoder(config, classification=Classification(("dog", "rain"), recipe="test")).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio")
    for name, (kind, subtype) in FORMATS.items():
        rate = 48000 if name == "opus" else 44100
        soundfile.write(path / f"a.{name}", sound(2.3, rate), rate, format=kind, subtype=subtype)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_form_has_the_bits_of_the_path(folder: Path, model: Encoder, name: str) -> None:
    path = folder / f"a.{name}"
    content = path.read_bytes()
    expected = model.embed(read_audio(path), 16000)
    with path.open("rb") as file, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(content)
        spooled.seek(0)
        forms: list[Any] = [str(path), path, file, io.BytesIO(content), spooled, content, bytearray(content)]
        forms += [memoryview(content), [path]]
        for form in forms:
            found = model.embed(form)
            assert torch.equal(found.patches, expected.patches), type(form)
        assert file.read() == b""
        assert not file.closed
    (prediction,) = model.predict(io.BytesIO(content), every=0.5)
    (of_path,) = model.predict(path, every=0.5)
    assert torch.equal(prediction.scores, of_path.scores)
    assert torch.equal(model.features(content), model.features(path))


def test_functions_of_decode_take_an_encoded_recording(folder: Path) -> None:
    for name in FORMATS:
        path = folder / f"a.{name}"
        memory = Encoded("memory", path.read_bytes())
        assert audio_info(memory) == audio_info(path)
        for of_memory, of_path in zip(stream_audio(memory, 0.7), stream_audio(path, 0.7), strict=True):
            np.testing.assert_array_equal(of_memory, of_path)
        np.testing.assert_array_equal(
            read_audio(memory, start=1.1, seconds=0.5), read_audio(path, start=1.1, seconds=0.5)
        )


def test_a_list_mixes_all_and_the_rate_is_of_the_arrays_alone(folder: Path, model: Encoder) -> None:
    path, array = folder / "a.flac", sound(1.1, 8000, seed=3)
    with path.open("rb") as file:
        mixed = model.embed([path, array, file, path.read_bytes(), torch.from_numpy(array)], sample_rate=8000)
    for i, (alone, rate) in enumerate([(path, None), (array, 8000), (path, 44100), (path, 8000), (array, 8000)]):
        expected = model.embed(alone, rate)
        n = int(expected.lengths[0])
        assert int(mixed.lengths[i]) == n
        torch.testing.assert_close(mixed.frames[i, :n], expected.frames[0], atol=1e-5, rtol=0)
    assert len(model.predict((path, array), 8000)) == 2


def test_a_file_object_is_read_from_its_position_to_the_end(folder: Path, model: Encoder) -> None:
    content = (folder / "a.wav").read_bytes()
    file = io.BytesIO(b"some bytes before" + content)
    file.seek(17)
    assert torch.equal(model.embed(file).clip, model.embed(content).clip)
    assert file.tell() == 17 + len(content)
    with pytest.raises(AudioError, match=r"holds no bytes from its position [0-9,]+ on: seek\(0\)"):
        model.embed(file)


class Drip:
    """A stream that cannot be sought and gives a little at a time."""

    def __init__(self, content: bytes) -> None:
        self._left = content
        self.taken = 0

    def read(self, count: int) -> bytes:
        part, self._left = self._left[: min(count, 1000)], self._left[min(count, 1000) :]
        self.taken += len(part)
        return part


def test_streams_without_seek_are_read_and_bounded(
    folder: Path, model: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (folder / "a.flac").read_bytes()
    assert torch.equal(model.embed(Drip(content)).clip, model.embed(content).clip)
    monkeypatch.setattr(encoded, "ENCODED_LIMIT", 10_000)
    endless = Drip(content)
    with pytest.raises(AudioError, match="has more than 10,000 bytes: give its path"):
        model.embed(endless)
    assert endless.taken <= 10_001


def test_the_checks_of_files_hold_for_bytes(folder: Path, model: Encoder, tmp_path: Path) -> None:
    wav = (folder / "a.wav").read_bytes()
    flac = (folder / "a.flac").read_bytes()
    for content in (wav[:-4000], flac[: len(flac) // 2], b"", b"no audio at all", b"\0" * 5000, wav[:44]):
        path = tmp_path / "x.wav"
        path.write_bytes(content)
        with pytest.raises(AudioError) as of_path:
            model.embed(path)
        with pytest.raises(AudioError) as of_bytes:
            model.embed(content)
        assert of_bytes.value.reason == of_path.value.reason
        assert str(of_bytes.value).startswith("bytes: ")


def test_errors_have_the_number_and_the_name(folder: Path, model: Encoder, tmp_path: Path) -> None:
    good = folder / "a.wav"
    with pytest.raises(AudioError, match=r"missing\.wav: recording 2 of 3: no such file"):
        model.embed([good, tmp_path / "missing.wav", good])
    with pytest.raises(AudioError, match="bytes: recording 2 of 2: is not audio"):
        model.predict([good, b"nothing of the kind"])
    with pytest.raises(AudioError, match="recording 3 of 3: holds NaN"):
        model.embed([good, sound(1, 16000), np.full(9000, np.nan)], 16000)
    with (tmp_path / "t.txt").open("w+") as text, pytest.raises(AudioError, match=r"opened as text.*'rb'"):
        model.embed(text)
    closed = good.open("rb")
    closed.close()
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read \(read of closed file\)"):
        model.embed(closed)
    with soundfile.SoundFile(good) as opened, pytest.raises(AudioError, match="gives ndarray instead of bytes"):
        model.embed(opened)
    with pytest.raises(AudioError, match="is a folder"):
        model.embed(tmp_path)


def test_arrays_without_a_rate_warn_once(folder: Path, model: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_warned", [])
    array = sound(1, 16000)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.embed(folder / "a.wav")
        model.embed(array, 16000)
        assert seen == []
        silent = model.embed(array)
        model.predict([array])
        ssamba.features(array)
    assert [(w.category, Path(w.filename).name) for w in seen] == [(UserWarning, Path(__file__).name)]
    assert "the next version requires it, give sample_rate=16000" in str(seen[0].message)
    assert torch.equal(silent.clip, model.embed(array, 16000).clip)


def test_standard_input_can_be_given(folder: Path) -> None:
    code = "import sys, ssamba; print(ssamba.features(sys.stdin.buffer).shape[1])"
    done = subprocess.run(
        [sys.executable, "-c", code], input=(folder / "a.flac").read_bytes(), capture_output=True, check=True
    )
    assert int(done.stdout) == ssamba.features(folder / "a.flac").shape[1]
