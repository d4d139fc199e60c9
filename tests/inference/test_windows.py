"""Segments of recordings: those of the plans' rules, wherever the borders of the pieces lie, and in shared passes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from plain_windows import window_starts
from torch import Tensor

from ssamba.inference.batches import PASSES_WAITING, TOKENS_AT_ONCE, by_recording, group_segments
from ssamba.inference.model import Encoder, make_encoder
from ssamba.inference.windows import (
    CentredWindows,
    Length,
    Plan,
    Segment,
    Segmenter,
    WholeRecording,
    column_windows,
    cut_recordings,
    frame_windows,
)
from ssamba.models.config import Config
from ssamba.models.patches import columns, covered_frames
from ssamba.utils.errors import AudioError

CONFIG = Config(width=16, depth=2, frames=128)
PLANS: dict[str, Plan] = {
    "columns": column_windows(CONFIG),
    "overlapping columns": column_windows(CONFIG.replace(stride_time=10)),
    "whole": WholeRecording(CONFIG),
    "frames": frame_windows(CONFIG),
    "seconds": frame_windows(CONFIG, 100.0),
    "centred": CentredWindows(CONFIG, 0.25),
    "centred, short": CentredWindows(CONFIG, 2.0, 0.5),
}


def cut(plan: Plan, features: Tensor, piece: int) -> list[Segment]:
    segmenter = Segmenter(plan, pad_value=-7.0, recording=3)
    fed = [segment for part in features.split(piece) for segment in segmenter.feed(part)]
    return [*fed, *segmenter.finish(seconds=1.5)]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("n", [1, 16, 17, 127, 128, 129, 192, 193, 300, 1001])
def test_segments_of_a_stream_are_those_of_the_whole(plan: Plan, n: int) -> None:
    features = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    expected = cut(plan, features, n)
    assert [s.end for s in expected] == [None] * (len(expected) - 1) + [Length(n, 1.5)]
    assert {s.recording for s in expected} == {3}
    for piece in (7, 37, 130):
        found = cut(plan, features, piece)
        assert [(s.position, s.end) for s in found] == [(s.position, s.end) for s in expected]
        assert all(torch.equal(a.features, b.features) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("stride", [16, 10])
@pytest.mark.parametrize("n", [1, 16, 17, 127, 128, 129, 192, 193, 300, 1001])
def test_columns_are_cut_by_the_plain_rule(stride: int, n: int) -> None:
    config = CONFIG.replace(stride_time=stride)
    features = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    segments = cut(column_windows(config), features, 37)
    window = config.grid[1]
    assert [s.position for s in segments] == window_starts(columns(n, config), window)
    for segment in segments:
        assert len(segment.features) == covered_frames(min(columns(n, config), window), config)
        here = features[segment.position * stride :][: len(segment.features)]
        assert torch.equal(segment.features[: len(here)], here)
        assert (segment.features[len(here) :] == -7).all()


@pytest.mark.parametrize(
    ("n_columns", "window"), [(1, 4), (4, 4), (5, 4), (6, 4), (7, 4), (40, 4), (9, 1), (8, 3), (65, 64)]
)
def test_windows_cover_every_column_and_end_with_the_recording(n_columns: int, window: int) -> None:
    config = CONFIG.replace(frames=16 * window)
    starts = [s.position for s in cut(column_windows(config), torch.zeros(16 * n_columns, 4), 100)]
    covered = {c for start in starts for c in range(start, start + min(window, n_columns))}
    assert covered == set(range(n_columns))
    assert starts == sorted(set(starts))
    assert all(b - a <= max(window // 2, 1) for a, b in pairwise(starts))


def segments(widths: list[int]) -> Iterator[Segment]:
    for i, frames in enumerate(widths):
        yield Segment(i, 0, torch.zeros(frames, 128), Length(frames, 0.0))


@pytest.mark.parametrize("kind", ["ssamba", "ssast"])
def test_passes_hold_equal_widths_and_no_more_tokens_than_the_device_takes_well(kind: str) -> None:
    model = make_encoder(Config(encoder=kind, width=64, depth=2, frames=128))
    groups = list(group_segments(model, segments([64, 128, 64] * 90)))
    assert sorted(s.recording for group in groups for s in group) == list(range(270))
    for group in groups:
        assert len({len(s.features) for s in group}) == 1
        tokens = model.prefix_tokens + 8 * len(group[0].features) // 16
        assert len(group) * tokens <= TOKENS_AT_ONCE["cpu"]
    size = TOKENS_AT_ONCE["cpu"] // (model.prefix_tokens + 32)
    assert [len(g) for g in groups if len(g[0].features) == 64] == [size, 180 - size]


def test_few_segments_wait_for_others_of_their_width() -> None:
    model = make_encoder(CONFIG)
    taken = 0

    def counted() -> Iterator[Segment]:
        nonlocal taken
        for segment in segments(list(range(32, 32 + 16 * 400, 16))):
            taken += 1
            yield segment

    held = 0
    for group in group_segments(model, counted(), batch=1000):
        held = max(held, taken)
        assert len(group) == 1
        break
    assert 8 * sum(range(2, 2 + held)) - 8 * held <= PASSES_WAITING * TOKENS_AT_ONCE["cpu"]


def test_states_are_those_of_their_recordings() -> None:
    ends = [None, None, Length(1, 0.0), None, Length(1, 0.0), None]
    order = [Segment(i, 0, torch.zeros(1, 1), end) for i, end in zip((0, 1, 0, 1, 1, 2), ends, strict=True)]
    failed: set[int] = set()
    states: dict[int, list[int]] = {}
    for segment, output, state in by_recording(((s, n) for n, s in enumerate(order)), list[int], failed):
        state.append(output)
        states[segment.recording] = state
        failed |= {1} if output == 3 else set()
    assert states == {0: [0, 2], 1: [1, 3], 2: [5]}


def test_recordings_are_cut_one_after_the_other() -> None:
    model: Encoder = make_encoder(CONFIG)
    noise = 0.1 * torch.randn(40000, generator=torch.Generator().manual_seed(0))
    failed: set[int] = set()

    def recordings() -> Iterator[tuple[int, Iterator[Tensor]]]:
        yield 0, iter(noise.split(9000))
        failed.add(1)
        yield 1, iter([noise])
        yield 2, iter([noise[:8000]])

    found = list(cut_recordings(model, recordings(), column_windows(CONFIG), failed))
    assert [s.recording for s in found if s.last] == [0, 2]
    assert [s.end for s in found if s.end] == [Length(248, 2.5), Length(48, 0.5)]
    with pytest.raises(AudioError, match="399 samples"):
        list(cut_recordings(model, [(0, [noise[:399]])], column_windows(CONFIG)))
