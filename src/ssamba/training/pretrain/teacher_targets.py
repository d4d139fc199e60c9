"""Predicting an averaged model's tokens: objectives that are added to the published ones.

A copy of the encoder whose weights are a running mean of the trained ones (the teacher, ``training.ema``) sees the
whole clip. The trained encoder (the student) sees the masked one. It predicts, at masked patches, the teacher's tokens
averaged over layers, as in data2vec (arXiv 2202.03555) and M2D (arXiv 2210.14648), and the clip's mean token, as in EAT
(arXiv 2401.03497), or that of another view: another crop of the same recording, as in COLA (arXiv 2010.10915) and
BYOL-A (arXiv 2204.07402).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssamba.models.encoder import Encoder
from ssamba.models.masking import MaskedForward
from ssamba.models.patches import gather_patches
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.utils.torch_defaults import of_new_weights

EPS = 1e-5
TEMPERATURE = 0.1


class LatentHeads(nn.Module):
    """MLPs from the student's tokens (B, M, d) and mean token (B, d) to the teacher's."""

    def __init__(self, width: int, generator: Generator) -> None:
        super().__init__()
        self.token = nn.Sequential(
            nn.Linear(width, 2 * width, **of_new_weights()), nn.GELU(), nn.Linear(2 * width, width, **of_new_weights())
        )
        self.clip = nn.Sequential(
            nn.Linear(width, 2 * width, **of_new_weights()), nn.GELU(), nn.Linear(2 * width, width, **of_new_weights())
        )
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.zero_()


class Targets(NamedTuple):
    """What the student shall predict of C clips: tokens (C, Q, d), and the mean token of each clip (C, d)."""

    tokens_CQd: Tensor
    clip_Cd: Tensor


@torch.no_grad()
def teacher_targets(teacher: Encoder, features: Tensor, layers: int = 0) -> Targets:
    """The teacher's targets for features (C, frames, mel_bins): the mean of its last ``layers`` layers (0: all).

    Before that each layer's tokens are normalised: each value over the clip's tokens, so that no target is the same
    everywhere; for the clip each token over its values. The clips' targets are standardised over the batch, for the
    same reason.
    """
    hidden = teacher.encode_layers(features)[-layers:]
    tokens_CQd = clip_Cd = torch.zeros((), device=features.device, dtype=torch.float32)
    for layer in hidden:
        patches_CQd = layer[:, teacher.prefix_tokens :].float()
        variance, mean = torch.var_mean(patches_CQd, dim=1, keepdim=True, correction=0)
        tokens_CQd = tokens_CQd + (patches_CQd - mean) * (variance + EPS).rsqrt() / len(hidden)
        clip_Cd = clip_Cd + F.layer_norm(patches_CQd, patches_CQd.shape[-1:]).mean(dim=1) / len(hidden)
    variance, mean = torch.var_mean(clip_Cd, dim=0, keepdim=True, correction=0)
    return Targets(tokens_CQd, (clip_Cd - mean) * (variance + EPS).rsqrt())


@dataclass(frozen=True)
class Predictions:
    """The student's predictions of C clips, each seen B / C times one after another, with what they are compared to.

    Attributes:
        masked_BMd: of the masked patches' tokens, ``masked_targets_BMd`` the teacher's.
        clip_Bd: of the mean tokens, ``clip_targets_Cd`` the teacher's.
        target_B: which of the C clips each row predicts: its own, or the next view of its recording.
        views: crops of each recording, which follow one another.
    """

    masked_BMd: Tensor
    masked_targets_BMd: Tensor
    clip_Bd: Tensor
    clip_targets_Cd: Tensor
    target_B: Tensor
    views: int


def predict(heads: LatentHeads, seen: MaskedForward, mask_BM: Tensor, targets: Targets, views: int = 1) -> Predictions:
    """What the student predicts from a masked pass. With ``views`` a clip's target is that of the next view."""
    each = len(mask_BM) // len(targets.clip_Cd)
    tokens_BQd = targets.tokens_CQd.repeat_interleave(each, dim=0) if each > 1 else targets.tokens_CQd
    masked_BMd = heads.token(seen.masked_BMd).float()
    clip_Bd = heads.clip(seen.encoded_BQd.mean(dim=1)).float()
    clip_B = torch.arange(len(clip_Bd), device=clip_Bd.device) // each
    next_view_B = clip_B - clip_B % views + (clip_B + 1) % views
    masked_targets_BMd = gather_patches(tokens_BQd, mask_BM)
    return Predictions(masked_BMd, masked_targets_BMd, clip_Bd, targets.clip_Cd, next_view_B, views)


def token_error(predictions: Predictions) -> Tensor:
    """Mean squared error of the masked patches' tokens."""
    return F.mse_loss(predictions.masked_BMd, predictions.masked_targets_BMd)


def clip_error(predictions: Predictions) -> Tensor:
    """Mean squared error of the clips' mean tokens."""
    return F.mse_loss(predictions.clip_Bd, predictions.clip_targets_Cd[predictions.target_B])


def clip_contrast(predictions: Predictions) -> Tensor:
    """InfoNCE: which of C clips is the one that was predicted, by cosine over a temperature of 0.1.

    The further views of the target's recording, which are its neighbours in the batch, do not count.
    """
    clip_Bd, targets_Cd, target_B = predictions.clip_Bd, predictions.clip_targets_Cd, predictions.target_B
    logits_BC = F.normalize(clip_Bd, dim=1) @ F.normalize(targets_Cd, dim=1).T / TEMPERATURE
    clips = torch.arange(len(targets_Cd), device=target_B.device)
    views = predictions.views
    same = (clips // views == (target_B // views)[:, None]) & (clips != target_B[:, None])
    return F.cross_entropy(logits_BC.masked_fill(same, float("-inf")), target_B)


class TeacherLoss(NamedTuple):
    """One additional loss.

    Attributes:
        name: its column in the log, and the recipe's value that is its weight.
        loss: the scalar.
        only_if_weighted: not computed with weight 0; the others are logged wherever there is a teacher.
    """

    name: str
    loss: Callable[[Predictions], Tensor]
    only_if_weighted: bool = False


TEACHER_LOSSES = (
    TeacherLoss("latent", token_error),
    TeacherLoss("latent_clip", clip_error),
    TeacherLoss("contrast", clip_contrast, only_if_weighted=True),  # older runs' logs have no column for it
)
"""Each additional loss; its name stands in ``recipe.TEACHER_WEIGHTS`` too."""


def active_losses(recipe: PretrainRecipe) -> Sequence[TeacherLoss]:
    """The additional losses of a run, in the order in which they are added."""
    if not recipe.needs_teacher:
        return ()
    return [loss for loss in TEACHER_LOSSES if getattr(recipe, loss.name) > 0 or not loss.only_if_weighted]
