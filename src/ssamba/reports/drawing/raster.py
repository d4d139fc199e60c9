"""Pictures of matrices as PNG within the page: spectrograms and scores in time, in colours of equal steps."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

_ANCHORS = {
    "spectrogram": ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4"),
    "scores": ("f4f7fb", "d6e4f2", "a9cbe4", "71aad2", "3d86bd", "1f65a3", "12467f", "0b2c56"),
}
"""Colours between which is interpolated: dark to light for energy, light to dark for scores."""
HIDDEN = 255
"""The index of the colour of what is hidden, a grey."""
_GREY = (0x9A, 0x9A, 0x9A)

_Bytes = npt.NDArray[np.uint8]


def spectrogram_levels(log_mel: npt.NDArray[np.float32], low: float, high: float) -> _Bytes:
    """Colour indices 0 to 254 of log-mel (frames, bins) between two energies, low frequencies at the bottom."""
    share = np.clip((log_mel - low) / max(high - low, 1e-3), 0, 1)
    return np.round(share * 254).astype(np.uint8).T[::-1]


def score_levels(scores: npt.NDArray[np.float32]) -> _Bytes:
    """Colour indices 0 to 254 of scores (rows in time, classes) from 0 to 1; a line for each class."""
    return np.round(np.clip(scores, 0, 1) * 254).astype(np.uint8).T


def png_uri(levels: _Bytes, colours: str) -> str:
    """A PNG of colour indices (height, width) as a data URI; ``colours`` is "spectrogram" or "scores"."""
    height, width = levels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), levels], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", header),
        _chunk(b"PLTE", _palette(colours)),
        _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
        _chunk(b"IEND", b""),
    ]
    return "data:image/png;base64," + base64.b64encode(b"".join(parts)).decode()


def _palette(name: str) -> bytes:
    anchors = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in _ANCHORS[name]], dtype=np.float64)
    places = np.linspace(0, len(anchors) - 1, 255)
    table = np.stack([np.interp(places, np.arange(len(anchors)), anchors[:, i]) for i in range(3)], axis=1)
    return bytes(np.round(table).astype(np.uint8).tobytes()) + bytes(_GREY)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
