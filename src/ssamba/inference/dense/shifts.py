"""A vector each 40 ms from a model with one each 160: its grid is laid over the recording several times.

Each pass reads the recording from a later frame on, and the passes' columns are interleaved in time order. The first
pass is the plain one, so every fourth vector is what the model gives without a hop, bit for bit. A column that begins
within the recording is there; what it covers beyond the end is padding, as in the plain pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ssamba.audio.constants import HOP_MILLISECONDS
from ssamba.inference.windows import Length, Segment
from ssamba.models.config import Config
from ssamba.utils.errors import ConfigError
from ssamba.utils.terminal import shorten

PLAIN = (0,)
"""The one beginning of the plain pass."""


def shifts_of(hop_ms: float | None, config: Config) -> tuple[int, ...]:
    """The frames at which passes begin so that columns are ``hop_ms`` apart; None: the model's own step, one pass.

    Milliseconds are nominal: frames are 10 ms apart, or a little less where a rate has no whole samples in 10 ms.
    Raises ``ConfigError`` for a hop that does not divide the step of the patch columns.
    """
    if hop_ms is None:
        return PLAIN
    stride = config.stride_time
    hops = [HOP_MILLISECONDS * n for n in range(1, stride + 1) if stride % n == 0]
    if isinstance(hop_ms, bool) or not isinstance(hop_ms, (int, float)) or hop_ms not in hops:
        raise ConfigError(
            f"hop is {shorten(hop_ms)} ms: give one of {', '.join(map(str, hops))}, which divide the model's step"
        )
    return tuple(range(0, stride, round(hop_ms / HOP_MILLISECONDS)))


def hop_frames(shifts: Sequence[int], config: Config) -> int:
    """Frames between two columns of the interleaved passes."""
    return config.stride_time // len(shifts)


def interleave(
    columns: Iterable[tuple[Segment, Tensor]], shifts: Sequence[int], failed: Collection[int] = ()
) -> Iterator[tuple[Segment, Tensor]]:
    """Columns (F, n, d) of the passes -> those of the recordings in time order, as soon as no earlier one is missing.

    Each pass gives its columns in order. With a recording's last piece, and only there, the segment says its length.
    Columns of recordings that turn up in ``failed`` are dropped.
    """
    waiting: dict[int, _Passes] = {}
    known = 0
    for segment, piece_FTd in columns:
        if len(failed) > known:
            known = len(failed)
            waiting = {i: passes for i, passes in waiting.items() if i not in failed}
        passes = waiting.setdefault(segment.recording, _Passes(shifts))
        passes.add(segment, piece_FTd)
        done = passes.complete
        if done:
            del waiting[segment.recording]
        yield dataclasses.replace(segment, end=passes.end if done else None), passes.take(done)


class _Passes:
    """The columns of one recording's passes that wait for their neighbours."""

    def __init__(self, shifts: Sequence[int]) -> None:
        self._held: dict[int, list[Tensor]] = {shift: [] for shift in shifts}
        self._ended: set[int] = set()
        self.end: Length | None = None

    def add(self, segment: Segment, columns_FTd: Tensor) -> None:
        self._held[segment.shift].append(columns_FTd)
        if segment.last:
            self._ended.add(segment.shift)
        if segment.shift == 0:
            self.end = segment.end

    @property
    def complete(self) -> bool:
        """Whether all passes have ended; one that would begin behind the recording does not exist."""
        return self.end is not None and all(s in self._ended for s in self._held if s < self.end.frames)

    def take(self, all_of_them: bool) -> Tensor:
        """The columns (F, n, d) of which all earlier ones are there, or the rest."""
        rounds = min(sum(piece.shape[1] for piece in pieces) for pieces in self._held.values())
        if not rounds and not all_of_them:
            return next(pieces[0] for pieces in self._held.values() if pieces)[:, :0]
        joined = {shift: _joined(pieces) for shift, pieces in self._held.items() if pieces}
        out = [torch.stack([x[:, :rounds] for x in joined.values()], dim=2).flatten(1, 2)] if rounds else []
        if all_of_them:  # passes that begin later have one column less, or none
            out += [x[:, rounds : rounds + 1] for x in joined.values()]
        self._held |= {shift: [x[:, rounds:]] for shift, x in joined.items()}
        return torch.cat(out, dim=1)


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
