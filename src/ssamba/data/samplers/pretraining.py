"""Crops of each pretraining step, as a pure function of (seed, step), and held-out files.

Nothing here has state that training must save. ``plan.batch(step)`` gives the same crops in a fresh process, so a run
that was killed goes on with exactly the batches that it would have seen.

Randomness is numpy's Philox, keyed by (seed, purpose, ...) for each draw: no generator is advanced, none is shared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ssamba.audio.front_end import PUBLISHED
from ssamba.data.manifest import Clip, Source
from ssamba.utils.errors import DataError

__all__ = ["CropSpec", "PretrainPlan", "centre_crops", "numpy_generator", "rows_of", "split_validation"]

# Purposes of a draw: streams with different ones are independent.
_ORDER, _SHUFFLE, _START, _REPLACE, _VIEW, _SPEED = range(6)


class CropSpec(NamedTuple):
    """A stretch of a file: `seconds` from `start` on, or what the file has of it."""

    path: str
    start: float
    seconds: float


def rows_of(batch: int, part: tuple[int, int]) -> range:
    """The rows of a batch that process ``part[0]`` of ``part[1]`` works on: blocks that differ by one row at most."""
    return range(batch * part[0] // part[1], batch * (part[0] + 1) // part[1])


class _Epoch(NamedTuple):
    source: npt.NDArray[np.int64]  # (N,) index of the source at each position
    item: npt.NDArray[np.int64]  # (N,) item inside that source


class PretrainPlan:
    """The order of crops in pretraining.

    A clip longer than `crop_seconds` gives ceil(length / crop_seconds) crops to an epoch, each drawn at random inside
    its share of the file, so that an epoch covers the file evenly; a shorter clip gives itself once. Crops of all
    epochs form one endless sequence that batches cut into equal pieces: no batch is short and no crop is dropped.

    With weights, an epoch has as many crops as without, and source i gives weight_i / sum(weights) of them. Each source
    goes through all its crops before it repeats one, over epochs if need be.

    Args:
        sources: clips with known lengths (see :func:`ssamba.data.scan.scan_sources`) and weights on all or none.
        batch_size: crops in a batch.
        seed: any whole number >= 0.
        crop_seconds: length of a crop.
        crops_per_clip: "length" as described above, or a number of crops for every clip longer than a crop.
        views: crops that are taken for each one described above, which follow one another: itself, then others of the
            same clip that begin up to `view_shift` seconds before or after it. An epoch has `views` times as many.
        view_shift: seconds.
        speed: crops are played up to this factor faster or slower, each with its factor from
            :meth:`speeds`, and are as long as that takes.
        sample_rate: crops begin and end on its samples, Hz.

    Raises:
        DataError: no clips, or a clip without a length.
        ValueError: batch size, crop length or number of crops not positive, a batch that is no multiple of `views`, a
            speed below 1, or a negative seed.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        seed: int = 0,
        crop_seconds: float = 10.24,
        crops_per_clip: int | Literal["length"] = "length",
        views: int = 1,
        view_shift: float = 1.0,
        speed: float = 1.0,
        sample_rate: int = PUBLISHED.sample_rate,
    ) -> None:
        if not speed >= 1:
            raise ValueError(f"speed={speed} must be 1 or more")
        if views < 1 or batch_size % views or not view_shift >= 0:
            raise ValueError(
                f"views={views} must be positive and divide batch_size={batch_size}, view_shift={view_shift} be >= 0"
            )
        if batch_size < 1 or not crop_seconds > 0 or seed < 0 or (crops_per_clip != "length" and crops_per_clip < 1):
            raise ValueError(
                f"batch_size={batch_size}, crop_seconds={crop_seconds} and crops_per_clip={crops_per_clip} must be "
                f"positive, and seed={seed} not negative"
            )
        self.sources = tuple(source for source in sources if source.clips)
        if not self.sources:
            raise DataError("no clips to train on: every source is empty")
        self.batch_size, self.seed, self.crop_seconds, self.crops_per_clip = (
            batch_size,
            seed,
            crop_seconds,
            crops_per_clip,
        )
        self.views, self.view_shift, self.speed, self.sample_rate = views, view_shift, speed, sample_rate
        self._lengths = [_lengths(source) for source in self.sources]
        counts = [self._crop_counts(lengths) for lengths in self._lengths]
        # Item j of a source belongs to the clip whose stretch [offsets[c], offsets[c + 1]) holds j.
        self._offsets = [np.concatenate(([0], np.cumsum(count))) for count in counts]
        self._items = [int(offset[-1]) for offset in self._offsets]
        self._draws = _shares(self._items, [source.weight for source in self.sources])
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)  # prefetching looks one epoch ahead
        self.speeds = lru_cache(maxsize=64)(self._draw_speeds)

    @property
    def read_seconds(self) -> float:
        """Length of the longest crop that is read: `crop_seconds`, or what the highest speed needs for it."""
        return self.crop_seconds if self.speed == 1 else self._needed(self.speed)

    @property
    def crops_per_epoch(self) -> int:
        """Crops in an epoch."""
        return self.views * sum(self._draws)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold a whole epoch (the last of them may begin the next epoch)."""
        return ceil(self.crops_per_epoch / self.batch_size)

    @property
    def clips(self) -> list[Clip]:
        """All clips, source by source."""
        return [clip for source in self.sources for clip in source.clips]

    @property
    def fingerprint(self) -> str:
        """Short hash of everything that the batches depend on: two plans with the same one give the same batches.

        Store it in the checkpoint, and warn when the plan made at resume has another: files came or went.
        """
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr((self.batch_size, self.seed, self.crop_seconds, self.crops_per_clip, self._draws)).encode())
        if self.views > 1:
            digest.update(repr((self.views, self.view_shift)).encode())
        if self.speed > 1:
            digest.update(repr(self.speed).encode())
        if self.sample_rate != PUBLISHED.sample_rate:
            digest.update(repr(("sample_rate", self.sample_rate)).encode())
        for source, lengths in zip(self.sources, self._lengths, strict=True):
            for clip in source.clips:
                digest.update(clip.key.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(lengths.tobytes())
        return digest.hexdigest()

    def batch(self, step: int) -> list[CropSpec]:
        """The `batch_size` crops of training step `step` (from 0)."""
        first = step * self.batch_size
        return [self.crop(position) for position in range(first, first + self.batch_size)]

    def crop(self, position: int, attempt: int = 0) -> CropSpec:
        """The crop at `position` of the endless sequence (step * batch_size + row).

        Args:
            position: from 0.
            attempt: 0 for the crop itself; n > 0 for the n-th replacement, used when the file turns out unreadable: a
                crop of the same source, drawn from (seed, position, n).
        """
        seconds = self._seconds(position)
        position, view = divmod(position, self.views)
        epoch, index = divmod(position, sum(self._draws))
        order = self._epoch(epoch)
        source, item = int(order.source[index]), int(order.item[index])
        if attempt:
            item = int(numpy_generator(self.seed, _REPLACE, position, attempt).integers(self._items[source]))
        clip = int(np.searchsorted(self._offsets[source], item, side="right")) - 1
        part = item - int(self._offsets[source][clip])
        parts = int(self._offsets[source][clip + 1] - self._offsets[source][clip])
        start = self._start(float(self._lengths[source][clip]), part, parts, position, view, attempt)
        return CropSpec(self.sources[source].clips[clip].path, start, seconds)

    def _start(self, length: float, part: int, parts: int, position: int, view: int, attempt: int) -> float:
        """Start of crop `part` of `parts`, on the grid of samples, so that the crop lies inside the clip.

        A further view of it is drawn around where the first one begins.
        """
        last = max(0, int((length - self._seconds(position * self.views)) * self.sample_rate))
        low, high = part * last // parts, (part + 1) * last // parts
        first = int(numpy_generator(self.seed, _START, position, attempt).integers(low, high + 1)) if last else 0
        if view:
            most = round(self.view_shift * self.sample_rate)
            last = max(0, int((length - self._seconds(position * self.views + view)) * self.sample_rate))
            high = min(last, first + most)
            low = min(max(0, first - most), high)
            first = (
                int(numpy_generator(self.seed, _VIEW, position, view, attempt).integers(low, high + 1)) if high else 0
            )
        return first / self.sample_rate

    def _draw_speeds(self, step: int) -> npt.NDArray[np.float32]:
        """How many times as fast each crop of a step is to be played: (B,), log-uniform from 1 / speed to speed."""
        draws = numpy_generator(self.seed, _SPEED, step).random(self.batch_size)
        return (self.speed ** (2 * draws - 1)).astype(np.float32)

    def _seconds(self, position: int) -> float:
        """What the crop at `position` of the sequence reads."""
        if self.speed == 1:
            return self.crop_seconds
        step, row = divmod(position, self.batch_size)
        return self._needed(float(self.speeds(step)[row]))

    def _needed(self, speed: float) -> float:
        """Seconds that give `crop_seconds` at a speed, and a sample more: no rounding may leave a crop short."""
        return (ceil(speed * round(self.crop_seconds * self.sample_rate)) + 1) / self.sample_rate

    def _crop_counts(self, lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        if self.crops_per_clip == "length":
            # A clip a hair longer than n crops (10.001 s against 10 s) is n crops, not n + 1.
            return np.maximum(1, np.ceil(lengths / self.crop_seconds - 0.05)).astype(np.int64)
        return np.where(lengths > self.crop_seconds, self.crops_per_clip, 1).astype(np.int64)

    def _make_epoch(self, epoch: int) -> _Epoch:
        source = np.repeat(np.arange(len(self.sources)), self._draws)
        numpy_generator(self.seed, _ORDER, epoch).shuffle(source)
        item = np.empty(len(source), np.int64)
        for number, draws in enumerate(self._draws):
            item[source == number] = self._source_items(number, epoch * draws, draws)
        return _Epoch(source, item)

    def _source_items(self, source: int, first: int, count: int) -> npt.NDArray[np.int64]:
        """Items [first, first + count) of a source's endless sequence of permutations."""
        size = self._items[source]
        parts = []
        while count:
            cycle, begin = divmod(first, size)
            taken = min(count, size - begin)
            permutation = numpy_generator(self.seed, _SHUFFLE, source, cycle).permutation(size)
            parts.append(permutation[begin : begin + taken])
            first, count = first + taken, count - taken
        return np.concatenate(parts)


def centre_crops(
    clips: Sequence[Clip], crop_seconds: float, sample_rate: int = PUBLISHED.sample_rate
) -> list[CropSpec]:
    """One fixed crop from the middle of each clip, for validation: (path, start, seconds) in the clips' order.

    Raises:
        DataError: a clip without a length.
    """
    lengths = _lengths(Source("validation", tuple(clips)))
    starts = [max(0, int((length - crop_seconds) / 2 * sample_rate)) / sample_rate for length in lengths]
    return [CropSpec(clip.path, start, crop_seconds) for clip, start in zip(clips, starts, strict=True)]


def split_validation(
    sources: Sequence[Source], fraction: float | None = None, count: int | None = None, seed: int = 0
) -> tuple[list[Source], list[Clip]]:
    """Hold out whole files, chosen by a hash of each file's name inside its source.

    A file's side does not depend on the machine or folder, and with `fraction` not on the other files either: files
    that are added later move none across. No path is on both sides, even when two sources name the same file.

    Args:
        sources: what to split.
        fraction: share of the files to hold out, 0 <= fraction < 1 (at least one file when above 0); or
        count: their number.
        seed: another seed, another choice.

    Returns:
        The sources without the held-out files, and the held-out clips in the sources' order.

    Raises:
        DataError: nothing would be left to train on.
        ValueError: both or neither of `fraction` and `count`, or out of range.
    """
    if (fraction is None) == (count is None) or not 0 <= (fraction or 0) < 1 or (count or 0) < 0:
        raise ValueError(f"give fraction in [0, 1) or count >= 0, not fraction={fraction} and count={count}")
    ranked = sorted((_hash(clip, seed), os.path.abspath(clip.path)) for source in sources for clip in source.clips)
    if count is None:
        held = {path for value, path in ranked if value < (fraction or 0) * 2**64}
        if fraction and not held and len(ranked) > 1:
            held = {ranked[0][1]}
    else:
        held = set(list(dict.fromkeys(path for _, path in ranked))[:count])
    training, validation = [], {}
    for source in sources:
        sides: tuple[list[Clip], list[Clip]] = ([], [])
        for clip in source.clips:
            sides[os.path.abspath(clip.path) in held].append(clip)
        training.append(replace(source, clips=tuple(sides[0])))
        validation.update({os.path.abspath(clip.path): clip for clip in sides[1]})
    if ranked and not any(source.clips for source in training):
        raise DataError(
            f"holding out {len(held)} of {len(ranked)} clips for validation leaves none to train on; hold out fewer"
        )
    return training, list(validation.values())


def numpy_generator(seed: int, *key: int) -> np.random.Generator:
    """A fresh generator for one draw: the same for the same (seed, key), independent of all others (Philox)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def _hash(clip: Clip, seed: int) -> int:
    name = f"{seed}\0{clip.key or clip.path}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _lengths(source: Source) -> npt.NDArray[np.float64]:
    lengths = np.array([np.nan if clip.seconds is None else clip.seconds for clip in source.clips], np.float64)
    unknown = np.flatnonzero(np.isnan(lengths))
    if len(unknown):
        raise DataError(
            f"{source.clips[unknown[0]].path}: its length is not known; scan the clips before sampling them"
        )
    return lengths


def _shares(items: list[int], weights: list[float | None]) -> list[int]:
    """Crops that each source gives to an epoch: all of them, or its share of the sum (largest remainders, >= 1)."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        return items
    if len(given) < len(items):
        raise DataError("a weight is given to some sources and not to others: give one to each or to none")
    exact = np.array(given) / sum(given) * sum(items)
    shares = np.floor(exact).astype(np.int64)
    rest = sum(items) - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:rest]] += 1
    return [max(1, int(share)) for share in shares]
