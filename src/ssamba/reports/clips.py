"""The clips of a page: their names, what is known of them, and short compressed excerpts within a bound."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ssamba.inference.outputs.html import escape
from ssamba.utils.terminal import printable

AUDIO_LIMIT = 8 << 20
"""Bytes of compressed audio in a page; as text they take a third more."""
CLIP_SECONDS = 6.0
"""Longest excerpt of a clip."""
BYTES_PER_SECOND = 4400
"""About what a second of an excerpt takes."""
SHORTEST_EXCERPT = 1.0
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Sample rates that MP3 has."""
_QUALITY = 0.6


@dataclass
class PageClip:
    """A clip: its name as in the run's reports, its class, what was predicted with which score, its excerpt."""

    name: str
    label: str = ""
    predicted: str = ""
    score: float | None = None
    audio: bytes = b""
    start: float = 0.0


class ClipStore:
    """Clips by number, and their excerpts as MP3, which browsers on all systems play.

    Args:
        players: whether audio goes into the page.
        limit: bytes of all excerpts together.
    """

    def __init__(self, players: bool = True, limit: int = AUDIO_LIMIT) -> None:
        self.players = players and can_encode()
        self.limit, self.used = limit, 0
        self.clips: list[PageClip] = []
        self.refused = 0

    def add(self, clip: PageClip) -> int:
        """Take a clip; its number."""
        self.clips.append(clip)
        return len(self.clips) - 1

    def put_audio(self, number: int, waveform: npt.NDArray[np.float32], rate: int, start: float = 0.0) -> None:
        """Give a clip its excerpt (samples,), which begins at ``start`` s, unless the page is full."""
        if not self.players or not len(waveform):
            return
        encoded = encode_mp3(waveform, rate)
        if self.used + len(encoded) > self.limit:
            self.refused += 1
            return
        self.used += len(encoded)
        self.clips[number].audio, self.clips[number].start = encoded, start

    @property
    def playable(self) -> int:
        """Clips with an excerpt."""
        return sum(bool(clip.audio) for clip in self.clips)

    def play_button(self, number: int) -> str:
        """A button that plays a clip, or nothing where it has no excerpt."""
        if not self.clips[number].audio:
            return '<span class="mute" title="no excerpt">-</span>'
        name = escape(self.clips[number].name)
        return f'<button type="button" class="play" data-clip="{number}" aria-label="Play {name}"></button>'

    def as_json(self) -> dict[str, Any]:
        """What the page's script reads: a row for each clip, and the excerpts by number."""
        rows = [
            [printable(c.name), printable(c.label), printable(c.predicted), c.score, round(c.start, 3)]
            for c in self.clips
        ]
        audio = {str(i): base64.b64encode(c.audio).decode() for i, c in enumerate(self.clips) if c.audio}
        return {"clips": rows, "audio": audio}


def seconds_each(count: int, limit: int = AUDIO_LIMIT) -> float:
    """Seconds of an excerpt with which ``count`` of them keep within the limit."""
    fair = limit / (max(count, 1) * BYTES_PER_SECOND)
    return max(SHORTEST_EXCERPT, min(CLIP_SECONDS, int(10 * fair) / 10))


def loudest_stretch(waveform: npt.NDArray[np.float32], rate: int, seconds: float) -> int:
    """The sample at which the stretch of that length with the most energy begins, to a tenth of a second."""
    size, step = round(seconds * rate), max(1, rate // 10)
    if len(waveform) <= size:
        return 0
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
    begins = np.arange(0, len(waveform) - size + 1, step)
    return int(begins[np.argmax(energy[begins + size] - energy[begins])])


def can_encode() -> bool:
    """Whether the decoding library writes MP3."""
    import soundfile

    return "MP3" in soundfile.available_formats()


def encode_mp3(waveform: npt.NDArray[np.float32], rate: int) -> bytes:
    """A mono waveform (samples,) as MP3, at the nearest rate that the format has; quiet ones are made louder."""
    import soundfile
    import soxr

    target = next((r for r in _RATES if r >= rate), _RATES[-1])
    samples = waveform if target == rate else soxr.resample(waveform, rate, target)
    peak = float(np.abs(samples).max()) if len(samples) else 0.0
    samples = samples * (0.89 / peak) if peak > 0.89 or 0 < peak < 0.1 else samples
    file = io.BytesIO()
    soundfile.write(
        file, samples, target, format="MP3", subtype="MPEG_LAYER_III", compression_level=_QUALITY,
        bitrate_mode="VARIABLE",
    )  # fmt: skip
    return file.getvalue()
