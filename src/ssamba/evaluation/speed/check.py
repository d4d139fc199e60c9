"""What an encoder's output should be, computed another way in float32: no kernel of ours, no fused attention.

SSAMBA's recurrence is unrolled by doubling within chunks of time (h[t] = a[t] h[t-1] + b[t] is associative in (a, b));
SSAST's attention is written out for a slice of the queries at a time. Both are slow and take little memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.inference.model import Encoder
from ssamba.models.bimamba import MambaPair
from ssamba.models.ssamba import SSAMBA
from ssamba.models.ssast import SSAST, Attention, Block
from ssamba.ops.mamba import naive

SCAN_CHUNK, QUERIES = 512, 512


@torch.no_grad()
def expected_tokens(model: Encoder, features: Tensor) -> Tensor:
    """Tokens (B, L, d) of a float32 model for features (B, frames, mel_bins)."""
    tokens = model.embed_patches(features)
    if isinstance(model, SSAMBA):
        return _ssamba(model, tokens)
    assert isinstance(model, SSAST)
    for block in model.blocks:
        assert isinstance(block, Block)
        tokens = tokens + _attention(block.attn, block.norm1(tokens))
        tokens = tokens + block.fc2(F.gelu(block.fc1(block.norm2(tokens))))
    return model.norm(tokens)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what it should be; infinite for NaN."""
    error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
    return error if error == error else float("inf")


def _attention(attention: Attention, x_BLd: Tensor) -> Tensor:
    q, k, v = attention.qkv(x_BLd).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    scale = q.shape[-1] ** -0.5
    rows = [(part * scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v for part in q.split(QUERIES, dim=2)]
    return attention.proj(torch.cat(rows, dim=2).transpose(1, 2).flatten(2))


def _ssamba(model: SSAMBA, tokens: Tensor) -> Tensor:
    """The chain as the reference describes it: every block with a residual stream, summed after each pair."""
    x, residual = tokens, torch.zeros_like(tokens)
    for pair in model.pairs:
        assert isinstance(pair, MambaPair)
        joined = residual + x
        x, residual = _mixers(pair, joined), 2 * joined
    return model.norm(model.norm(residual + x))


def _mixers(pair: MambaPair, joined: Tensor) -> Tensor:
    total = torch.zeros_like(joined)
    for k in range(pair.norm_weight_Kd.shape[0]):
        normal = F.layer_norm(joined, joined.shape[-1:], pair.norm_weight_Kd[k], pair.norm_bias_Kd[k], 1e-5)
        x, z = (normal @ w.T for w in pair.in_proj_hKEd[:, k])
        y = torch.zeros_like(x)
        for r in range(pair.D_RKE.shape[0]):
            y += _one_direction(pair, r, k, x)
        total += (y / pair.D_RKE.shape[0] * F.silu(z)) @ pair.out_proj_dKE[:, k].T
    return total


def _one_direction(pair: MambaPair, r: int, k: int, x_BLE: Tensor) -> Tensor:
    """Convolution, projections and scan of one direction of one block, the scan by chunks of time."""
    weight, bias = pair.conv_weight_RKEW[r, k], pair.conv_bias_RKE[r, k]
    backwards = k % 2 == 1 if pair.alternating else r == 1
    x_BLE = x_BLE.flip(1) if backwards else x_BLE
    u_BLE = naive.conv_silu(x_BLE[:, :, None], weight[None, None], bias[None, None])[:, :, 0, 0]
    rank, states = pair.dt_proj_RKEr.shape[-1], pair.states
    dt, B_BLN, C_BLN = (u_BLE @ pair.x_proj_RKPE[r, k].T).split([rank, states, states], dim=-1)
    delta_BLE = F.softplus(dt @ pair.dt_proj_RKEr[r, k].T + pair.dt_bias_RKE[r, k])
    A_EN = -torch.exp(pair.mixer_params().expanded().A_log_RKEN[r, k])
    h_BEN = torch.zeros(x_BLE.shape[0], *A_EN.shape, device=x_BLE.device, dtype=torch.float32)
    parts = []
    for start in range(0, x_BLE.shape[1], SCAN_CHUNK):
        cut = slice(start, start + SCAN_CHUNK)
        decay = torch.exp(delta_BLE[:, cut, :, None] * A_EN)
        drive = (delta_BLE[:, cut] * u_BLE[:, cut])[..., None] * B_BLN[:, cut, None]
        states_BLEN = _unroll(decay, drive, h_BEN)
        parts.append((states_BLEN * C_BLN[:, cut, None]).sum(-1))
        h_BEN = states_BLEN[:, -1]
    y_BLE = torch.cat(parts, dim=1) + pair.D_RKE[r, k] * u_BLE
    return y_BLE.flip(1) if backwards else y_BLE


def _unroll(decay_BLEN: Tensor, drive_BLEN: Tensor, first_BEN: Tensor) -> Tensor:
    """All states of ``h[t] = decay[t] h[t-1] + drive[t]``, h[-1] = first, in log2(T) doublings."""
    a, b, span = decay_BLEN, drive_BLEN, 1
    while span < a.shape[1]:
        b = torch.cat([b[:, :span], b[:, span:] + a[:, span:] * b[:, :-span]], dim=1)
        a = torch.cat([a[:, :span], a[:, span:] * a[:, :-span]], dim=1)
        span *= 2
    return b + a * first_BEN[:, None]
