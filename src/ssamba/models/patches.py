"""The patch grid: cutting log-mel features into patches, the order of tokens, and positions for another grid.

Tokens are frequency-major: index = f * T + t, time runs fastest (docs/reference.md, "Encoder").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba import ops
from ssamba.models.config import Config
from ssamba.utils.torch_defaults import of_new_weights


def columns(frames: int, config: Config) -> int:
    """Patch columns that cover ``frames`` log-mel frames, the last one padded where it is not full; at least 1."""
    missing = max(frames - config.patch_time, 0)
    return -(-missing // config.stride_time) + 1


def covered_frames(n_columns: int, config: Config) -> int:
    """Log-mel frames that ``n_columns`` patch columns read."""
    return (n_columns - 1) * config.stride_time + config.patch_time


def full_columns(frames: int, config: Config) -> int:
    """Patch columns that ``frames`` log-mel frames fill."""
    return (frames - config.patch_time) // config.stride_time + 1


def column_times(columns: Tensor, config: Config, hop: int | None = None) -> Tensor:
    """Seconds at the centre of patch columns (from 0) that are ``hop`` frames apart, float64 of the same shape."""
    first = config.front_end.seconds_of_frame((config.patch_time - 1) / 2)
    step = config.front_end.seconds_between(hop or config.stride_time)
    return first + step * columns.double()


def patches_overlap(config: Config) -> bool:
    """Whether patches do not lie side by side: they overlap, or leave gaps."""
    return (config.stride_frequency, config.stride_time) != (config.patch_frequency, config.patch_time)


def patchify(features: Tensor, config: Config) -> Tensor:
    """Raw patches: (B, frames, mel_bins) -> (B, F*T, patch_frequency*patch_time), frequency-major in and among patches.

    Frames beyond the last full column are left out.
    """
    image_BFT = features.transpose(1, 2)
    tiles = image_BFT.unfold(1, config.patch_frequency, config.stride_frequency)
    tiles = tiles.unfold(2, config.patch_time, config.stride_time)
    return tiles.reshape(features.shape[0], -1, config.patch_size)


def unpatchify(patches: Tensor, config: Config, n_columns: int) -> Tensor:
    """The reverse of ``patchify`` for non-overlapping patches: (B, F*T, values) -> (B, frames, mel_bins)."""
    batch, rows = patches.shape[0], config.grid[0]
    tiles = patches.reshape(batch, rows, n_columns, config.patch_frequency, config.patch_time)
    return tiles.permute(0, 2, 4, 1, 3).reshape(batch, n_columns * config.patch_time, rows * config.patch_frequency)


class PatchEmbedding(nn.Conv2d):
    """The linear layer of each patch: normalised log-mel (B, frames, mel_bins) -> (B, F*T, d), frequency-major.

    Its weights have the shape of the reference's convolution, (d, 1, patch_frequency, patch_time). On a GPU it is a
    product of patches and weights: several times as fast as cuDNN's convolution of one channel, and in float32 without
    the rounding to TF32 that PyTorch allows a convolution by default.
    """

    def __init__(self, config: Config) -> None:
        size, stride = (config.patch_frequency, config.patch_time), (config.stride_frequency, config.stride_time)
        super().__init__(1, config.width, size, stride, **of_new_weights())
        self.config = config

    def forward(self, features: Tensor) -> Tensor:
        if features.is_cuda:
            return self.product(features)
        image_BxFT = features.transpose(1, 2)[:, None]
        return super().forward(image_BxFT).flatten(2).transpose(1, 2)

    def product(self, features: Tensor) -> Tensor:
        """``forward`` as a product of patches and weights."""
        return ops.linear(patchify(features, self.config), self.weight.flatten(1), self.bias)


def gather_patches(values_BQx: Tensor, mask_BM: Tensor) -> Tensor:
    """Rows of (B, Q, x) at patch indices (B, M) -> (B, M, x)."""
    index = mask_BM.to(values_BQx.device)[..., None].expand(-1, -1, values_BQx.shape[-1])
    return values_BQx.gather(1, index)


LONGER = ("interpolate", "repeat", "average")
"""What a longer time is given: positions interpolated, the same ones over and over, or their mean at every time."""


def resize_positions(
    positions: Tensor, old: tuple[int, int], new: tuple[int, int], longer: str = "interpolate"
) -> Tensor:
    """Position embedding (1, prefix + F*T, d) for another (frequency, time) grid; those of prefix tokens are kept.

    A shorter side is cut from the centre, a longer one interpolated (bilinear, align_corners False): first time, then
    frequency, as for fine-tuning in SSAST (arXiv 2110.09784; docs/reference.md, "Fine-tuning"). ``longer`` (of
    ``LONGER``) names what a longer time is given instead: a few positions stretched over much more time are far from
    those that the encoder was trained with.
    """
    traced = not isinstance(new[1], int)  # by torch.export: no decision may depend on the length
    if not traced and old == new:
        return positions
    front, width = positions.shape[1] - old[0] * old[1], positions.shape[-1]
    image = positions[:, front:].transpose(1, 2).reshape(1, width, *old)
    if traced:
        image = _resize_to_any_time(image, new[1])
    else:
        if longer == "repeat" and new[1] > old[1]:
            image = image[..., torch.arange(new[1], device=image.device) % old[1]]
        elif longer == "average" and new[1] > old[1]:
            image = image.mean(3, keepdim=True).expand(-1, -1, -1, new[1])
        image = _resize_side(image, dim=3, length=new[1])
    image = _resize_side(image, dim=2, length=new[0])
    return torch.cat([positions[:, :front], image.reshape(1, width, -1).transpose(1, 2)], dim=1)


def _resize_side(image: Tensor, dim: int, length: int) -> Tensor:
    old = image.shape[dim]
    if length <= old:
        start = old // 2 - length // 2
        return image.narrow(dim, start, length)
    size = (length, image.shape[3]) if dim == 2 else (image.shape[2], length)
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def _resize_to_any_time(image: Tensor, length: int) -> Tensor:
    """``_resize_side`` of the last side without a decision in Python: (1, d, F, T) -> (1, d, F, length).

    Each new column is a mean of two old ones: when cut, of one with the weight 1.
    """
    old = image.shape[3]
    index = torch.arange(length, device=image.device)
    new = index[-1:] + 1
    place = ((index.float() + 0.5) * (old / new.float()) - 0.5).clamp_min(0)
    below = place.floor()
    first = torch.where(new > old, below.long(), old // 2 - new // 2 + index)
    share = torch.where(new > old, place - below, 0.0).to(image.dtype)
    low, high = image[..., first], image[..., (first + 1).clamp_max(old - 1)]
    return low + (high - low) * share
