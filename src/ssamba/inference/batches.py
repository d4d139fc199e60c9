"""Segments of many recordings share passes through the model; what a pass gives goes back to its recordings.

Only segments of the same width share a batch, so no padding but a recording's own reaches the scan, and a batch gives
what its members give alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ssamba.inference.windows import Segment
from ssamba.models import patches

if TYPE_CHECKING:
    from ssamba.inference.cuda_graphs import GraphedEncoder

Output = TypeVar("Output")
State = TypeVar("State")

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 262144}
"""Tokens in one pass: enough to fill the device, little enough to keep the memory flat."""
PASSES_WAITING = 4
"""Passes' worth of segments that may wait for others of their width, before the fullest batch runs as it is."""


def group_segments(
    model: GraphedEncoder, segments: Iterable[Segment], batch: int | None = None, passes_waiting: float = PASSES_WAITING
) -> Iterator[list[Segment]]:
    """Segments of many recordings in full batches, each of equal width, for one pass.

    ``batch`` is segments in a pass (None: as many as the device takes well). The segments of one recording keep their
    order; those of different recordings may change theirs, where their widths differ. Each pass of shifted segments
    has groups of its own, so that the plain pass is grouped, and computed, as it is without the others.
    """
    config = model.config
    rows = config.grid[0]
    limit = TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cpu"])
    groups_of: dict[int, dict[int, list[Segment]]] = defaultdict(lambda: defaultdict(list))
    waiting: dict[int, int] = defaultdict(int)
    for segment in segments:
        groups, shift = groups_of[segment.shift], segment.shift
        frames = segment.features.shape[0]
        tokens = model.prefix_tokens + rows * patches.full_columns(frames, config)
        groups[frames].append(segment)
        waiting[shift] += frames
        full = len(groups[frames]) >= (batch or max(1, limit // tokens))
        crowded = waiting[shift] // config.stride_time * rows > passes_waiting * limit
        if full or crowded:
            if not full:
                frames = max(groups, key=lambda k: k * len(groups[k]))
            group = groups.pop(frames)
            waiting[shift] -= frames * len(group)
            yield group
    for groups in groups_of.values():
        yield from groups.values()


def run_passes(
    groups: Iterable[list[Segment]], forward: Callable[[Tensor], Iterable[Output]]
) -> Iterator[tuple[Segment, Output]]:
    """Pairs of a segment and what ``forward`` gives for it, from the features (B, frames, mel_bins) of its group."""
    for group in groups:
        yield from zip(group, forward(torch.stack([segment.features for segment in group])), strict=True)


def by_recording(
    passes: Iterable[tuple[Segment, Output]], new_state: Callable[[], State], failed: Collection[int] = ()
) -> Iterator[tuple[Segment, Output, State]]:
    """Adds to each pair the state of its recording, which is made for the first segment and dropped after the last.

    Each pass of shifted segments has a state of its own.

    Segments of recordings that are in ``failed`` by now are left out.
    """
    states: dict[tuple[int, int], State] = {}
    for segment, output in passes:
        key = segment.recording, segment.shift
        state = states.pop(key, None)
        if segment.recording in failed:
            continue
        state = new_state() if state is None else state
        if not segment.last:
            states[key] = state
        yield segment, output, state
