"""Decoded clips kept in memory, in one block that decoding processes share."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ssamba.audio.checks import check_length
from ssamba.audio.decode import Waveform, read_audio, stream_audio
from ssamba.audio.front_end import PUBLISHED
from ssamba.data.manifest import Clip

__all__ = ["AudioCache", "CacheReader", "CacheSlot", "SharedBlock", "bytes_on_disk", "read_quantised"]


class SharedBlock:
    """Memory that processes share by its file descriptor.

    It has no name, so that nothing is left behind however they end, and it does not lie in /dev/shm, which containers
    keep small. Pages take memory when they are first written.

    Args:
        size: bytes; 0 is possible.
        fd: another process's block of that size; None makes a new one.
    """

    def __init__(self, size: int, fd: int | None = None) -> None:
        self.size, self.fd = size, _new_file(size) if fd is None else fd
        self._map = mmap.mmap(self.fd, max(1, size))

    def array(self, kind: type[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """The block's first bytes as an array; it keeps the memory alive."""
        count = int(np.prod(shape))
        return np.frombuffer(self._map, kind, count).reshape(shape)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)
            self.fd = -1


def _new_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("ssamba")
    else:  # a file without a name
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, max(1, size))
    return fd


BLOCKWISE_SECONDS = 600.0
"""Longer files are never held in memory as floats: 38 MB at 16 kHz."""
FREE_BYTES = 100_000_000
MAX_UNPACKED = 32
"""Speech as Opus of 8 kbit/s unpacks to 32 times its size."""


class CacheSlot(NamedTuple):
    """Where a clip lies in the cache: ``room`` samples from ``first`` on.

    ``length`` samples are there at ``peak`` / 32767 a unit; -1 while the clip has not been decoded.
    """

    first: int
    room: int
    length: int
    peak: float


class CacheReader:
    """``read(path, start, seconds)`` as of :func:`read_audio`, through a cache; one for each process.

    Args:
        samples: (N,) int16, the cache; None where there is none.
        slots: of the clips that are or will be in it.
        exact: of clips outside the cache, as in :func:`read_audio`.
        sample_rate: of the cache and of what is returned, Hz.

    Attributes:
        stored: path -> slot of what it has decoded into the cache.
    """

    def __init__(
        self,
        samples: npt.NDArray[np.int16] | None,
        slots: Mapping[str, CacheSlot],
        exact: bool = True,
        sample_rate: int = PUBLISHED.sample_rate,
    ) -> None:
        self.samples, self.slots, self.exact, self.sample_rate = samples, slots, exact, sample_rate
        self.stored: dict[str, CacheSlot] = {}

    def __call__(self, path: str, start: float = 0.0, seconds: float | None = None) -> Waveform:
        """Raises ``AudioError``: the file cannot be decoded, as a whole where it belongs into the cache."""
        slot = self.slots.get(path)
        if slot is None or self.samples is None:
            return read_audio(path, self.sample_rate, start, seconds, self.exact)
        slot = self.stored.get(path, slot)
        if slot.length >= 0:
            clip, peak = self.samples[slot.first : slot.first + slot.length], slot.peak
        else:
            clip, peak = read_quantised(path, self.sample_rate, slot.room / self.sample_rate)
            if len(clip) <= slot.room:  # a header that promised less does not push others aside
                self.samples[slot.first : slot.first + len(clip)] = clip
                self.stored[path] = slot._replace(length=len(clip), peak=peak)
        first = round(start * self.sample_rate)
        crop = clip[first:] if seconds is None else clip[first : first + round(seconds * self.sample_rate)]
        check_length(len(crop), path, self.sample_rate)
        return crop.astype(np.float32) * np.float32(peak / 32767)


def read_quantised(path: str, sample_rate: int, seconds: float) -> tuple[npt.NDArray[np.int16], float]:
    """A whole file as int16 and its peak: samples are int16 * peak / 32767.

    Memory is that of the result: files beyond ``BLOCKWISE_SECONDS`` are decoded twice, in blocks, for the peak and for
    the samples. ``seconds`` is the length by the header.

    Raises:
        AudioError: the file cannot be decoded.
    """
    if seconds <= BLOCKWISE_SECONDS:
        samples = read_audio(path, sample_rate)
        peak = float(np.abs(samples).max()) or 1.0
        return _quantised(samples, peak), peak
    peak = length = 0.0
    for block in stream_audio(path, sample_rate=sample_rate):
        peak, length = max(peak, float(np.abs(block).max())), length + len(block)
    peak, held, end = peak or 1.0, np.empty(int(length), np.int16), 0
    for block in stream_audio(path, sample_rate=sample_rate):
        held[end : end + len(block)] = _quantised(block, peak)[: len(held) - end]
        end = min(len(held), end + len(block))
    return held[:end], peak


def _quantised(samples: Waveform, peak: float) -> npt.NDArray[np.int16]:
    return np.round(samples * np.float32(32767 / peak)).astype(np.int16)


def _bounded(clips: Sequence[Clip], budget_bytes: int, sample_rate: int) -> int:
    """The budget, or what the clips' sizes on disk justify. Sizes are looked up only where it could matter."""
    whole = sum(2 * sample_rate * (clip.seconds or 0.0) for clip in clips)
    if min(budget_bytes, whole) <= FREE_BYTES:
        return budget_bytes
    return min(budget_bytes, FREE_BYTES + MAX_UNPACKED * bytes_on_disk({clip.path for clip in clips}))


def bytes_on_disk(paths: Iterable[str]) -> int:
    """The files' sizes together; of those that are not there, nothing."""
    found = 0
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            found += os.stat(path).st_size
    return found


class AudioCache:
    """Decoded clips kept in memory, up to a budget, so that a small set is decoded once and not every epoch.

    Kept as int16 scaled by the clip's peak: half the size of float32, -98 dB from it. The clips that fit are chosen
    beforehand, in the given order, and each has its slot, so that a crop's samples never depend on which came first.
    Two processes that decode the same clip at once write the same samples to the same slot.

    Beyond ``FREE_BYTES`` a set takes at most ``MAX_UNPACKED`` times its size on disk: hours of near silence in a few
    megabytes are not worth gigabytes of memory, and their crops are quick to decode.

    Args:
        clips: candidates with known lengths, most useful first.
        budget_bytes: most memory for samples; a second takes 2 bytes for each sample, 32,000 at 16 kHz.
        sample_rate: of the samples, Hz.
    """

    def __init__(self, clips: Sequence[Clip], budget_bytes: int, sample_rate: int = PUBLISHED.sample_rate) -> None:
        self.sample_rate = sample_rate
        self._slots: dict[str, CacheSlot] = {}
        self._decoding: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        total = 0
        budget_bytes = _bounded(clips, budget_bytes, sample_rate)
        for clip in clips:
            room = int((clip.seconds or 0.0) * sample_rate) + 1
            if clip.seconds and clip.path not in self._slots and 2 * (total + room) <= budget_bytes:
                self._slots[clip.path] = CacheSlot(total, room, -1, 0.0)
                total += room
        self.bytes = 2 * total
        self.block = SharedBlock(self.bytes)
        self._samples = self.block.array(np.int16, (total,))

    def __contains__(self, path: str) -> bool:
        return path in self._slots

    def slot(self, path: str) -> CacheSlot | None:
        """Where a clip is or will be, None for those outside the cache."""
        return self._slots.get(path)

    def note(self, slots: Mapping[str, CacheSlot]) -> None:
        """Record what another process has decoded into the block."""
        self._slots.update(slots)

    def read(self, path: str, start: float = 0.0, seconds: float | None = None, exact: bool = True) -> Waveform:
        """As ``read_audio(path, sample_rate, start, seconds)``, from memory where the clip was chosen for it.

        Raises:
            AudioError: the file cannot be decoded as a whole.
        """
        reader = CacheReader(self._samples, self._slots, exact, self.sample_rate)  # type: ignore[arg-type]
        slot = self._slots.get(path)
        if slot is None or slot.length >= 0:
            return reader(path, start, seconds)
        with self._lock:
            future = self._decoding.get(path)
            first = future is None
            if future is None:
                future = self._decoding[path] = Future()
        if not first:  # another thread decodes it: wait, and read what it has stored
            future.result()
            return reader(path, start, seconds)
        try:
            return reader(path, start, seconds)
        finally:
            self.note(reader.stored)
            with self._lock:
                del self._decoding[path]
            future.set_result(None)
