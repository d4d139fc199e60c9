"""Masks: their number, their shape, and how often each patch is hidden."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssamba.models import masking
from ssamba.utils.errors import ConfigError

GRID = (8, 64)
Draw = Callable[[int, tuple[int, int], int, torch.Generator], Tensor]


def clean(batch: int, grid: tuple[int, int], count: int, generator: torch.Generator) -> Tensor:
    return masking.cluster_masks(batch, grid, count, generator)


def quirky(batch: int, grid: tuple[int, int], count: int, generator: torch.Generator) -> Tensor:
    return masking.cluster_masks(batch, grid, count, generator, reference_quirks=True)


KINDS = pytest.mark.parametrize("draw", [clean, quirky, masking.frame_masks])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hidden(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(batch, rows, columns), 1 where a patch is hidden."""
    out = torch.zeros(len(masks), grid[0] * grid[1])
    return out.scatter_(1, masks, 1.0).unflatten(1, grid)


@KINDS
@pytest.mark.parametrize(
    ("grid", "count"),
    [
        *((GRID, n) for n in (1, 250, 300, 400, 510, 511)),
        *(((1, 5), n) for n in (1, 3, 4)),
        *(((2, 1), n) for n in (1,)),
        *(((1, 512), n) for n in (1, 400, 511)),
        *(((12, 101), n) for n in (1, 250, 1211)),
        *(((3, 3), n) for n in (1, 8)),
    ],
)
def test_exact_count_sorted_unique_in_range(draw: Draw, grid: tuple[int, int], count: int) -> None:
    masks = draw(5, grid, count, seeded())
    assert masks.shape == (5, count)
    assert masks.dtype == torch.int64
    assert (masks.diff(dim=1) > 0).all()  # sorted, none twice
    assert masks.min() >= 0
    assert masks.max() < grid[0] * grid[1]


@KINDS
def test_the_generator_alone_decides(draw: Draw) -> None:
    torch.manual_seed(1)
    first = draw(4, GRID, 250, seeded(7))
    torch.manual_seed(2)
    assert torch.equal(first, draw(4, GRID, 250, seeded(7)))
    assert not torch.equal(first, draw(4, GRID, 250, seeded(8)))
    assert len({tuple(m) for m in first.tolist()}) == 4


@KINDS
@pytest.mark.parametrize("count", [0, -1, 512, 1000])
def test_refuses_counts_that_the_grid_cannot_give(draw: Draw, count: int) -> None:
    with pytest.raises(ConfigError, match=f"mask of {count} patches: the grid 8 x 64 has 512, mask 1 to 511"):
        draw(2, GRID, count, seeded())


@pytest.mark.parametrize("draw", [clean, masking.frame_masks])
@pytest.mark.parametrize("count", [60, 250, 400])
def test_every_patch_is_hidden_equally_often(draw: Draw, count: int) -> None:
    clips = 3000
    rate = hidden(draw(clips, GRID, count, seeded()), GRID).mean(dim=0)
    expected = count / 512
    # Six deviations of a patch that is hidden or not, independently in each clip.
    assert (rate - expected).abs().max() < 6 * (expected * (1 - expected) / clips) ** 0.5
    corners = rate[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    middle = rate[3:5, 24:40].mean()
    assert abs(corners - middle) < 4 * (expected * (1 - expected) / (4 * clips)) ** 0.5


def neighbours(masks: Tensor) -> tuple[float, float]:
    """How often the patch after a hidden one is hidden too: (in time, in frequency)."""
    on = hidden(masks, GRID)
    return (on[:, :, 1:] * on[:, :, :-1]).mean().item(), (on[:, 1:] * on[:, :-1]).mean().item()


@pytest.mark.parametrize("draw", [clean, quirky])
def test_clusters_hide_neighbours_more_often_than_frames(draw: Draw) -> None:
    clusters = neighbours(draw(200, GRID, 100, seeded()))
    frames = neighbours(masking.frame_masks(200, GRID, 100, seeded()))
    assert frames == pytest.approx(((100 / 512) ** 2,) * 2, rel=0.05)
    assert min(clusters) > 2.5 * max(frames)


def test_one_square_is_a_whole_square() -> None:
    """With a count below one square, all hidden patches lie in one 3 x 3 to 5 x 5 square."""
    on = hidden(clean(300, GRID, 6, seeded()), GRID)
    spans = []
    for clip in on:
        f, t = clip.nonzero(as_tuple=True)
        spans.append(max(int(f.max() - f.min()), int(t.max() - t.min())) + 1)
    # At the edges a second square may be needed; far most need one.
    assert sum(s <= 5 for s in spans) > 200
    assert {3, 4, 5} <= set(spans)


def test_quirks_never_hide_patch_0_and_spare_high_frequencies() -> None:
    rate = hidden(quirky(2000, GRID, 250, seeded()), GRID).mean(dim=0)
    assert rate[0, 0] == 0
    assert rate[-1, -32:].mean() < rate[4].mean() - 0.1
    assert rate[-1, -1] < 0.3


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize(("grid", "count"), [(GRID, 250), (GRID, 400), ((3, 9), 20), ((1, 5), 4)])
def test_follows_the_definition_square_by_square(
    quirks: bool, grid: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replays the drawn squares in a plain loop: add until more than ``count`` patches are covered, keep ``count``."""
    drawn: list[list[list[int]]] = [[] for _ in range(20)]
    inner = masking._drop_squares

    def recorded(*args: object) -> tuple[Tensor, Tensor]:
        cells, inside = inner(*args)  # type: ignore[arg-type]
        for clip in range(20):
            drawn[clip] += [c[i].tolist() for c, i in zip(cells[clip], inside[clip], strict=True)]
        return cells, inside

    monkeypatch.setattr(masking, "_drop_squares", recorded)
    masks = masking.cluster_masks(20, grid, count, seeded(3), quirks)
    enough = min(count + 1, grid[0] * grid[1] - 1)
    for mask, squares in zip(masks.tolist(), drawn, strict=True):
        covered: set[int] = set()
        for square in squares:
            covered |= set(square)
            if len(covered) >= enough:
                break
        assert set(mask) <= covered
        if quirks:
            assert mask == sorted(covered)[:count]


@pytest.mark.parametrize("quirks", [False, True])
def test_squares_are_squares(quirks: bool) -> None:
    sides = torch.tensor([3, 4, 5])
    cells, inside = masking._drop_squares(3, GRID, sides, seeded(), quirks)
    whole = 0
    for clip, side in enumerate(sides.tolist()):
        for c, i in zip(cells[clip], inside[clip], strict=True):
            square = sorted(c[i].tolist())
            assert len(set(square)) == len(square) <= side * side
            if len(square) == side * side:
                whole += 1
                assert square == [square[0] + 64 * f + t for f in range(side) for t in range(side)]
                assert quirks or square[0] % 64 + side <= 64  # none runs on into the next row
    assert whole > 100


def reference_mask(source: random.Random) -> list[int]:
    """The procedure that the official checkpoints were trained with, for 250 of 8 x 64 patches."""
    side, covered = source.randrange(3) + 3, set[int]()
    while len(covered) <= 250:
        start = source.randrange(512)
        cells = (start + 64 * i + j for i in range(side) for j in range(side))
        covered |= {c for c in cells if 0 < c < 512}
    return sorted(covered)[:250]


def test_quirks_hide_each_patch_as_often_as_the_reference() -> None:
    source, clips = random.Random(0), 2000
    theirs = hidden(torch.tensor([reference_mask(source) for _ in range(clips)]), GRID).mean(dim=0)
    ours = hidden(quirky(clips, GRID, 250, seeded()), GRID).mean(dim=0)
    assert (ours - theirs).abs().max() < 6 * (0.5 / clips) ** 0.5  # six deviations of a difference of rates
    assert (ours - theirs).mean(dim=1).abs().max() < 0.02
    assert abs((ours - theirs)[:, :4].mean()) < 0.02
