"""Audio files whose headers say something else than what is there, made from intact ones."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import soundfile

RATE = 44100
CONTAINERS = {  # name -> options of soundfile.write
    "a.wav": {},
    "x.wav": {"format": "WAVEX"},
    "b.wav": {"endian": "BIG"},
    "f.wav": {"subtype": "FLOAT"},
    "p24.wav": {"subtype": "PCM_24"},
    "a.rf64": {"format": "RF64"},
    "a.w64": {"format": "W64"},
    "a.aiff": {},
    "f.aiff": {"subtype": "FLOAT"},
    "a.au": {},
    "l.au": {"endian": "LITTLE"},
    "a.caf": {},
    "p24.caf": {"subtype": "PCM_24"},
}


def sweep(seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A sweep with a little noise, its first half quiet so that variable bit rates vary."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(t))
    sound = 0.3 * np.sin(2 * np.pi * (200 + 50 * t) * t) + 0.01 * noise
    sound[: len(t) // 2] *= 0.02
    return np.stack([sound] * channels, axis=1).astype(np.float32)


def write(path: Path, seconds: float = 2.0, rate: int = RATE, channels: int = 1, seed: int = 0, **options: str) -> Path:
    soundfile.write(path, sweep(seconds, rate, channels, seed), rate, **options)
    return path


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def with_length(path: Path, length: int) -> Path:
    """The file with `length` bytes stated for its samples, in the container's own way (-1: all bits set)."""
    data = bytearray(path.read_bytes())
    magic = bytes(data[:4])
    at = data.find(b"SSND" if magic == b"FORM" else b"data")
    if magic in (b".snd", b"dns."):
        struct.pack_into(">I" if magic == b".snd" else "<I", data, 8, length & 0xFFFFFFFF)
    elif magic == b"caff":
        struct.pack_into(">q", data, at + 4, length)
    elif magic == b"riff":
        struct.pack_into("<q", data, at + 16, length)
    elif magic == b"RF64":
        struct.pack_into("<q", data, 28, length)
    else:
        struct.pack_into("<I" if magic == b"RIFF" else ">I", data, at + 4, length & 0xFFFFFFFF)
    path.write_bytes(bytes(data))
    return path


def flac_stating(path: Path, samples: int) -> Path:
    """A FLAC file with another number of samples in STREAMINFO."""
    data = bytearray(path.read_bytes())
    data[21] = (data[21] & 0xF0) | samples >> 32
    struct.pack_into(">I", data, 22, samples & 0xFFFFFFFF)
    path.write_bytes(bytes(data))
    return path


def mp3_frames(data: bytes) -> list[bytes]:
    """The frames of an MP3 file that libsndfile wrote (MPEG 1 to 2.5, layer III, no tags)."""
    mpeg1 = data[1] >> 3 & 3 == 3
    kbits = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    if not mpeg1:
        kbits = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    rate = (44100, 48000, 32000)[data[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[data[1] >> 3 & 3]
    frames = []
    while len(data) >= 4:
        length = (144 if mpeg1 else 72) * kbits[(data[2] >> 4) - 1] * 1000 // rate + (data[2] >> 1 & 1)
        frames.append(data[:length])
        data = data[length:]
    return frames
