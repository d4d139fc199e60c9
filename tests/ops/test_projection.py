"""The fused convolution and projection: which form takes which size, what is refused, and its values."""

from __future__ import annotations

import projection_cases
import pytest
import torch
from part_script import NEEDS_TRITON, run_script, skip_without_compiler

from ssamba.ops.jit import nvrtc
from ssamba.ops.jit.limits import dynamic_limit
from ssamba.ops.mamba.cuda import projection
from ssamba.ops.mamba.cuda.projection import ProjectionTiling, choose_tiling
from ssamba.ops.mamba.cuda.sources import defines, unit

LIMIT = 227 * 1024


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSAMBA_PROJ", raising=False)


def test_few_tokens_are_sliced_and_many_are_not() -> None:
    sliced = {"blocks": 1, "slices": 4, "rows": 16, "stages": 6}
    assert choose_tiling(2, 513, 44, 1, LIMIT) == ProjectionTiling(4, **sliced)
    assert choose_tiling(2, 513, 44, 2, LIMIT) == ProjectionTiling(8, **sliced)
    assert choose_tiling(2, 513, 80, 2, 101_376).stages == 2  # less shared memory: fewer stages
    assert choose_tiling(2, 513, 80, 2, 48 * 1024) == ProjectionTiling(8, 1)  # or none of this
    for sequences, tokens in ((2, 4 * 22016), (128, 513)):
        assert choose_tiling(sequences, tokens, 44, 2, LIMIT) == ProjectionTiling(4, 4, taps="runs")
        assert choose_tiling(sequences, tokens, 80, 1, LIMIT) == ProjectionTiling(4, 3)
        assert choose_tiling(sequences, tokens, 80, 2, LIMIT) == ProjectionTiling(4, 3, taps="runs")
        assert choose_tiling(sequences, tokens, 56, 1, LIMIT) == ProjectionTiling(8, 2, taps="runs")
        assert choose_tiling(sequences, tokens, 56, 1, 64 * 1024) == ProjectionTiling(4, 4)


def test_many_tokens_are_copied_by_tensor_maps() -> None:
    """Where there are such, and they fit: blocks of so many warps that they end in few rounds."""
    bulk = {"taps": "bulk", "unroll": 4}
    for tokens, of_tiny, of_base in (
        (64 * 513, ProjectionTiling(8, 2, **bulk), ProjectionTiling(8, 1, **bulk)),
        (4 * 22017, ProjectionTiling(4, 4, **bulk), ProjectionTiling(12, 1, taps="bulk")),
    ):
        assert choose_tiling(2, tokens, 44, 1, LIMIT, 384, maps=True) == of_tiny
        assert choose_tiling(2, tokens, 44, 2, LIMIT, 384, maps=True) == ProjectionTiling(8, 2, **bulk)
        assert choose_tiling(2, tokens, 56, 1, LIMIT, 768, maps=True) == ProjectionTiling(8, 2, **bulk)
        assert choose_tiling(2, tokens, 80, 1, LIMIT, 1536, maps=True) == of_base
        assert choose_tiling(2, tokens, 80, 2, LIMIT, 1536, maps=True) == ProjectionTiling(8, 1, **bulk)
        assert choose_tiling(2, tokens, 56, 1, 90_000, 768, maps=True) == ProjectionTiling(8, 2, taps="runs")
    assert choose_tiling(2, 516, 44, 1, LIMIT, 384, maps=True).slices == 4


def test_four_blocks_share_a_multiprocessor() -> None:
    """With the weights' last rows alone: 228 KB, of which each block takes 1 KB more than it asks for."""
    for outputs in (44, 56):
        assert 4 * (ProjectionTiling(4, 4, taps="runs").shared_bytes(1, outputs) + 1024) <= 228 * 1024
    # A tile of weights ends within what the block has: 14 rows of 144 bytes beyond two stages without slack.
    bare = 2 * (128 * 135 + 33 * 16 + 144 * 34 + 1280)
    assert ProjectionTiling(4, 4, taps="runs").shared_bytes(1, 34) == bare + 14 * 144 - 1280


def test_all_taps_and_two_stages_share_a_multiprocessor() -> None:
    """With tensor maps: rows of whole 128 bytes, and the taps of all channels beside the stages."""
    bulk = ProjectionTiling(8, 2, taps="bulk")
    assert bulk.shared_bytes(1, 56, 768) == 2 * (128 * 264 + 7 * 1024 + 12) + 768 * 20
    for warps, blocks, outputs, width in ((8, 2, 56, 768), (4, 4, 44, 384), (8, 1, 80, 1536)):
        tiling = ProjectionTiling(warps, blocks, taps="bulk")
        assert blocks * (tiling.shared_bytes(1, outputs, width) + 1024) <= 228 * 1024


def test_the_environment_names_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, tiling in (("8,2", ProjectionTiling(8, 2)), ("4,1,slices=4", ProjectionTiling(4, 1, 4))):
        monkeypatch.setenv("SSAMBA_PROJ", given)
        for tokens in (1, 100_000):
            assert choose_tiling(1, tokens, 44, 1, LIMIT) == tiling
    monkeypatch.setenv("SSAMBA_PROJ", "taps=near")
    assert choose_tiling(1, 100_000, 56, 1, LIMIT) == ProjectionTiling(8, 2, taps="near")
    monkeypatch.setenv("SSAMBA_PROJ", "stages=3")
    assert choose_tiling(1, 100, 44, 1, LIMIT).stages == 3
    monkeypatch.setenv("SSAMBA_PROJ", "8,1,taps=bulk,stages=3,unroll=4")
    assert choose_tiling(1, 100_000, 80, 1, LIMIT, 1536) == ProjectionTiling(8, 1, stages=3, taps="bulk", unroll=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1,4", "1 warps; use a multiple of 2"), ("0,4", "0 warps"), ("4,1,slices=4", "use a multiple of 8"),
        ("64,1", "up to 32"), ("4,4,rows=16", "add slices"), ("8,1,slices=4,rows=8", "16 or 32 rows"),
        ("8,1,slices=4,stages=1", "2 stages"), ("8,1,slices=4,channels=32", "64 or 128"),
        ("8,1,slices=-1", "0 or more"), ("4,1,taps=core", "near, runs, bulk"), ("8,1,name=2", "name"),
        ("8,1,slices=4,stages=20", "bytes of shared memory"), ("8,1,taps=runs,stages=3", "add slices"),
        ("8,1,taps=bulk,stages=30", "bytes of shared memory"), ("8,1,taps=bulk,unroll=3", "1, 2 or 4"),
    ],
)  # fmt: skip
def test_what_no_kernel_takes_is_refused(given: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two directions."""
    monkeypatch.setenv("SSAMBA_PROJ", given)
    with pytest.raises(ValueError, match=message) as refused:
        choose_tiling(2, 513, 44, 2, LIMIT)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("dtype", "directions", "width"), [(1, 1, 768), (2, 2, 400)])
def test_the_form_with_tensor_maps_compiles(dtype: int, directions: int, width: int) -> None:
    try:
        nvrtc.version()
    except nvrtc.Unavailable:
        pytest.skip("nvidia-cuda-nvrtc is not installed; where it has a wheel, '.[dev]' brings it")
    macros = defines(
        DTYPE=dtype, P=56, DIRS=directions, WARPS=8, MIN_BLOCKS=2, ALTERNATING=directions % 2, STAGES=2,
        CHANNELS=-(-width // 64) * 64, PART=width % 64, UNROLL=1,
    )  # fmt: skip
    assert nvrtc.compile_unit(unit("conv_projection_bulk.cu"), macros, (9, 0))


@NEEDS_TRITON
@pytest.mark.parametrize("part", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_values_in_emulation(part: str) -> None:
    skip_without_compiler()
    run_script("projection_small.py", part, seconds=500)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "launch",
    [
        "default", "4", "4,slices=4,rows=16,stages=6", "4,slices=2,rows=32,stages=4",
        "8,slices=8,rows=16,stages=2,channels=128", "4,taps=runs", "4,taps=bulk,unroll=4",
    ],
)  # fmt: skip
def test_values_on_a_gpu(launch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published sizes, and clips whose ends lie inside a warp; the same bits twice."""
    if not torch.cuda.is_available() or not nvrtc.multiplies_bfloat16(0):
        pytest.skip("needs a GPU of compute capability 8.0 and NVRTC")
    if launch != "default" and dynamic_limit(0) < LIMIT:
        pytest.skip("needs the shared memory of an H100")
    warps, _, rest = launch.partition(",")
    for *sizes, alternating in projection_cases.GPU_CASES:
        if launch != "default":
            monkeypatch.setenv("SSAMBA_PROJ", f"{int(warps) * sizes[5]},1,{rest}")
        for dtype in projection_cases.BOUNDS:
            tensors = projection_cases.draw(*sizes, dtype, "cuda")
            assert projection.usable(tensors[0], tensors[1], tensors[3])
            projection_cases.check(tensors, alternating)
            projection_cases.check_fine_taps(dtype, sizes[5], alternating, "cuda")
