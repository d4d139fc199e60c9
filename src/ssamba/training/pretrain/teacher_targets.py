"""Predicting an averaged model's tokens: an objective beside the published ones.

A copy of the encoder whose weights are a running mean of the trained ones (the teacher) sees the whole clip. The
trained encoder (the student) sees the masked one. It predicts, at masked patches, the teacher's tokens averaged over
layers, as in data2vec (arXiv 2202.03555) and M2D (arXiv 2210.14648), and the clip's mean token, as in EAT
(arXiv 2401.03497), or that of another view: another crop of the same recording, as in COLA (arXiv 2010.10915) and
BYOL-A (arXiv 2204.07402).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssamba.models.encoder import Encoder
from ssamba.models.masking import MaskedForward
from ssamba.models.patches import gather_patches

EPS = 1e-5
TEMPERATURE = 0.1


class AveragedModel(nn.Module):
    """A copy of an encoder whose weights follow the trained ones: mean <- decay * mean + (1 - decay) * weights.

    Early on, when a long mean would still be mostly the initial weights, the decay is (1 + step) / (10 + step).
    """

    def __init__(self, model: Encoder, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    def train(self, mode: bool = True) -> AveragedModel:
        """Stays in evaluation: a target has no stochastic depth."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, model: Encoder, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], 1 - decay)


class LatentHeads(nn.Module):
    """Perceptrons from the student's tokens (B, M, d) and mean token (B, d) to the teacher's."""

    def __init__(self, width: int, generator: Generator) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.clip = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.zero_()


@torch.no_grad()
def targets(teacher: Encoder, features: Tensor, layers: int = 0) -> tuple[Tensor, Tensor]:
    """What the student shall predict: tokens (B, P, d), mean token of each clip (B, d).

    The mean of the last ``layers`` layers (0: all). Before that each layer's tokens are normalised: each value over the
    clip's tokens, so that no target is the same everywhere; for the clip each token over its values. The clips' targets
    are standardised over the batch, for the same reason.
    """
    hidden = teacher.encode_layers(features)[-layers:]
    tokens_BPd = clip_Bd = torch.zeros((), device=features.device)
    for layer in hidden:
        patches_BPd = layer[:, teacher.prefix_tokens :].float()
        variance, mean = torch.var_mean(patches_BPd, dim=1, keepdim=True, correction=0)
        tokens_BPd = tokens_BPd + (patches_BPd - mean) * (variance + EPS).rsqrt() / len(hidden)
        clip_Bd = clip_Bd + F.layer_norm(patches_BPd, patches_BPd.shape[-1:]).mean(dim=1) / len(hidden)
    variance, mean = torch.var_mean(clip_Bd, dim=0, keepdim=True, correction=0)
    return tokens_BPd, (clip_Bd - mean) * (variance + EPS).rsqrt()


def latent_losses(
    heads: LatentHeads,
    seen: MaskedForward,
    mask_BM: Tensor,
    wanted: tuple[Tensor, Tensor],
    views: int = 1,
    contrast: bool = False,
) -> dict[str, Tensor]:
    """What the student's tokens have to do with the ``targets`` of C clips; it saw each B / C times, one after another.

    ``latent`` and ``latent_clip`` are mean squared errors of the masked tokens and of the clips' mean tokens,
    ``contrast``, where it is asked for, that of :func:`clip_contrast`. With ``views`` crops of each recording, which
    follow one another, the clip's target is that of the recording's next view.
    """
    tokens_CPd, clip_Cd = wanted
    each = len(mask_BM) // len(clip_Cd)
    tokens_BPd = tokens_CPd.repeat_interleave(each, dim=0) if each > 1 else tokens_CPd
    token = heads.token(seen.masked_BMd).float()
    clip = heads.clip(seen.encoded_BPd.mean(dim=1)).float()
    own = torch.arange(len(clip), device=clip.device) // each
    other = own - own % views + (own + 1) % views
    found = {
        "latent": F.mse_loss(token, gather_patches(tokens_BPd, mask_BM)),
        "latent_clip": F.mse_loss(clip, clip_Cd[other]),
    }
    if contrast:
        found["contrast"] = clip_contrast(clip, clip_Cd, other, views)
    return found


def clip_contrast(clip_Bd: Tensor, wanted_Cd: Tensor, other: Tensor, views: int = 1) -> Tensor:
    """InfoNCE: which of C clips is the one that was predicted, by cosine over a temperature of 0.1.

    Row i predicts the clip ``other[i]``. The further ``views`` of its recording, which lie beside it, do not count.
    """
    logits_BC = F.normalize(clip_Bd, dim=1) @ F.normalize(wanted_Cd, dim=1).T / TEMPERATURE
    clips = torch.arange(len(wanted_Cd), device=other.device)
    same = (clips // views == (other // views)[:, None]) & (clips != other[:, None])
    return F.cross_entropy(logits_BC.masked_fill(same, float("-inf")), other)
