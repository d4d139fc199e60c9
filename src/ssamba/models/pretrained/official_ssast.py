"""Official SSAST checkpoints: strict, in both directions (docs/reference.md, "Official checkpoints").

The files name no number of attention heads; the published sizes have one for each 64 values of width. For any other
width nothing is assumed.
"""

from __future__ import annotations

import re

from torch import Tensor

from ssamba.models.config import WIDTHS, Config
from ssamba.models.pretrained.official_keys import HEADS, PATCHES, make_config, renamed, require_same_keys
from ssamba.utils.errors import CheckpointError

SSAST_MARK = "v.blocks.0.attn.qkv.weight"
"""A key by which an SSAST file is known."""
SSAST_EXTRAS = (
    "v.head.weight",
    "v.head.bias",
    "v.head_dist.weight",
    "v.head_dist.bias",
    "p_input_fdim",
    "p_input_tdim",
)
PREFIX_TOKENS = 2
SSAST_NAMES = (
    PATCHES | HEADS | {"v.dist_token": "distillation_token", "v.norm.weight": "norm.weight", "v.norm.bias": "norm.bias"}
)
BLOCK_NAMES = {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in (
        ("norm1", "norm1"),
        ("attn.qkv", "attn.qkv"),
        ("attn.proj", "attn.proj"),
        ("norm2", "norm2"),
        ("mlp.fc1", "fc1"),
        ("mlp.fc2", "fc2"),
    )
    for kind in ("weight", "bias")
}


def _names(depth: int) -> dict[str, str]:
    """Official name -> ours, of a model of ``depth`` blocks."""
    blocks = {f"v.blocks.{i}.{a}": f"blocks.{i}.{b}" for i in range(depth) for a, b in BLOCK_NAMES.items()}
    return SSAST_NAMES | blocks


def from_ssast(
    state: dict[str, Tensor], source: str, attention_heads: int | None = None
) -> tuple[Config, dict[str, Tensor]]:
    """Official state dict without ``module.`` -> configuration and the state dict of ``SSAST``.

    Raises ``CheckpointError`` naming ``source`` and every key that does not fit, or asking for ``attention_heads``.
    """
    patch, position = state.get("v.patch_embed.proj.weight"), state.get("v.pos_embed")
    if patch is None or position is None or patch.dim() != 4 or position.dim() != 3 or 0 in patch.shape:
        raise CheckpointError(f"{source}: is not an SSAST checkpoint, v.patch_embed.proj.weight or v.pos_embed is off")
    width = patch.shape[0]
    if attention_heads is None and width not in WIDTHS.values():
        raise CheckpointError(
            f"{source}: SSAST of width {width}, and the file does not say its number of attention heads: give "
            "attention_heads=N in Python, or on the command line ssamba convert FILE DIR --attention-heads N"
        )
    values = {"encoder": "ssast", "width": width, "attention_heads": attention_heads or 0}
    config = make_config(state, PREFIX_TOKENS, r"v\.blocks\.(\d{1,9})\.", source, **values)
    names = _names(config.depth)
    shapes = _shapes(config, state)
    require_same_keys(shapes, state, SSAST_EXTRAS, "SSAST", source)
    return config, renamed(state, names)


def _shapes(config: Config, state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of a model with this configuration, with heads where the file has any."""
    d, rows, cols = config.width, *config.grid
    shapes: dict[str, tuple[int, ...]] = {
        "v.cls_token": (1, 1, d),
        "v.dist_token": (1, 1, d),
        "mask_embed": (1, 1, d),
        "v.pos_embed": (1, PREFIX_TOKENS + rows * cols, d),
        "v.patch_embed.proj.weight": (d, 1, config.patch_frequency, config.patch_time),
        "v.patch_embed.proj.bias": (d,),
        "v.norm.weight": (d,),
        "v.norm.bias": (d,),
    }
    if any(k in state for k in HEADS):
        for head in ("cpredlayer", "gpredlayer"):
            for i, out in ((0, d), (2, config.patch_size)):
                shapes |= {f"{head}.{i}.weight": (out, d), f"{head}.{i}.bias": (out,)}
    for i in range(config.depth):
        for name, out, inner in (
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("mlp.fc1", 4 * d, d),
            ("mlp.fc2", d, 4 * d),
        ):
            shapes |= {f"v.blocks.{i}.{name}.weight": (out, inner), f"v.blocks.{i}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"v.blocks.{i}.{name}.weight": (d,), f"v.blocks.{i}.{name}.bias": (d,)}
    return shapes


def to_ssast(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """State dict (or gradients under the same names) of ``SSAST`` -> official keys."""
    depth = 1 + max(int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k)))
    back = {ours: theirs for theirs, ours in _names(depth).items()}
    return {prefix + back[key]: tensor for key, tensor in state.items()}
