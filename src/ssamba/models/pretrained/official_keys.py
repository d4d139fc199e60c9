"""What official SSAMBA and SSAST files have in common: outer keys, the grid from shapes, the strict comparison."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ssamba.models.config import Config
from ssamba.utils.errors import CheckpointError, ConfigError
from ssamba.utils.terminal import shorten

PATCHES = {
    "v.cls_token": "cls_token",
    "v.pos_embed": "positions",
    "mask_embed": "mask_embedding",
    "v.patch_embed.proj.weight": "patch_embed.weight",
    "v.patch_embed.proj.bias": "patch_embed.bias",
}
HEADS = {
    f"{theirs}.{i}.{kind}": f"heads.{ours}.{i}.{kind}"
    for theirs, ours in (("cpredlayer", "discriminative"), ("gpredlayer", "generative"))
    for i in (0, 2)
    for kind in ("weight", "bias")
}


def make_config(state: dict[str, Tensor], prefix: int, blocks: str, source: str, **values: Any) -> Config:
    """The configuration with these values, the depth of the keys that match ``blocks``, and the shapes' grid.

    ``prefix`` positions stand before the grid's. Raises ``CheckpointError`` naming ``source`` for what cannot be.
    """
    depth = _stacked_depth(state, blocks, source)
    grid = _grid_values(state, prefix, source)
    try:
        return Config(depth=depth, **grid, **values)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _grid_values(state: dict[str, Tensor], prefix: int, source: str) -> dict[str, Any]:
    """``Config`` values of patches that do not overlap, from the shapes of positions (``prefix`` in front) and patches.

    Raises ``CheckpointError`` when positions and patches fit no grid.
    """
    patch, position = state["v.patch_embed.proj.weight"], state["v.pos_embed"]
    patch_f, patch_t = patch.shape[2], patch.shape[3]
    mel_bins = _whole_number(state, "p_input_fdim", 128, source)
    if mel_bins < 1:
        raise CheckpointError(f"{source}: mel_bins is {mel_bins}: give a positive number")
    n_patches = position.shape[1] - prefix
    rows = max(mel_bins // patch_f, 1)
    frames = _whole_number(state, "p_input_tdim", n_patches // rows * patch_t, source)
    columns = frames // patch_t
    if rows * columns != n_patches:
        raise CheckpointError(
            f"{source}: {n_patches} positions do not fit the grid {rows} x {columns} of {mel_bins} x {frames} features"
        )
    return {
        "frames": frames,
        "mel_bins": mel_bins,
        "patch_frequency": patch_f,
        "patch_time": patch_t,
        "stride_frequency": patch_f,
        "stride_time": patch_t,
    }


def _whole_number(state: dict[str, Tensor], key: str, default: int, source: str) -> int:
    value = state.get(key)
    if value is None:
        return default
    if value.numel() != 1 or value.is_floating_point() or value.is_complex():
        raise CheckpointError(f"{source}: {key} is no whole number")
    return int(value)


def _stacked_depth(state: Iterable[str], pattern: str, source: str) -> int:
    """Number of blocks, whose numbers the pattern's group finds.

    There must be no gap, so that a stray number cannot ask for a model of a million blocks.
    """
    numbers = {int(m[1]) for k in state if (m := re.match(pattern, k))}
    gap = next(i for i in range(len(numbers) + 1) if i not in numbers)
    if gap != len(numbers):
        block = re.sub(r"\\", "", pattern).replace("(d{1,9})", str(gap))
        raise CheckpointError(f"{source}: does not fit: missing {block}* below {max(numbers)}")
    return len(numbers)


def require_same_keys(
    expected: Mapping[str, tuple[int, ...]], state: dict[str, Tensor], extras: Iterable[str], model: str, source: str
) -> None:
    """Raise ``CheckpointError`` naming keys that are missing, unexpected (but for extras) or of another shape."""
    known = set(extras)
    problems = [f"missing {k}" for k in expected if k not in state]
    problems += [f"unexpected {shorten(k)[1:-1]}" for k in state if k not in expected and k not in known]
    problems += [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(shape)}"
        for k, shape in expected.items()
        if k in state and tuple(state[k].shape) != tuple(shape)
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{source}: does not fit an {model} model: {'; '.join(problems[:5])}{more}")


def renamed(state: dict[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Copies of the tensors that the state has, under their new names."""
    return {ours: state[theirs].clone() for theirs, ours in names.items() if theirs in state}
