"""The encoders of SSAMBA (arXiv 2405.11831) and SSAST (arXiv 2110.09784) in plain torch, for inference and fine-tuning.

The scan is a loop over the tokens: many times slower than the kernels of the package ssamba, with the same results to
rounding and the same names of the tensors. Shape letters: B clips, L tokens, d width, R directions, K the two blocks of
a pair, E inner channels, N states, F x T patches along frequency and time.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ssamba import SsambaConfig

BLOCKS = 2
VARIANCE = 1e-6
DT_MIN, DT_MAX, DT_FLOOR = 0.001, 0.1, 1e-4


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def _uniform(tensor: Tensor, bound: float) -> None:
    tensor.uniform_(-bound, bound)


class BlockPair(GradientCheckpointingLayer):
    """Two blocks that read the same input, each with scans in both directions, or in one (``config.scan``)."""

    def __init__(self, config: SsambaConfig) -> None:
        super().__init__()
        d, e, n, r = config.width, config.expand * config.width, config.state_size, config.dt_rank
        lanes = (config.directions, BLOCKS)
        self.depth, self.residual_scale = config.depth, config.residual_scale
        self.states, self.alternating = n, config.scan == "alternating"
        self.norm_weight_Kd = _empty(BLOCKS, d)
        self.norm_bias_Kd = _empty(BLOCKS, d)
        self.in_proj_hKEd = _empty(2, BLOCKS, e, d)
        self.conv_weight_RKEW = _empty(*lanes, e, config.conv_width)
        self.conv_bias_RKE = _empty(*lanes, e)
        self.x_proj_RKPE = _empty(*lanes, r + 2 * n, e)
        self.dt_proj_RKEr = _empty(*lanes, e, r)
        self.dt_bias_RKE = _empty(*lanes, e)
        self.A_log_RKEN = _empty(*lanes, e, 1 if config.decay == "tied" else n)
        self.D_RKE = _empty(*lanes, e)
        self.out_proj_dKE = _empty(d, BLOCKS, e)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The reference's initialisation."""
        d, (e, r) = self.norm_weight_Kd.shape[1], self.dt_proj_RKEr.shape[2:]
        self.norm_weight_Kd.fill_(1.0)
        self.norm_bias_Kd.zero_()
        _uniform(self.in_proj_hKEd, d**-0.5)
        _uniform(self.conv_weight_RKEW, self.conv_weight_RKEW.shape[-1] ** -0.5)
        _uniform(self.conv_bias_RKE, self.conv_weight_RKEW.shape[-1] ** -0.5)
        _uniform(self.x_proj_RKPE, e**-0.5)
        _uniform(self.dt_proj_RKEr, r**-0.5)
        _uniform(self.out_proj_dKE, (e * self.depth) ** -0.5)
        dt = torch.empty_like(self.dt_bias_RKE).uniform_(math.log(DT_MIN), math.log(DT_MAX))
        dt = dt.exp().clamp_min(DT_FLOOR)
        self.dt_bias_RKE.copy_(dt + torch.log(-torch.expm1(-dt)))
        states = torch.arange(1, self.A_log_RKEN.shape[-1] + 1, dtype=torch.float32, device=self.A_log_RKEN.device)
        self.A_log_RKEN.copy_(states.log().expand_as(self.A_log_RKEN))
        self.D_RKE.fill_(1.0)

    def forward(
        self, x_BLd: Tensor, stream_BLd: Tensor | None, keep_KB: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """The blocks' summed output and the stream, before that output joins it; ``keep_KB``: stochastic depth."""
        streams = [add(x_BLd, stream_BLd, self.residual_scale, keep_B) for keep_B in keep_KB]
        first, second = (self._block(k, stream) for k, stream in enumerate(streams))
        return first + second, (streams[0] + streams[1]) / BLOCKS

    def _block(self, k: int, stream_BLd: Tensor) -> Tensor:
        d = stream_BLd.shape[-1:]
        normal_BLd = F.layer_norm(stream_BLd, d, self.norm_weight_Kd[k], self.norm_bias_Kd[k])
        x_BLE, z_BLE = F.linear(normal_BLd, self.in_proj_hKEd[:, k].flatten(0, 1)).chunk(2, dim=-1)
        lanes = [self._scan(r, k, x_BLE) for r in range(self.D_RKE.shape[0])]
        y_BLE = (torch.stack(lanes).mean(dim=0) * F.silu(z_BLE.float())).to(x_BLE.dtype)
        return F.linear(y_BLE, self.out_proj_dKE[:, k])

    def _scan(self, r: int, k: int, x_BLE: Tensor) -> Tensor:
        """Convolution, SiLU and selective scan in one direction, (B, L, E) float32."""
        backwards = k == 1 if self.alternating else r == 1
        if backwards:
            x_BLE = x_BLE.flip(1)
        taps, bias_E = self.conv_weight_RKEW[r, k], self.conv_bias_RKE[r, k]
        x_BEL = F.pad(x_BLE.transpose(1, 2), (taps.shape[-1] - 1, 0))
        u_BLE = F.silu(F.conv1d(x_BEL, taps[:, None], bias_E, groups=taps.shape[0])).transpose(1, 2)
        rank, states = self.dt_proj_RKEr.shape[-1], self.states
        dt, B_BLN, C_BLN = F.linear(u_BLE, self.x_proj_RKPE[r, k]).split([rank, states, states], dim=-1)
        u_BLE, B_BLN, C_BLN = u_BLE.float(), B_BLN.float(), C_BLN.float()
        delta_BLE = F.softplus(F.linear(dt, self.dt_proj_RKEr[r, k]).float() + self.dt_bias_RKE[r, k].float())
        A_EN = -self.A_log_RKEN[r, k].float().exp()
        if A_EN.shape[-1] != states:  # tied: state n of 1 .. N decays n times as fast as the channel says
            A_EN = A_EN * torch.arange(1, states + 1, dtype=A_EN.dtype, device=A_EN.device)
        drive_BLE, outputs = delta_BLE * u_BLE, []
        h_BEN = u_BLE.new_zeros(u_BLE.shape[0], *A_EN.shape)
        for t in range(u_BLE.shape[1]):
            decay_BEN = torch.exp(delta_BLE[:, t, :, None] * A_EN)
            h_BEN = decay_BEN * h_BEN + drive_BLE[:, t, :, None] * B_BLN[:, t, None]
            outputs.append((h_BEN @ C_BLN[:, t, :, None])[..., 0])
        y_BLE = torch.stack(outputs, dim=1) + self.D_RKE[r, k].float() * u_BLE
        return y_BLE.flip(1) if backwards else y_BLE


def add(x_BLd: Tensor, stream_BLd: Tensor | None, scale: int, keep_B: Tensor | None) -> Tensor:
    """``scale stream + keep x``; without a stream x begins it."""
    if stream_BLd is None:
        return x_BLd
    return scale * stream_BLd + (x_BLd if keep_B is None else x_BLd * keep_B.to(x_BLd)[:, None, None])


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, config: SsambaConfig) -> None:
        super().__init__()
        self.heads = config.attention_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BLd: Tensor) -> Tensor:
        """(B, L, d) -> (B, L, d)."""
        q, k, v = self.qkv(x_BLd).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Block(GradientCheckpointingLayer):
    """SSAST's block: pre-norm attention and an MLP with GELU."""

    def __init__(self, config: SsambaConfig) -> None:
        super().__init__()
        d = config.width
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.attn = Attention(config)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Truncated normal weights of deviation 0.02, biases 0."""
        for layer in (self.attn.qkv, self.attn.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.norm1.reset_parameters()
        self.norm2.reset_parameters()

    def forward(self, x_BLd: Tensor, keep_2B: Sequence[Tensor | None]) -> Tensor:
        """(B, L, d) -> (B, L, d); ``keep_2B``: stochastic depth of the two additions."""
        x_BLd = add(self.attn(self.norm1(x_BLd)), x_BLd, 1, keep_2B[0])
        return add(self.fc2(F.gelu(self.fc1(self.norm2(x_BLd)))), x_BLd, 1, keep_2B[1])


class Classifier(nn.Module):
    """LayerNorm and a linear layer on pooled tokens."""

    def __init__(self, config: SsambaConfig, task: dict[str, Any]) -> None:
        super().__init__()
        self.pooling = task.get("pooling", "mean")
        values = config.width * (2 * config.grid[0] if self.pooling == "rows" else 1)
        self.norm = nn.LayerNorm(values)
        self.linear = nn.Linear(values, len(task["classes"]))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform weights, bias 0."""
        self.norm.reset_parameters()
        _uniform(self.linear.weight, self.linear.in_features**-0.5)
        self.linear.bias.zero_()

    def forward(self, tokens_BLd: Tensor, prefix: int, n_columns: int) -> Tensor:
        """Tokens, ``prefix`` of them in front -> logits (B, classes)."""
        if self.pooling == "cls":
            pooled = tokens_BLd[:, :prefix].mean(dim=1)
        elif self.pooling == "rows":
            rows_BFTd = tokens_BLd[:, prefix:].unflatten(1, (-1, n_columns)).float()
            deviation_BFd = (rows_BFTd.var(dim=2, correction=0) + VARIANCE).sqrt()
            pooled = torch.cat([rows_BFTd.mean(dim=2), deviation_BFd], dim=1).flatten(1)
        else:
            pooled = tokens_BLd[:, prefix:].mean(dim=1)
        logits: Tensor = self.linear(self.norm(pooled.to(self.linear.weight.dtype)))
        return logits


class Encoder(nn.Module):
    """Log-mel patches -> tokens, as ``ssamba.models.encoder.Encoder``; ``task`` adds a classifier."""

    heads = None

    def __init__(self, config: SsambaConfig, task: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config, d = config, config.width
        rows, cols = config.grid
        self.mamba = config.encoder == "ssamba"
        self.prefix_tokens = 1 if self.mamba else 2
        patch, stride = (config.patch_frequency, config.patch_time), (config.stride_frequency, config.stride_time)
        self.patch_embed = nn.Conv2d(1, d, patch, stride)
        self.positions = _empty(1, self.prefix_tokens + rows * cols, d)
        self.mask_embedding = _empty(1, 1, d)
        self.cls_token = _empty(1, 1, d)
        if self.mamba:
            self.pairs = nn.ModuleList(BlockPair(config) for _ in range(config.depth // BLOCKS))
        else:
            self.distillation_token = _empty(1, 1, d)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(d, eps=1e-5 if self.mamba else 1e-6)
        self.classifier = None if task is None else Classifier(config, task)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        bound = (self.config.patch_frequency * self.config.patch_time) ** -0.5
        _uniform(self.patch_embed.weight, bound)
        assert self.patch_embed.bias is not None
        _uniform(self.patch_embed.bias, bound)
        for token in (*self.prefix(), self.positions):
            nn.init.trunc_normal_(token, std=0.02)
        nn.init.xavier_normal_(self.mask_embedding)
        self.norm.reset_parameters()
        parts: list[Any] = [*self.chain(), *([] if self.classifier is None else [self.classifier])]
        for part in parts:
            part.reset_parameters()

    def chain(self) -> nn.ModuleList:
        """The modules that the tokens go through in turn."""
        return self.pairs if self.mamba else self.blocks

    def prefix(self) -> list[nn.Parameter]:
        """The prefix tokens, each (1, 1, d)."""
        return [self.cls_token] if self.mamba else [self.cls_token, self.distillation_token]

    def embed_patches(self, features: Tensor) -> Tensor:
        """Tokens with positions: (B, frames, mel_bins) -> (B, prefix + F*T, d)."""
        features = features.to(self.positions)
        patches_BdFT = self.patch_embed(features.transpose(1, 2)[:, None])
        positions = resize_positions(self.positions, self.prefix_tokens, self.config.grid, patches_BdFT.shape[-1])
        front = [token.expand(len(features), -1, -1) for token in self.prefix()]
        return torch.cat([*front, patches_BdFT.flatten(2).transpose(1, 2)], dim=1) + positions

    def encode(self, features: Tensor) -> Tensor:
        """Normalised log-mel (B, frames, mel_bins) -> tokens (B, prefix + F*T, d)."""
        return self.encode_tokens(self.embed_patches(features))

    def encode_tokens(self, tokens: Tensor, keep: Tensor | None = None, layers: list[Tensor] | None = None) -> Tensor:
        """The chain and the final norm; ``layers`` takes the tokens as they leave each step."""
        steps = self.chain()
        if not self.mamba:
            for i, block in enumerate(steps):
                tokens = block(tokens, (None, None) if keep is None else keep[BLOCKS * i : BLOCKS * (i + 1)])
                if layers is not None:
                    layers.append(tokens)
            tokens = self.norm(tokens)
        else:
            x_BLd, scale = tokens, self.config.residual_scale
            stream_BLd: Tensor | None = None
            for i, pair in enumerate(steps):
                keep_KB = (None, None) if keep is None else keep[BLOCKS * i : BLOCKS * (i + 1)]
                x_BLd, stream_BLd = pair(x_BLd, stream_BLd, keep_KB)
                if layers is not None:
                    layers.append(add(x_BLd, stream_BLd, scale, None))
            # The final norm acts twice, with the same weights: official checkpoints were trained so.
            tokens = self.norm(self.norm(add(x_BLd, stream_BLd, scale, None if keep is None else keep[-1])))
        if layers is not None:
            layers[-1] = tokens
        return tokens

    def draw_keep(self, batch: int, generator: Generator) -> Tensor | None:
        """Factors of stochastic depth for one pass, None when the rate is 0."""
        if self.config.drop_path == 0:
            return None
        rates = torch.linspace(0, self.config.drop_path, self.config.depth, dtype=torch.float32, device="cpu")
        rates = torch.cat([rates.new_zeros(1), rates]) if self.mamba else rates.repeat_interleave(BLOCKS)
        draw = torch.rand(len(rates), batch, generator=generator, dtype=torch.float32, device="cpu")
        return (draw < 1 - rates[:, None]) / (1 - rates[:, None])


def resize_positions(positions: Tensor, front: int, grid: tuple[int, int], n_columns: int) -> Tensor:
    """Positions for another number of columns: a shorter time is cut from the centre, a longer one interpolated."""
    rows, cols = grid
    if n_columns == cols:
        return positions
    image_1dFT = positions[:, front:].transpose(1, 2).unflatten(2, (rows, cols))
    if n_columns < cols:
        image_1dFT = image_1dFT.narrow(3, cols // 2 - n_columns // 2, n_columns)
    else:
        image_1dFT = F.interpolate(image_1dFT, size=(rows, n_columns), mode="bilinear", align_corners=False)
    return torch.cat([positions[:, :front], image_1dFT.flatten(2).transpose(1, 2)], dim=1)
