"""Audio files to mono float32 waveforms, with every bad input reported in one line.

Decoding is libsndfile (wav, flac, ogg vorbis, ogg opus, mp3, aiff, ...), resampling is soxr at its "HQ" setting.
Several channels are averaged. A crop of a long file reads the crop and a short margin, never the whole file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from math import ceil, gcd
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ssamba.audio.constants import FRAME_SECONDS, SAMPLE_RATE
from ssamba.utils.errors import AudioError

__all__ = [
    "AUDIO_EXTENSIONS",
    "AudioInfo",
    "audio_info",
    "check_length",
    "read_audio",
    "stream_audio",
]

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64")

Waveform = npt.NDArray[np.float32]
PathLike = str | os.PathLike[str]

_BLOCK_FRAMES = 1 << 20  # decode in blocks, so that a header that claims terabytes cannot allocate them
_UNKNOWN_FRAMES = 1 << 48  # libsndfile reports 2**63 - 1 for a stream that does not state its length
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
    with _open(path) as file:
        frames, rate = file.frames, file.samplerate
        if frames >= _UNKNOWN_FRAMES:
            frames = sum(len(block) for block in _mono_blocks(file, path, 0, None))
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
    with _open(path) as file:
        rate = file.samplerate
        first = round((start or 0.0) * sample_rate)
        count = None if seconds is None else max(1, round(seconds * sample_rate))
        if 0 < file.frames < _UNKNOWN_FRAMES and first * rate >= file.frames * sample_rate:
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
    size = max(1, round(block_seconds * sample_rate))
    total = 0
    with _open(path) as file:
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


def check_length(samples: int, path: PathLike | None = None, sample_rate: int = SAMPLE_RATE) -> None:
    """Refuse audio that is too short for a single 25 ms frame (400 samples at 16 kHz).

    Raises:
        AudioError: naming `path`, or "audio" without one.
    """
    least = ceil(FRAME_SECONDS * sample_rate)
    if samples < least:
        raise AudioError(
            path, f"{samples} samples at {sample_rate} Hz is shorter than one 25 ms frame ({least} samples)"
        )


class _Decoder(soundfile.SoundFile):
    """A SoundFile whose reads continue without the seek that soundfile adds after each (it fails in unsized FLACs)."""

    def seekable(self) -> bool:
        return False


def _open(path: PathLike) -> soundfile.SoundFile:
    """Open for decoding; every failure becomes an AudioError that says what is wrong with the file."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(path, "is a folder, not an audio file")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(path, "is not a regular file; save the audio to a file first")
        with open(path, "rb") as raw:
            head = raw.read(16)
    except FileNotFoundError:
        raise AudioError(path, "no such file") from None
    except PermissionError:
        raise AudioError(path, "permission denied; make the file readable") from None
    except (OSError, ValueError) as error:
        raise AudioError(path, f"cannot be opened ({error})") from None
    if not head:
        raise AudioError(path, "is empty (0 bytes)")
    try:
        # Names that are no UTF-8 get through as bytes alone, where names are bytes.
        file = _Decoder(os.fspath(path) if os.name == "nt" else os.fsencode(path))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # libsndfile falls back on the name's ending, and its messages for that case mislead: add the first bytes.
        detail = str(error).rsplit(": ", 1)[-1].strip(" .")
        raise AudioError(
            path, f"is not audio that libsndfile can decode (starts with {head[:8]!r}; {detail})"
        ) from None
    if file.frames <= 0:
        file.close()
        raise AudioError(path, "holds no audio samples (the header says 0 frames)")
    missing = _missing_wav_bytes(file)
    if missing:
        file.close()
        raise AudioError(path, f"is truncated: {missing} bytes of samples that the header promises are missing")
    return file


def _missing_wav_bytes(file: soundfile.SoundFile) -> int:
    """Bytes short of what a WAV's data chunk declares: libsndfile cuts the length to the file and only logs it."""
    if file.format not in ("WAV", "WAVEX"):
        return 0
    log = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if log is None:
        return 0
    declared, present = int(log[1]), int(log[2])
    if declared >= 0x7FFF0000:  # a writer to a pipe cannot know the length and puts a placeholder
        return 0
    return declared - present if declared - present >= 2 * file.channels else 0


def _mono_blocks(
    file: soundfile.SoundFile, path: PathLike, first: int, count: int | None, exact: bool = True
) -> Iterator[Waveform]:
    """Decode frames [first, first + count) from where the decoder gives them right, as mono blocks.

    Raises AudioError when the decoder fails, or when it stops before the end that the header states.
    """
    known = file.frames < _UNKNOWN_FRAMES
    stop = None if count is None else first + count
    if known:
        stop = file.frames if stop is None else min(stop, file.frames)
    position = _seek(file, path, first, exact)
    while stop is None or position < stop:
        want = _BLOCK_FRAMES if stop is None else min(_BLOCK_FRAMES, stop - position)
        try:
            block = file.read(want, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            detail = str(error).removeprefix("Error : ").strip(" .")
            raise AudioError(
                path, f"is damaged or truncated after {position / file.samplerate:.2f} s ({detail})"
            ) from None
        begin, position = position, position + len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        mono = np.ascontiguousarray(mono[max(0, first - begin) :])
        _check_finite(mono, path, max(first, begin), file.samplerate)
        if len(mono):
            yield mono
        if len(block) < want:
            if known:
                raise AudioError(
                    path,
                    f"is truncated: decoding stops at {position / file.samplerate:.2f} s of the "
                    f"{file.frames / file.samplerate:.2f} s that the header states",
                )
            return


def _seek(file: soundfile.SoundFile, path: PathLike, first: int, exact: bool) -> int:
    """Move to `first` or to where decoding must begin for `first` to come out right; return the position."""
    if not first or file.frames >= _UNKNOWN_FRAMES:
        return 0
    target = first
    if file.subtype in _STATEFUL_SUBTYPES:
        if first <= (_DECODE_FROM_START_SECONDS if exact else _ROLL_SECONDS) * file.samplerate:
            return 0
        target = first - round(_ROLL_SECONDS * file.samplerate)
    try:
        return int(file.seek(target))
    except (soundfile.SoundFileError, RuntimeError) as error:
        detail = str(error).strip(" .")
        raise AudioError(
            path, f"is damaged or truncated: no seek to {target / file.samplerate:.2f} s ({detail})"
        ) from None


def _read_range(
    file: soundfile.SoundFile, path: PathLike, sample_rate: int, first: int, count: int | None, exact: bool
) -> Waveform:
    """Samples [first, first + count) on the grid of `sample_rate`; the end of the file cuts it."""
    rate = file.samplerate
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


def _resampled_parts(file: soundfile.SoundFile, path: PathLike, sample_rate: int, block: int) -> Iterator[Waveform]:
    """The whole file at `sample_rate`, piece by piece."""
    rate = file.samplerate
    step = min(_BLOCK_FRAMES, max(1, ceil(block * rate / sample_rate)))
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


def _check_finite(samples: npt.NDArray[np.float32], path: PathLike | None, offset: int, rate: int) -> None:
    finite = np.isfinite(samples)
    if not finite.all():
        where = int(np.argmin(finite))
        kind = "NaN" if np.isnan(samples[where]) else "an infinite value"
        raise AudioError(path, f"holds {kind} at sample {offset + where} ({(offset + where) / rate:.3f} s)")
