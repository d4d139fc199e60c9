"""Rates, channels, shapes and samples that no recording has: one line wherever audio comes in."""

from __future__ import annotations

import math
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.audio.checks import check_samples, rate_number
from ssamba.audio.decode import audio_info, read_audio, stream_audio
from ssamba.audio.front_end import FrontEnd
from ssamba.audio.log_mel import features, to_waveform
from ssamba.inference.model import Encoder
from ssamba.utils.errors import AudioError, ConfigError, SsambaError

NO_RATES = [16, 44.1, 0, -16000, 999, 768_001, 10**9, 10**400, math.nan, math.inf, "16000", [16000], True]
NO_RATES += [np.bool_(True), np.float64("nan"), np.array([16000, 16000]), torch.tensor([16000.0]), 16000j, {}, object()]


@pytest.fixture(scope="module")
def model() -> Encoder:
    return ssamba.load("tiny")  # type: ignore[return-value]


def sound(samples: int = 16000) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)


@pytest.mark.parametrize("rate", NO_RATES, ids=lambda rate: repr(rate)[:20])
def test_rates_that_are_none(rate: Any, model: Encoder, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(), 16000)
    calls = (
        lambda: features(sound(), rate),
        lambda: to_waveform(sound(), rate),
        lambda: model.embed(sound(), rate),
        lambda: read_audio(tmp_path / "a.wav", rate),
        lambda: list(stream_audio(tmp_path / "a.wav", sample_rate=rate)),
        lambda: FrontEnd(sample_rate=rate),
    )
    for call in calls:
        with pytest.raises(
            (AudioError, ConfigError), match=r"sample_rate is .*: give 1000 to (768|384)000 Hz"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_kilohertz_are_named() -> None:
    with pytest.raises(AudioError, match=r"sample_rate is 44.1: give 1000 to 768000 Hz; 44.1 kHz is 44100"):
        features(sound(), 44.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rate",
    [8000, np.int32(8000), np.uint16(8000), np.float32(8000), 8000.0, torch.tensor(8000), np.array(8000)],
    ids=str,
)
def test_rates_of_every_number_type(rate: Any) -> None:
    assert rate_number(rate) == 8000
    assert isinstance(rate_number(rate), int)
    assert torch.equal(features(sound(), rate), features(sound(), 8000))
    assert FrontEnd(sample_rate=rate) == FrontEnd(sample_rate=8000)
    assert type(FrontEnd(sample_rate=rate).sample_rate) is int


def test_a_front_end_has_whole_hertz() -> None:
    with pytest.raises(ConfigError, match=r"sample_rate is 16000.5: give a whole number of Hz"):
        FrontEnd(sample_rate=16000.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(16000, 2), (16000, 1), (500, 8), (100_000, 64)])
def test_samples_by_channels_are_named(shape: tuple[int, int], model: Encoder) -> None:
    for call in (features, model.embed, to_waveform):
        for audio in (np.zeros(shape, np.float32), torch.zeros(shape)):
            with pytest.raises(AudioError, match=rf"shape \({shape[0]}, {shape[1]}\) looks like \(samples, channels\)"):
                call(audio)
    with pytest.raises(AudioError, match=r"recording 2 of 2: shape .* looks like \(samples, channels\)"):
        features([sound(), np.zeros(shape, np.float32)])


def test_batches_stay_batches() -> None:
    assert features(np.zeros((2, 16000), np.float32)).shape[0] == 2
    assert features(np.zeros((600, 500), np.float32)).shape[0] == 600


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.full(16000, np.nan), "holds NaN"),
        (np.full(16000, 1e29), "1e[+]29"),
        (np.zeros(10), "10 samples"),
    ],
)
def test_one_bad_recording_of_many_is_numbered(bad: Any, reason: str, model: Encoder) -> None:
    batch: list[Any] = [sound() for _ in range(12)]
    batch[7] = bad
    for call in (features, model.embed):
        with pytest.raises(AudioError, match=rf"^audio: recording 8 of 12: .*{reason}"):
            call(batch)
        with pytest.raises(AudioError, match=rf"^audio: (?!recording).*{reason}"):
            call([bad])


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("value", [1e29, -1e29, 1.1e15, np.nan, np.inf, -np.inf])
def test_absurd_samples_in_files_are_those_in_memory(tmp_path: Path, subtype: str, value: float) -> None:
    samples = sound().astype(np.float64)
    samples[5000] = value
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16000, subtype=subtype)
    with pytest.raises(AudioError) as in_memory:
        features(samples.astype(np.float32))
    for read in (read_audio, lambda p: read_audio(p, 8000), lambda p: list(stream_audio(p, 0.1))):
        with pytest.raises(AudioError) as in_file:
            read(path)
        assert in_file.value.reason.replace(" (0.312 s)", "") == in_memory.value.reason
        assert "at sample 5000" in in_file.value.reason


def test_doubles_beyond_float32(tmp_path: Path) -> None:
    samples = sound().astype(np.float64)
    samples[10] = 1e300
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="DOUBLE")
    for call in (lambda: read_audio(tmp_path / "a.wav"), lambda: features(samples)):
        with pytest.raises(AudioError, match="an infinite value at sample 10"):
            call()


@pytest.mark.parametrize("value", [1e-40, -1e-45, 1.0, 30000.0, 1e14])
def test_denormals_offsets_and_integers_as_floats_are_fine(tmp_path: Path, value: float) -> None:
    samples = np.full(16000, value, np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), samples)
    assert features(samples).isfinite().all()
    check_samples(np.empty(0, np.float32))


def test_an_absurd_file_is_left_out_with_exit_code_1(tmp_path: Path) -> None:
    samples = sound()
    soundfile.write(tmp_path / "good.wav", samples, 16000)
    samples[9] = 1e29
    soundfile.write(tmp_path / "bad.wav", samples, 16000, subtype="FLOAT")
    done = run("embed", tmp_path / "good.wav", tmp_path / "bad.wav", "--out", tmp_path / "e.npz")
    assert done.returncode == 1, done.stderr
    assert f"left out {tmp_path / 'bad.wav'}: holds a value of 1e+29 at sample 9" in done.stderr
    assert np.isfinite(np.load(tmp_path / "e.npz")["embedding"]).all()


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssamba", *[os.fspath(a) for a in arguments]]  # type: ignore[call-overload]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=200,
        env={**os.environ, **environment},
    )


def wav_stating(path: Path, rate: int, channels: int, frames: int = 4000) -> Path:
    size = frames * channels * 2
    fmt = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, 2 * channels, 16)
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", size))
        file.truncate(44 + size)
    return path


@pytest.mark.parametrize("rate", [1, 999, 768_001, 4_000_000])
def test_rates_of_files_have_bounds(tmp_path: Path, rate: int) -> None:
    path = wav_stating(tmp_path / "a.wav", rate, 1)
    for read in (audio_info, read_audio, lambda p: list(stream_audio(p))):
        with pytest.raises(AudioError, match=f"states a sample rate of {rate} Hz; 1000 to 768000 Hz are read"):
            read(path)


@pytest.mark.parametrize("rate", [1000, 2000, 768_000])
def test_rates_at_the_bounds_are_read(tmp_path: Path, rate: int) -> None:
    assert len(read_audio(wav_stating(tmp_path / "a.wav", rate, 1, 2 * rate))) == 32000


def test_an_ogg_that_claims_1_hz(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", sound(48000), 16000, format="OGG", subtype="VORBIS")
    data = bytearray((tmp_path / "a.ogg").read_bytes())
    at = data.index(b"\x01vorbis") + 12
    data[at : at + 4] = (1).to_bytes(4, "little")
    data[22:26] = bytes(4)
    data[22:26] = ogg_checksum(bytes(data[:58])).to_bytes(4, "little")
    (tmp_path / "a.ogg").write_bytes(bytes(data))
    with pytest.raises(AudioError, match="states a sample rate of 1 Hz"):
        read_audio(tmp_path / "a.ogg")


def ogg_checksum(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x104C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def test_channels_have_a_bound(tmp_path: Path) -> None:
    assert audio_info(wav_stating(tmp_path / "a.wav", 48000, 256)).channels == 256
    assert len(read_audio(tmp_path / "a.wav", 48000)) == 4000
    for read in (audio_info, read_audio):
        with pytest.raises(AudioError, match="states 257 channels; up to 256 are read"):
            read(wav_stating(tmp_path / "b.wav", 48000, 257))


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are Unicode")
@pytest.mark.parametrize(
    "name", [b"caf\xe9.wav", "\u58f0.flac".encode(), b"\xff\xfe\x1b.ogg", "\U0001f426.mp3".encode()]
)
def test_names_of_any_bytes(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    stored = tmp_path / ("a" + Path(os.fsdecode(name)).suffix)
    soundfile.write(stored, sound(), 16000)
    os.rename(stored, path)
    text = os.fsdecode(path)
    assert audio_info(text).frames == len(read_audio(text)) == 16000
    assert audio_info(path).frames == 16000  # type: ignore[arg-type]
    code = (
        "import sys; from ssamba.audio.decode import *; name = sys.argv[1];"
        "print(audio_info(name).frames, len(read_audio(name)), sum(map(len, stream_audio(name))))"
    )
    for extra in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, env={**os.environ, **extra})
        assert done.stdout == b"16000 16000 16000\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.wav"))
    (tmp_path / "link.wav").symlink_to("/dev/zero")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for name in ("fifo.wav", "socket.wav", "link.wav", "loop.wav"):
        for read in (audio_info, read_audio, lambda p: list(stream_audio(p))):
            with pytest.raises(SsambaError, match=r"(not a regular file|cannot be read)"):
                read(tmp_path / name)
    server.close()


def test_no_file_stays_open(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", sound(), 16000)
    (tmp_path / "b.wav").write_bytes(b"RIFF nothing at all")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        read_audio(tmp_path / "a.mp3")
        with pytest.raises(AudioError):
            audio_info(tmp_path / "b.wav")
        next(stream_audio(tmp_path / "a.mp3", 0.1))
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x1cftypM4A \0\0\0\0", "an MP4 file"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", "a WebM or Matroska file"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc\xda", "an AAC stream"),
        (b"#!AMR\n<\x55", "an AMR file"),
    ],
)
def test_formats_that_are_not_decoded_say_what_to_do(tmp_path: Path, head: bytes, name: str) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(head + bytes(np.random.default_rng(0).integers(0, 255, 4000, np.uint8)))
    with pytest.raises(AudioError, match=f"is {name}.*: convert it to FLAC or WAV"):
        read_audio(path)
