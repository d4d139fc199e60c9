"""How the tensor-core forward scan is tiled."""

from __future__ import annotations

import pytest
import torch

from ssamba.ops.mamba.cuda import scan_backward, scan_mma
from ssamba.ops.mamba.cuda.scan_shape import Shape
from ssamba.ops.mamba.params import MixerParams


def shape(
    batch: int, length: int, states: int = 16, tied: bool = False, alternating: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Shape:  # fmt: skip
    x = torch.empty(batch, length, 2, 384, device="meta", dtype=dtype)
    sizes = ((384, 4), (384,), (12 + 2 * states, 384), (384, 12), (384,), (384, 1 if tied else states), (384,))
    directions = 1 if alternating else 2
    params = MixerParams(*(torch.empty(directions, 2, *size, device="meta") for size in sizes))
    return Shape(x, params, alternating)


def test_few_channels_are_split_finer() -> None:
    tilings = [scan_mma.choose_tiling(shape(batch, 4096)) for batch in (1, 4, 64)]
    assert [tiling.chunks > 1 for tiling in tilings] == [True, False, False]
    assert [tiling.state_split for tiling in tilings] == [1, 2, 1]
    assert tilings[0].chunks == 8
    assert [scan_mma.choose_tiling(shape(batch, 22016)).chunks for batch in (1, 2)] == [16, 8]


def test_all_split_blocks_run_at_once() -> None:
    """As many multiprocessors as an H100 has hold them in one round; more groups are not split. With tied decays."""
    tilings = [scan_mma.choose_tiling(shape(batch, 22016, tied=True, alternating=True)) for batch in (11, 12, 16, 17)]
    assert [(tiling.state_split, tiling.min_blocks_per_sm) for tiling in tilings] == [(2, 2), (2, 3), (2, 3), (1, 3)]
    for tiling, batch in zip(tilings[:3], (11, 12, 16), strict=True):
        assert batch * 2 * 384 // 16 // 2 <= 132 * tiling.min_blocks_per_sm


def test_eight_states_are_not_split() -> None:
    tilings = [scan_mma.choose_tiling(shape(batch, 4096, states=8)) for batch in (1, 4, 8, 64)]
    assert [tiling.state_split for tiling in tilings] == [1] * 4
    assert [tiling.chunks for tiling in tilings] == [8, 4, 1, 1]


def test_a_short_clip_is_cut_in_time() -> None:
    assert [scan_mma.choose_tiling(shape(1, length)).chunks for length in (511, 513, 2048, 4096)] == [1, 4, 4, 8]
    assert [scan_mma.choose_tiling(shape(batch, 513)).chunks for batch in (2, 64)] == [4, 1]
    for form in ({"tied": True, "alternating": True}, {"alternating": True}):
        assert scan_mma.choose_tiling(shape(1, 513, **form)).chunks == 8
        assert scan_mma.choose_tiling(shape(64, 513, **form)).chunks == 1
    assert shape(1, 513, tied=True).defines()[-2:] == ("TIED=1", "ALTERNATING=0")


def test_the_environment_chooses_another_tiling(monkeypatch: pytest.MonkeyPatch) -> None:
    best = scan_mma.choose_tiling(shape(4, 4096))
    monkeypatch.setenv("SSAMBA_CUT", "warps=1, stages=4")
    assert scan_mma.choose_tiling(shape(4, 4096)) == best._replace(warps=1, stages=4)
    monkeypatch.setenv("SSAMBA_CUT", "split=2,blocks=1")
    assert scan_mma.choose_tiling(shape(4, 4096)) == best._replace(state_split=2, min_blocks_per_sm=1)
    monkeypatch.setenv("SSAMBA_CUT", "adds=0")
    assert scan_mma.choose_tiling(shape(4, 4096)) == best._replace(adds=0)
    monkeypatch.setenv("SSAMBA_CUT", "width=1")
    with pytest.raises(ValueError, match="width"):
        scan_mma.choose_tiling(shape(4, 4096))


def test_float32_is_cut_in_time_where_clips_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.float32
    assert [shape(batch, 22016, dtype=wide).chunks_of_lanes() for batch in (1, 2, 4)] == [(32, 1), (17, 1), (9, 1)]
    fast = [shape(batch, 22016, tied=True, alternating=True, dtype=wide) for batch in (2, 4, 64)]
    assert [one.chunks_of_lanes() for one in fast] == [(32, 1), (17, 1), (1, 1)]
    assert shape(1, 600, dtype=wide).chunks_of_lanes() == (4, 1)
    assert shape(1, 513, dtype=wide).chunks_of_lanes() == (4, 1)
    assert shape(1, 511, dtype=wide).chunks_of_lanes() == (1, 8)
    monkeypatch.setenv("SSAMBA_CUT", "chunks=1")
    assert fast[0].chunks_of_lanes() == (1, 8)
    monkeypatch.setenv("SSAMBA_CUT", "chunks=5")
    assert fast[2].chunks_of_lanes() == (5, 1)
    monkeypatch.delenv("SSAMBA_CUT")
    monkeypatch.setenv("SSAMBA_LPC", "4")
    assert fast[0].chunks_of_lanes() == (1, 4)


def tensors_of_backward(sizes: Shape) -> dict[str, torch.Tensor]:
    rows = (sizes.batch, sizes.length, sizes.blocks, sizes.width)
    found = {name: torch.empty(rows, device="meta", dtype=torch.bfloat16) for name in ("x", "z", "y", "dy", "dz")}
    p = torch.empty(sizes.dir_blocks, *rows[:2], sizes.outputs, device="meta", dtype=torch.bfloat16)
    return found | {"p": p}


def test_the_environment_chooses_the_form_of_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = shape(64, 513, tied=True), shape(4, 513, tied=True)
    assert scan_backward.choose(many, tensors_of_backward(many)) == scan_backward.TILING
    monkeypatch.setenv("SSAMBA_BACKWARD", "mma,warps=6,blocks=2,movm=3")
    found = scan_backward.choose(many, tensors_of_backward(many))
    assert found == scan_backward.BackwardTiling(warps=6, blocks=2, movm=3)
    assert scan_backward.channels_of_block(many, found, warps=4) == 96
    assert scan_backward.choose(few, tensors_of_backward(few)) is None  # several lanes share a channel
    monkeypatch.setenv("SSAMBA_BACKWARD", "lanes")
    assert scan_backward.choose(many, tensors_of_backward(many)) is None
    monkeypatch.setenv("SSAMBA_BACKWARD", "fragments")
    with pytest.raises(ValueError, match="fragments"):
        scan_backward.choose(many, tensors_of_backward(many))


@pytest.mark.parametrize("alternating", [False, True])
def test_free_decays_take_fragments_too(alternating: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = shape(64, 513, alternating=alternating), shape(4, 513, alternating=alternating)
    assert scan_backward.choose(many, tensors_of_backward(many)) == scan_backward.TILING
    monkeypatch.setenv("SSAMBA_BACKWARD", "mma,keep=8")
    assert scan_backward.choose(many, tensors_of_backward(many)) == scan_backward.TILING._replace(keep=8)
    assert scan_backward.choose(few, tensors_of_backward(few)) is None
    eight = shape(64, 513, states=8, alternating=alternating)
    assert scan_backward.choose(eight, tensors_of_backward(eight)) is None
    assert scan_backward.takes_states(many, tensors_of_backward(many))
    for form in ("lanes", "mma,states=0"):
        monkeypatch.setenv("SSAMBA_BACKWARD", form)
        assert not scan_backward.takes_states(many, tensors_of_backward(many))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rank", [12, 24, 48])
def test_the_blocks_of_the_backward_fit_into_a_multiprocessor(tied: bool, rank: int) -> None:
    """228 KiB of an H100's, of which each block takes one for itself."""
    sizes = shape(64, 513, tied=tied)
    sizes.rank = rank
    assert scan_backward.TILING.blocks * (scan_backward.shared_bytes(sizes, scan_backward.TILING) + 1024) <= 228 * 1024


@pytest.mark.parametrize(
    ("batch", "length", "side_by_side", "places", "clips"),
    [
        (256, 105, 6, 132, 12),  # 22 blocks of 12 clips, the last of 4: one round
        (64, 513, 6, 132, 3),
        (64, 513, 24, 132, 6),  # two rounds of 11 blocks of each kind
        (5, 105, 6, 132, 1),
        (1, 513, 6, 132, 1),
        (0, 513, 6, 132, 1),
        (133, 16, 1, 132, 2),
    ],
)
def test_clips_of_a_block_of_the_backward(batch: int, length: int, side_by_side: int, places: int, clips: int) -> None:
    assert scan_backward.even_clips(batch, length, side_by_side, places, max(batch, 1)) == clips


def test_clips_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAMBA_BACKWARD", "mma,clips=5")
    sizes = shape(64, 513, tied=True, alternating=True)
    tensors = tensors_of_backward(sizes)
    found = scan_backward.choose(sizes, tensors)
    assert found is not None
    assert scan_backward.clips_of_block(sizes, found, tensors) == 5
    assert scan_backward.launch(sizes, tensors, False)[:2] == (3, 13)


def test_clips_of_a_block_are_in_reach_of_32_bits() -> None:
    sizes = shape(1024, 22017, tied=True, alternating=True)
    tensors = tensors_of_backward(sizes)
    assert scan_backward.clips_of_block(sizes, scan_backward.TILING, tensors) == 47
    far_apart = torch.empty(0, device="meta", dtype=torch.bfloat16).as_strided(tensors["x"].shape, (2**29, 768, 384, 1))
    assert 1 <= scan_backward.clips_of_block(sizes, scan_backward.TILING, tensors | {"x": far_apart}) <= 3
