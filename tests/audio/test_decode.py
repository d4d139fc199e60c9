"""Real files, written to a temporary folder and decoded by the real decoder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.audio.checks import check_length
from ssamba.audio.decode import audio_info, read_audio, stream_audio
from ssamba.utils.errors import AudioError

FORMATS = {
    "clip.wav": {},
    "clip.flac": {},
    "clip.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "clip.opus": {"format": "OGG", "subtype": "OPUS"},
    "clip.mp3": {},
}


def signal(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A sweep with a little noise: no two crops are alike."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (200 * t + 150 * t**2 / max(seconds, 1e-3))) + 0.02 * noise).astype(np.float32)


def write(path: Path, audio: np.ndarray, rate: int = 16000, **options: str) -> Path:
    soundfile.write(path, audio, rate, **options)
    return path


def damage(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [16000, 48000])
def test_reads_every_format_at_16_khz(tmp_path: Path, name: str, rate: int) -> None:
    path = write(tmp_path / name, signal(2.0, rate), rate, **FORMATS[name])
    audio = read_audio(path)
    assert audio.dtype == np.float32
    assert audio.shape == (32000,)
    assert np.abs(audio - signal(2.0, 16000))[2000:-2000].mean() < 0.05  # the two noises differ, the sweep does not
    info = audio_info(path)
    assert (info.frames, info.sample_rate, info.channels, info.seconds) == (2 * rate, rate, 1, 2.0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 44101, 192000])
def test_resamples_a_tone_to_the_same_tone(tmp_path: Path, rate: int) -> None:
    t = np.arange(2 * rate) / rate
    path = write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * t), rate, subtype="FLOAT")
    audio = read_audio(path)
    assert abs(len(audio) - 32000) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(audio)) / 16000)
    assert np.abs(audio - expected)[1600:-1600].max() < 1e-3


def test_eight_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.stack([signal(0.5, 16000, seed) for seed in range(8)], axis=1)
    path = write(tmp_path / "eight.wav", channels, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path), channels.mean(axis=1), atol=1e-6)
    assert audio_info(path).channels == 8


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_crop_equals_the_slice_of_the_whole(tmp_path: Path, name: str, rate: int) -> None:
    if (name, rate) == ("clip.opus", 44100):
        pytest.skip("Opus has no 44.1 kHz")
    path = write(tmp_path / name, signal(4.0, rate), rate, **FORMATS[name])
    whole = read_audio(path)
    for start, seconds in [(0.0, 0.5), (0.0301, 0.7), (1.23456, 1.0), (2.9, 2.0), (3.97, None)]:
        crop = read_audio(path, start=start, seconds=seconds)
        first = round(start * 16000)
        expected = whole[first:] if seconds is None else whole[first : first + round(seconds * 16000)]
        assert crop.shape == expected.shape
        np.testing.assert_allclose(crop, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "tolerance"), [("clip.mp3", 1e-5), ("clip.opus", 1e-3)])
def test_crop_far_into_a_stateful_codec_is_aligned(tmp_path: Path, name: str, tolerance: float) -> None:
    path = write(tmp_path / name, signal(50.0, 16000), **FORMATS[name])
    whole = read_audio(path)
    crop = read_audio(path, start=41.5, seconds=3.0)
    np.testing.assert_allclose(crop, whole[41 * 16000 + 8000 :][:48000], atol=tolerance)


def test_crop_of_a_long_file_reads_only_the_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "long.flac", np.zeros(44100 * 600, np.int16), 44100)
    taken = []
    original = soundfile.SoundFile.read

    def counting(self: soundfile.SoundFile, frames: int = -1, **options: object) -> np.ndarray:
        taken.append(frames)
        return original(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    assert read_audio(path, start=500.0, seconds=2.0).shape == (32000,)
    assert sum(taken) < 2.2 * 44100


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rate", "block"), [(16000, 0.7), (48000, 0.25), (48000, 30.0)])
def test_stream_equals_the_whole(tmp_path: Path, name: str, rate: int, block: float) -> None:
    path = write(tmp_path / name, signal(3.1, rate), rate, **FORMATS[name])
    blocks = list(stream_audio(path, block_seconds=block))
    assert {len(b) for b in blocks[:-1]} <= {round(block * 16000)}
    np.testing.assert_allclose(np.concatenate(blocks), read_audio(path), atol=1e-6)


def test_stream_memory_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", np.zeros(48000 * 300, np.int16), 48000)
    sizes = [len(block) for block in stream_audio(path, block_seconds=5.0)]
    assert max(sizes) == 80000
    assert sum(sizes) == 300 * 16000


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """name -> (path, a word that the message must hold)."""
    nan, infinite = signal(1.0, 16000), signal(1.0, 16000)
    nan[700], infinite[9000] = np.nan, np.inf
    (folder / "folder.wav").mkdir()
    (folder / "zero.wav").write_bytes(b"")
    (folder / "zero.mp3").write_bytes(b"")
    for name in ("text.wav", "text.mp3", "text.flac", "text.ogg"):
        (folder / name).write_bytes(b"this is a letter, not a sound\n" * 50)
    long = signal(4.0, 16000)
    scrambled = write(folder / "scrambled.flac", long)
    data = bytearray(scrambled.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    scrambled.write_bytes(bytes(data))
    return {
        "missing": (folder / "missing.wav", "no such file"),
        "folder": (folder / "folder.wav", "folder"),
        "zero": (folder / "zero.wav", "empty"),
        "zero mp3": (folder / "zero.mp3", "empty"),
        "text wav": (folder / "text.wav", "not audio"),
        "text mp3": (folder / "text.mp3", "not audio"),
        "text flac": (folder / "text.flac", "not audio"),
        "text ogg": (folder / "text.ogg", "not audio"),
        "no samples": (write(folder / "none.wav", np.zeros(0)), "no audio samples"),
        "one sample": (write(folder / "one.wav", np.zeros(1)), "25 ms"),
        "399 samples": (write(folder / "short.wav", np.zeros(399)), "25 ms"),
        "truncated flac": (damage(write(folder / "cut.flac", long), 0.6), "truncated"),
        "truncated wav": (damage(write(folder / "cut.wav", long), 0.6), "truncated"),
        "truncated mp3": (damage(write(folder / "cut.mp3", long), 0.6), "truncated"),
        "scrambled flac": (scrambled, "damaged"),
        "beheaded ogg": (damage(write(folder / "cut.ogg", long), 0.01), "not audio"),
        "NaN": (write(folder / "nan.wav", nan, subtype="FLOAT"), "NaN at sample 700"),
        "infinite": (write(folder / "inf.wav", infinite, subtype="FLOAT"), "infinite value at sample 9000"),
    }


def test_bad_files_give_one_clear_line(tmp_path: Path) -> None:
    for name, (path, word) in bad_files(tmp_path).items():
        for reader in (read_audio, lambda p: list(stream_audio(p))):
            with pytest.raises(AudioError) as caught:
                reader(path)
            message = str(caught.value)
            assert word in message, (name, message)
            assert message.startswith(str(path)), (name, message)
            assert "\n" not in message
            assert len(message) < 400
            assert caught.value.path == str(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_permission_denied_on_disk(tmp_path: Path) -> None:
    path = write(tmp_path / "private.wav", signal(1.0, 16000))
    path.chmod(0)
    with pytest.raises(AudioError, match="permission denied"):
        read_audio(path)


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "private.wav", signal(1.0, 16000))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(AudioError, match="permission denied"):
        read_audio(path)


def test_wav_of_a_pipe_with_placeholder_length_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "piped.wav", signal(1.0, 16000))
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    assert read_audio(path).shape == (16000,)


def test_flac_that_does_not_state_its_length(tmp_path: Path) -> None:
    path = write(tmp_path / "piped.flac", signal(2.0, 16000))
    expected = read_audio(path)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's 36-bit count of samples: 0 means unknown
    data[22:26] = bytes(4)
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal(read_audio(path), expected)
    np.testing.assert_array_equal(read_audio(path, start=1.0, seconds=0.5), expected[16000:24000])
    assert audio_info(path).seconds == 2.0


def test_flac_that_promises_far_too_much_is_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "liar.flac", signal(2.0, 16000))
    data = bytearray(path.read_bytes())
    data[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    with pytest.raises(AudioError, match="truncated"):
        read_audio(path)


def test_crop_arguments(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", signal(1.0, 16000))
    with pytest.raises(AudioError, match="starts at 5 s but the file ends at 1 s"):
        read_audio(path, start=5.0)
    with pytest.raises(ValueError, match="start must be"):
        read_audio(path, start=-1.0)
    with pytest.raises(ValueError, match="seconds > 0"):
        read_audio(path, seconds=0.0)


def test_check_length() -> None:
    check_length(400)
    with pytest.raises(AudioError, match=r"a\.wav: 399 samples"):
        check_length(399, "a.wav")
