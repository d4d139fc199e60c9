"""Audio files to mono float32 waveforms, with every bad input reported in one line.

Decoding is libsndfile (wav, flac, ogg vorbis, ogg opus, mp3, aiff, ...), resampling is soxr at its "HQ" setting.
Several channels are averaged. A crop of a long file reads the crop and a short margin, never the whole file.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, gcd
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ssamba.audio.checks import check_length, check_samples, check_target_rate
from ssamba.audio.constants import SAMPLE_RATE
from ssamba.audio.open_audio import UNKNOWN_FRAMES, PathLike, Recording, open_recording
from ssamba.utils.errors import AudioError

__all__ = [
    "AUDIO_EXTENSIONS",
    "AudioInfo",
    "audio_info",
    "read_audio",
    "stream_audio",
]

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64")

Waveform = npt.NDArray[np.float32]

_BLOCK_SAMPLES = 1 << 20  # of all channels: decode in blocks, so that a header that claims terabytes cannot take them
_SOXR_QUALITY = "HQ"
_FILTER_REACH = 400  # samples at the lower rate; soxr HQ reaches under 160 to either side
# Codecs whose decoder carries state from frame to frame. After a seek they give the right samples only from some point
# on (MP3), or differ by about -48 dB for good (the speech mode of Opus). Near the start we decode from the first
# sample, which is exact and takes under 40 ms; further in we seek to a second earlier and drop that second.
_STATEFUL_SUBTYPES = ("OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
_DECODE_FROM_START_SECONDS = 30.0
_ROLL_SECONDS = 1.0


class AudioInfo(NamedTuple):
    """What a file's header says.

    Attributes:
        frames: samples per channel.
        sample_rate: Hz.
        channels: number of channels.
        seconds: frames / sample_rate.
    """

    frames: int
    sample_rate: int
    channels: int
    seconds: float


def audio_info(path: PathLike) -> AudioInfo:
    """Length, rate and channels of a file, from its header (a stream that does not state its length is decoded once).

    Raises:
        AudioError: when the file is missing, no audio, empty or truncated as far as the header can tell.
    """
    with open_recording(path) as file:
        frames, rate = file.frames, file.sample_rate
        if file.uncertain or frames >= UNKNOWN_FRAMES:
            frames = sum(len(block) for block in _mono_blocks(file, path, 0, None))
        if not frames:
            raise AudioError(path, "holds no audio samples")
        return AudioInfo(frames, rate, file.channels, frames / rate)


def read_audio(
    path: PathLike,
    sample_rate: int = SAMPLE_RATE,
    start: float | None = None,
    seconds: float | None = None,
    exact: bool = True,
) -> Waveform:
    """Read a file, or a crop of it, as mono float32 at `sample_rate`.

    A crop holds exactly the samples that the same slice of the whole file's waveform would (to float rounding; beyond
    30 s into an Opus file in speech mode to about -48 dB, because that codec's decoder does not recover from a seek).

    Args:
        path: the file.
        sample_rate: rate of the result, Hz.
        start: first second of the crop; None is the beginning.
        seconds: length of the crop; None reads to the end. A crop that runs past the end is cut there.
        exact: False begins to decode Opus and MP3 files a second before the crop even in their first 30 s, which is
            quicker; the samples then differ by -43 dB at worst.

    Returns:
        (samples,) float32, full scale +-1.

    Raises:
        AudioError: missing, unreadable, truncated, NaN or infinite samples, `start` past the end, or under 25 ms.
    """
    if (start is not None and not start >= 0) or (seconds is not None and not seconds > 0):
        raise ValueError(f"start must be >= 0 and seconds > 0, not start={start}, seconds={seconds}")
    sample_rate = check_target_rate(sample_rate)
    with open_recording(path) as file:
        rate = file.sample_rate
        first = round((start or 0.0) * sample_rate)
        count = None if seconds is None else max(1, round(seconds * sample_rate))
        if 0 < file.frames < UNKNOWN_FRAMES and first * rate >= file.frames * sample_rate:
            raise AudioError(path, f"the crop starts at {start:g} s but the file ends at {file.frames / rate:g} s")
        waveform = _read_range(file, path, sample_rate, first, count, exact)
    check_length(len(waveform), path, sample_rate)
    return waveform


def stream_audio(path: PathLike, block_seconds: float = 30.0, sample_rate: int = SAMPLE_RATE) -> Iterator[Waveform]:
    """Read a file of any length in bounded memory.

    The blocks joined equal ``read_audio(path, sample_rate)``. Every block has round(block_seconds * sample_rate)
    samples but the last, which has what is left.

    Raises:
        AudioError: as :func:`read_audio`; what lies before the damage has been yielded by then.
    """
    sample_rate = check_target_rate(sample_rate)
    size = max(1, round(block_seconds * sample_rate))
    total = 0
    with open_recording(path) as file:
        pending = np.empty(0, np.float32)
        for part in _resampled_parts(file, path, sample_rate, size):
            total += len(part)
            pending = np.concatenate((pending, part))
            while len(pending) >= size:
                yield pending[:size].copy()
                pending = pending[size:]
    check_length(total, path, sample_rate)
    if len(pending):
        yield pending


def _mono_blocks(
    file: Recording, path: PathLike, first: int, count: int | None, exact: bool = True
) -> Iterator[Waveform]:
    """Decode frames [first, first + count) from where the decoder gives them right, as mono blocks.

    Raises AudioError when the decoder fails, or when it stops before the end that the header states.
    """
    known = file.frames < UNKNOWN_FRAMES
    at_once = max(1, _BLOCK_SAMPLES // file.channels)
    stop = None if count is None else first + count
    if known:
        stop = file.frames if stop is None else min(stop, file.frames)
    position = _seek(file, path, first, exact)
    while stop is None or position < stop:
        want = at_once if stop is None else min(at_once, stop - position)
        try:
            block = file.read(want)
        except (soundfile.SoundFileError, RuntimeError) as error:
            detail = str(error).removeprefix("Error : ").strip(" .")
            raise AudioError(
                path, f"is damaged or truncated after {position / file.sample_rate:.2f} s ({detail})"
            ) from None
        begin, position = position, position + len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        mono = np.ascontiguousarray(mono[max(0, first - begin) :])
        check_samples(mono, path, max(first, begin), file.sample_rate)
        if len(mono):
            yield mono
        if len(block) < want:
            if known:
                raise AudioError(
                    path,
                    f"is truncated: decoding stops at {position / file.sample_rate:.2f} s of the "
                    f"{file.frames / file.sample_rate:.2f} s that the header states",
                )
            return


def _seek(file: Recording, path: PathLike, first: int, exact: bool) -> int:
    """Move to `first` or to where decoding must begin for `first` to come out right; return the position."""
    if not first or file.frames >= UNKNOWN_FRAMES:
        return 0
    target = first
    if file.subtype in _STATEFUL_SUBTYPES:
        if first <= (_DECODE_FROM_START_SECONDS if exact else _ROLL_SECONDS) * file.sample_rate:
            return 0
        target = first - round(_ROLL_SECONDS * file.sample_rate)
    try:
        return int(file.seek(target))
    except (soundfile.SoundFileError, RuntimeError) as error:
        detail = str(error).strip(" .")
        raise AudioError(
            path, f"is damaged or truncated: no seek to {target / file.sample_rate:.2f} s ({detail})"
        ) from None


def _read_range(
    file: Recording, path: PathLike, sample_rate: int, first: int, count: int | None, exact: bool
) -> Waveform:
    """Samples [first, first + count) on the grid of `sample_rate`; the end of the file cuts it."""
    rate = file.sample_rate
    if rate == sample_rate:
        return _join(_mono_blocks(file, path, first, count, exact))
    divisor = gcd(rate, sample_rate)
    margin = ceil(_FILTER_REACH / min(rate, sample_rate) * sample_rate)
    # The crop begins where the two grids meet, so that the resampler's phase is the whole file's.
    lead = max(0, first - margin)
    lead -= lead % (sample_rate // divisor)
    source_first = lead * rate // sample_rate
    source_count = None if count is None else ceil((first - lead + count + margin) * rate / sample_rate)
    source = _join(_mono_blocks(file, path, source_first, source_count, exact))
    waveform = soxr.resample(source, rate, sample_rate, quality=_SOXR_QUALITY)[first - lead :]
    return np.ascontiguousarray(waveform if count is None else waveform[:count])


def _resampled_parts(file: Recording, path: PathLike, sample_rate: int, block: int) -> Iterator[Waveform]:
    """The whole file at `sample_rate`, piece by piece."""
    rate = file.sample_rate
    step = min(_BLOCK_SAMPLES, max(1, ceil(block * rate / sample_rate)))
    resampler = None
    if rate != sample_rate:
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality=_SOXR_QUALITY)
    for decoded in _mono_blocks(file, path, 0, None):
        for begin in range(0, len(decoded), step):
            piece = decoded[begin : begin + step]
            yield piece if resampler is None else resampler.resample_chunk(piece)
    if resampler is not None:
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _join(blocks: Iterator[Waveform]) -> Waveform:
    parts = list(blocks)
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
