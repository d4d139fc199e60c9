"""Audio files opened for decoding: regular files only, with their true length, whatever their names are."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from ssamba.audio.checks import check_header
from ssamba.audio.containers import examine_container
from ssamba.audio.encoded import Encoded
from ssamba.audio.flac_frames import examine_flac
from ssamba.audio.layout import AS_IT_IS, Layout, Piece, PieceFile, read_at
from ssamba.audio.mpeg_frames import examine_mpeg, skip_tags
from ssamba.audio.ogg_pages import examine_ogg
from ssamba.utils.errors import AudioError, SsambaError, UnknownFormatError
from ssamba.utils.files import open_regular

PathLike = str | os.PathLike[str]
Decoded = npt.NDArray[np.float32]

UNKNOWN_FRAMES = 1 << 48
"""libsndfile reports 2**63 - 1 for a stream that does not state its length."""


_OTHER_FORMATS = {
    b"\x1a\x45\xdf\xa3": "a WebM or Matroska file",
    b"\x30\x26\xb2\x75": "a Windows Media file (WMA)",
    b"#!AMR": "an AMR file",
    b"wvpk": "a WavPack file",
    b"MAC ": "a Monkey's Audio file",
    b"TTA1": "a True Audio file",
    b"DSD ": "a DSD file",
    b"FRM8": "a DSD file",
    b".RMF": "a RealAudio file",
    b"FLV": "a Flash video",
}


class _Decoder(soundfile.SoundFile):
    """A SoundFile whose reads continue without the seek that soundfile adds after each (it fails in unsized FLACs)."""

    def seekable(self) -> bool:
        return False


class Recording:
    """An open file: its streams decoded one after the other. A context manager.

    Attributes:
        frames: samples per channel; `UNKNOWN_FRAMES` or more when only decoding tells.
        sample_rate: Hz.
        channels: of the first stream.
        subtype: libsndfile's name of the codec.
        uncertain: only decoding tells the length, or where the file is truncated.
    """

    def __init__(self, path: PathLike, raw: BinaryIO, layout: Layout) -> None:
        self._path, self._raw, self.uncertain = path, raw, layout.uncertain or layout.truncated
        self._streams = layout.streams or (None,)
        self._at = 0
        self._file = _decoder(path, raw, self._streams[0])
        self.sample_rate, self.channels, self.subtype = self._file.samplerate, self._file.channels, self._file.subtype
        self.format = self._file.format
        self._lengths = [self._file.frames]
        for number in range(1, len(self._streams)):
            self._open_stream(number)
            self._lengths.append(self._file.frames)
        if len(self._streams) > 1:
            self._open_stream(0)
        self.frames = UNKNOWN_FRAMES if layout.uncertain else sum(self._lengths)

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.close_decoder()
        self._raw.close()

    def close_decoder(self) -> None:
        """Close what libsndfile holds, not the file."""
        self._file.close()

    def read(self, count: int) -> Decoded:
        """The next samples, (up to `count`, channels); fewer only at the end. Raises what soundfile raises."""
        block: Decoded = self._file.read(count, dtype="float32", always_2d=True)
        while len(block) < count and self._at + 1 < len(self._streams):
            self._open_stream(self._at + 1)
            more = self._file.read(count - len(block), dtype="float32", always_2d=True)
            block = _joined(block, more)
        return block

    def seek(self, position: int) -> int:
        """Go on at that sample; returns it. Raises what soundfile raises."""
        before = 0
        for number, length in enumerate(self._lengths):
            if position < before + length or number == len(self._lengths) - 1:
                if number != self._at:
                    self._open_stream(number)
                return before + int(self._file.seek(position - before))
            before += length
        return position

    def _open_stream(self, number: int) -> None:
        self._file.close()
        self._file = _decoder(self._path, self._raw, self._streams[number])
        self._at = number
        if self._file.samplerate != self.sample_rate:
            rate = self._file.samplerate
            self._file.close()
            raise AudioError(
                self._path, f"joins streams of {self.sample_rate} and {rate} Hz: split it, or convert it to one WAV"
            )


def _joined(first: Decoded, second: Decoded) -> Decoded:
    """Blocks behind each other; where their channels differ in number, of the mean of each."""
    if first.shape[1] != second.shape[1]:
        first, second = (block.mean(axis=1, keepdims=True, dtype=np.float32) for block in (first, second))
    return np.concatenate((first, second))


def open_recording(path: PathLike) -> Recording:
    """Open a file, or an ``Encoded``, for decoding; every failure becomes an AudioError that says what is wrong."""
    raw = path.open() if isinstance(path, Encoded) else _open_raw(path)
    try:
        size = raw.seek(0, os.SEEK_END)
        head = read_at(raw, 0, 16)
        if not head:
            raise AudioError(path, "is empty (0 bytes)")
        layout = _examine(raw, size, head, path)
        if layout.problem:
            raise AudioError(path, layout.problem)
        recording = _recording(path, raw, layout)
        if recording.frames <= 0:
            raise AudioError(path, "holds no audio samples (the header says 0 frames)")
        check_header(path, recording.sample_rate, recording.channels)
        return recording
    except OSError as error:
        raw.close()
        raise AudioError(path, f"cannot be read ({error.strerror or error})") from None
    except BaseException:
        raw.close()
        raise


def _recording(path: PathLike, raw: BinaryIO, layout: Layout) -> Recording:
    """The recording; a file whose frames were counted is read through its view only where the decoder needs it."""
    if layout.frames is None or layout.uncertain:
        return Recording(path, raw, layout)
    recording = Recording(path, raw, AS_IT_IS)
    if recording.frames == layout.frames:
        return recording
    recording.close_decoder()
    return Recording(path, raw, layout)


def _open_raw(path: PathLike) -> BinaryIO:
    try:
        return open_regular(path, SsambaError)
    except SsambaError as problem:
        cause = problem.__context__
        reason = str(problem).removeprefix(f"{os.fspath(path)}: ")
    if isinstance(cause, FileNotFoundError):
        reason = "no such file"
    elif isinstance(cause, PermissionError):
        reason = "permission denied; make the file readable"
    elif reason.startswith("is a folder"):
        reason = "is a folder, not an audio file"
    raise AudioError(path, reason)


def _examine(raw: BinaryIO, size: int, head: bytes, path: PathLike) -> Layout:
    layout = examine_container(raw, size, head)
    if layout is not None:
        return layout
    if head.startswith(b"OggS"):
        return examine_ogg(raw, size)
    begin = skip_tags(raw) if head.startswith(b"ID3") else 0
    marker = read_at(raw, begin, 4) if begin else head[:4]
    if marker == b"fLaC":
        return examine_flac(raw, size, begin)
    named = os.fsdecode(path).lower().endswith((".mp3", ".mp2"))  # cut out of a stream, it begins within a frame
    if begin or named or (len(marker) > 1 and marker[0] == 0xFF and marker[1] & 0xE0 == 0xE0):
        return examine_mpeg(raw, size, begin)
    return AS_IT_IS


def _decoder(path: PathLike, raw: BinaryIO, pieces: tuple[Piece, ...] | None) -> _Decoder:
    """libsndfile's decoder of a file, or of a view of it."""
    source: Any
    if pieces is not None:
        source = PieceFile(raw, pieces)
    elif isinstance(path, Encoded):
        raw.seek(0)
        source = raw
    elif os.name == "nt":  # libsndfile has another C library's numbers of open files there
        source = os.fspath(path)
    else:
        os.lseek(raw.fileno(), 0, os.SEEK_SET)
        source = raw.fileno()
    try:
        return _Decoder(source, closefd=False)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # libsndfile's messages for files that it does not know mislead: add the first bytes.
        detail = str(error).rsplit(": ", 1)[-1].strip(" .")
        head = read_at(raw, 0, 8)
        if (other := _other_format(read_at(raw, 0, 16))) is not None:
            raise UnknownFormatError(
                path, f"is {other}, which is not decoded here: convert it to FLAC or WAV (ffmpeg -i OLD NEW.flac)"
            ) from None
        raise UnknownFormatError(
            path, f"is not audio that libsndfile can decode (starts with {head!r}; {detail})"
        ) from None


def _other_format(head: bytes) -> str | None:
    """The name of a format that is known but not decoded, by a file's first 16 bytes."""
    if head[4:8] == b"ftyp":
        return "an MP4 file (M4A, AAC)"
    if head[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return "an AAC stream"
    return next((name for marker, name in _OTHER_FORMATS.items() if head.startswith(marker)), None)
