"""Official checkpoints (`torch.save` of a state dict): strict, in both directions. SSAST's: ``official_ssast``.

Key forms are those of docs/reference.md, "Official checkpoints". The reference keeps one set of weights per block and
scan direction; here the two blocks of a pair and both directions are stacked. In an odd block, which the reference
runs on the reversed sequence, the unsuffixed weights scan right to left and the ``_b`` weights left to right.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ssamba.models.block_pair import BLOCKS
from ssamba.models.config import Config
from ssamba.models.pretrained.official_keys import HEADS, PATCHES, make_config, renamed, require_same_keys
from ssamba.models.pretrained.official_ssast import SSAST_EXTRAS, SSAST_MARK, from_ssast, to_ssast
from ssamba.models.ssamba import SSAMBA
from ssamba.utils.errors import CheckpointError

PREFIX = "module."
DIRECTIONS = 2
SSAMBA_EXTRAS = ("v.head.weight", "v.head.bias", "p_input_fdim", "p_input_tdim")
"""Keys that official files carry and the model does not use."""
RATES = "A_log_RKEN"
"""What the names of the decay rates end with."""
EXTRAS_OF = {"ssamba": SSAMBA_EXTRAS, "ssast": SSAST_EXTRAS}

SSAMBA_NAMES = PATCHES | HEADS | {"v.norm_f.weight": "norm.weight", "v.norm_f.bias": "norm.bias"}

PER_DIRECTION = {
    "conv1d{}.weight": "conv_weight_RKEW",
    "conv1d{}.bias": "conv_bias_RKE",
    "x_proj{}.weight": "x_proj_RKPE",
    "dt_proj{}.weight": "dt_proj_RKEr",
    "dt_proj{}.bias": "dt_bias_RKE",
    "A{}_log": "A_log_RKEN",
    "D{}": "D_RKE",
}
"""Official name, with the place of the direction's suffix, -> stacked name."""


def from_official(
    state: dict[str, Tensor], source: str = "checkpoint", attention_heads: int | None = None
) -> tuple[Config, dict[str, Tensor]]:
    """Official state dict -> the configuration its shapes give and the state dict of ``SSAMBA`` or ``SSAST``.

    ``attention_heads`` is for SSAST of other than the published widths: its files do not say.

    Works with or without ``module.`` and with or without the two heads; patches must not overlap. Raises
    ``CheckpointError`` naming ``source`` and every key that is missing, unexpected or of a shape that does not fit.
    """
    state = {k.removeprefix(PREFIX): v for k, v in state.items()}
    if SSAST_MARK in state:
        return from_ssast(state, source, attention_heads)
    config = _config_from_shapes(state, source)
    heads = any(k.startswith(("cpredlayer", "gpredlayer")) for k in state)
    with torch.device("meta"):
        model = SSAMBA(config, heads=heads)
    expected = {k: v.shape for k, v in to_official(model.state_dict(), prefix="").items()}
    require_same_keys(expected, state, SSAMBA_EXTRAS, "SSAMBA", source)
    return config, _stack(state, config)


def _config_from_shapes(state: dict[str, Tensor], source: str) -> Config:
    keys = ("v.pos_embed", "v.patch_embed.proj.weight", "v.layers.0.mixer.A_log", "v.layers.0.mixer.dt_proj.weight")
    missing = [k for k in (*keys, "v.layers.0.mixer.conv1d.weight") if k not in state]
    if missing:
        raise CheckpointError(f"{source}: is not an SSAMBA checkpoint, it lacks {', '.join(missing)}")
    position, patch, a_log, dt = (state[k] for k in keys)
    conv = state["v.layers.0.mixer.conv1d.weight"]
    dims = (position.dim(), patch.dim(), a_log.dim(), dt.dim(), conv.dim())
    if dims != (3, 4, 2, 2, 3) or 0 in (*patch.shape, *a_log.shape, *dt.shape, *conv.shape):
        raise CheckpointError(f"{source}: is not an SSAMBA checkpoint, shapes of {', '.join(keys)} do not fit")
    width = patch.shape[0]
    return make_config(
        state,
        1,
        r"v\.layers\.(\d{1,9})\.",
        source,
        width=width,
        state_size=a_log.shape[1],
        expand=max(a_log.shape[0] // width, 1),
        conv_width=conv.shape[-1],
        dt_rank=dt.shape[1],
    )


def _suffix(block: int, direction: int) -> str:
    """Suffix in the official names of one scan, by the block's place in its pair and the direction in time."""
    return "_b" if direction != block else ""


def _stack(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    out = renamed(state, SSAMBA_NAMES)
    inner = config.inner
    for pair in range(config.depth // BLOCKS):
        blocks = [f"v.layers.{BLOCKS * pair + k}." for k in range(BLOCKS)]
        ours = f"pairs.{pair}."

        def per_block(name: str, blocks: list[str] = blocks) -> list[Tensor]:
            return [state[b + name] for b in blocks]

        out[ours + "norm_weight_Kd"] = torch.stack(per_block("norm.weight"))
        out[ours + "norm_bias_Kd"] = torch.stack(per_block("norm.bias"))
        halves = [w.unflatten(0, (2, inner)) for w in per_block("mixer.in_proj.weight")]
        out[ours + "in_proj_hKEd"] = torch.stack(halves, dim=1)
        out[ours + "out_proj_dKE"] = torch.stack(per_block("mixer.out_proj.weight"), dim=1)
        for theirs, name in PER_DIRECTION.items():
            lanes = [
                torch.stack([state[b + "mixer." + theirs.format(_suffix(k, r))] for k, b in enumerate(blocks)])
                for r in range(DIRECTIONS)
            ]
            stacked = torch.stack(lanes)
            out[ours + name] = stacked.squeeze(3) if theirs == "conv1d{}.weight" else stacked
    return out


def to_official(state: dict[str, Tensor], prefix: str = PREFIX) -> dict[str, Tensor]:
    """State dict (or gradients under the same names) of either encoder -> official keys, as ``from_official`` reads.

    The unused extras (``SSAMBA_EXTRAS``) are not part of a model: whoever writes a file adds them.
    """
    if any(key.startswith("blocks.") for key in state):
        return to_ssast(state, prefix)
    out: dict[str, Tensor] = {}
    back = {ours: theirs for theirs, ours in SSAMBA_NAMES.items()}
    for key, tensor in state.items():
        if key in back:
            out[prefix + back[key]] = tensor
            continue
        _, number, name = key.split(".")
        for k in range(BLOCKS):
            block = f"{prefix}v.layers.{BLOCKS * int(number) + k}."
            out |= {block + n: t for n, t in _unstack_block(name, tensor, k).items()}
    return out


def with_free_decays(config: Config, state: dict[str, Tensor]) -> tuple[Config, dict[str, Tensor]]:
    """The same model with a decay rate for each state, as official files have them: ``A_log = log(n) + log a_d``."""
    if config.decay == "free":
        return config, state
    return config.replace(decay="free"), {
        k: _rates(v, config.state_size) if k.endswith(RATES) else v for k, v in state.items()
    }


def with_tied_decays(config: Config, state: dict[str, Tensor], source: str) -> tuple[Config, dict[str, Tensor]]:
    """The reverse of ``with_free_decays``. Raises ``CheckpointError`` naming ``source`` for rates that are not tied."""
    if config.encoder != "ssamba":
        raise CheckpointError(f"{source}: is an {config.encoder.upper()}, which has no decays; leave --decay out")
    tied = {k: v[..., :1].clone() if k.endswith(RATES) else v for k, v in state.items()}
    for key in (k for k in state if k.endswith(RATES)):
        expected, found = _rates(tied[key], config.state_size), state[key]
        if not torch.equal(found, expected):
            most = (found.double() - expected.double()).abs().max().expm1().item()
            raise CheckpointError(
                f"{source}: its decays are no tied ones, those of {key} differ from 1 .. N times a channel's by up to "
                f"{most:.2g} of their value; leave --decay tied out"
            )
    return config.replace(decay="tied"), tied


def _rates(tied_RKE1: Tensor, states: int) -> Tensor:
    """``A_log`` of N states, rounded once."""
    counts_N = torch.arange(1, states + 1, dtype=torch.float64, device=tied_RKE1.device)
    return (tied_RKE1.double() + counts_N.log()).to(tied_RKE1.dtype)


def doubling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a ``residual_scale`` 1 -> that of the same model in the reference's form, whose stream doubles.

    With ``R[p+1] = 2 R[p] + H[p]`` the stream before pair p is ``2^p`` times that of ``r[p+1] = r[p] + h[p]``, if pair
    p adds ``2^(p+1)`` as much. A power of two loses nothing, and LayerNorm takes the factor out again (but for its
    epsilon, which weighs ``4^-p`` as much in the larger stream).
    """
    name = re.compile(r"pairs\.(\d+)\.out_proj_dKE")
    return {k: v * 2.0 ** (int(found[1]) + 1) if (found := name.fullmatch(k)) else v for k, v in state.items()}


def _unstack_block(name: str, tensor: Tensor, k: int) -> dict[str, Tensor]:
    """One block's official tensors out of a stacked one."""
    if name in ("norm_weight_Kd", "norm_bias_Kd"):
        return {"norm." + name.split("_")[1]: tensor[k].clone()}
    if name == "in_proj_hKEd":
        return {"mixer.in_proj.weight": tensor[:, k].flatten(0, 1).clone()}
    if name == "out_proj_dKE":
        return {"mixer.out_proj.weight": tensor[:, k].clone()}
    theirs = {ours: t for t, ours in PER_DIRECTION.items()}[name]
    out = {}
    for r in range(DIRECTIONS):
        lane = tensor[r, k].clone()
        out["mixer." + theirs.format(_suffix(k, r))] = lane[:, None] if name == "conv_weight_RKEW" else lane
    return out
