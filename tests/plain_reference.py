"""The reference encoder as its description says it, word for word, on official keys: flips, loops, float64.

Slow and independent of ``ssamba``: nothing is stacked, nothing is exchanged. ``test_golden`` ties it to the reference's
own numbers, so that other tests may use it for shapes that the golden files do not have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def plain_encode(state: State, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
    """Tokens (B, L, d) with positions -> (B, L, d) after the final norms; ``keep`` (depth + 1, B) scales x."""
    state = {k.removeprefix("module."): v.double() for k, v in state.items()}
    depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("v.layers."))
    keep = torch.ones(depth + 1, tokens.shape[0]) if keep is None else keep
    x, residual = tokens.double(), None
    for i in range(0, depth, 2):
        x_even, residual_even = _block(state, i, x, residual, keep[i])
        flipped = None if residual is None else residual.flip(1)
        x_odd, residual_odd = _block(state, i + 1, x.flip(1), flipped, keep[i + 1])
        x, residual = x_even + x_odd.flip(1), residual_even + residual_odd.flip(1)
    assert residual is not None
    out = residual + x * keep[-1].double()[:, None, None]
    for _ in range(2):
        out = F.layer_norm(out, out.shape[-1:], state["v.norm_f.weight"], state["v.norm_f.bias"], 1e-5)
    return out


def _block(state: State, number: int, x: Tensor, residual: Tensor | None, keep: Tensor) -> tuple[Tensor, Tensor]:
    own = {k.removeprefix(f"v.layers.{number}."): v for k, v in state.items() if k.startswith(f"v.layers.{number}.")}
    residual = x if residual is None else residual + x * keep.double()[:, None, None]
    normal = F.layer_norm(residual, residual.shape[-1:], own["norm.weight"], own["norm.bias"], 1e-5)
    x, z = (normal @ own["mixer.in_proj.weight"].T).chunk(2, dim=-1)
    forward = _direction(own, x, z, "")
    backward = _direction(own, x.flip(1), z.flip(1), "_b").flip(1)
    return (forward + backward) / 2 @ own["mixer.out_proj.weight"].T, residual


def _direction(own: State, x: Tensor, z: Tensor, suffix: str) -> Tensor:
    weight, bias = own[f"mixer.conv1d{suffix}.weight"], own[f"mixer.conv1d{suffix}.bias"]
    taps, length = weight.shape[-1], x.shape[1]
    past = torch.cat([x.new_zeros(x.shape[0], taps - 1, x.shape[2]), x], dim=1)
    u = F.silu(sum(past[:, w : w + length] * weight[:, 0, w] for w in range(taps)) + bias)
    a = -torch.exp(own[f"mixer.A{suffix}_log"])
    rank, states = own[f"mixer.dt_proj{suffix}.weight"].shape[1], a.shape[1]
    dt, b, c = (u @ own[f"mixer.x_proj{suffix}.weight"].T).split([rank, states, states], dim=-1)
    dt = F.softplus(dt @ own[f"mixer.dt_proj{suffix}.weight"].T + own[f"mixer.dt_proj{suffix}.bias"])
    h, outputs = x.new_zeros(x.shape[0], x.shape[2], states), []
    for t in range(length):
        step = dt[:, t, :, None]
        h = torch.exp(step * a) * h + step * b[:, t, None] * u[:, t, :, None]
        outputs.append((h * c[:, t, None]).sum(-1) + own[f"mixer.D{suffix}"] * u[:, t])
    return torch.stack(outputs, dim=1) * F.silu(z)
