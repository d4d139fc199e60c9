"""Class prototypes: the nearest class mean in a whitened space, as a linear classifier.

With equal covariance for all classes the squared distance to a class's mean differs between classes by a linear
function of the features alone, so prototypes have the form of a logistic regression. The whitening is that of the
covariance within classes, half of which is replaced by the identity (features are standardised), so that a few examples
in thousands of dimensions suffice; with one example a class it is a multiple of the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssamba.evaluation.logistic_regression import LinearModel, Standardiser

SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Candidate factors between mean squared distances and logits."""
SHRINKAGE = 0.5
"""Share of the identity in the covariance within classes."""


def fit_prototypes(x: Tensor, targets: Tensor, sharpness: Sequence[float] = SHARPNESS) -> list[LinearModel]:
    """One model for each factor, from features (B, d) and 0-or-1 targets (B, classes) with one class each.

    A class without examples gets a logit far below all others.
    """
    standardise = Standardiser.of(x)
    z_Bd, member_BO = standardise(x), targets.double()
    count_O = member_BO.sum(dim=0)
    mean_Od = member_BO.T @ z_Bd / count_O.clamp_min(1)[:, None]
    within_Bd = z_Bd - member_BO @ mean_Od
    freedom = max(1, len(z_Bd) - int((count_O > 0).sum()))
    # The inverse of (1 - s) W'W / freedom + s I, by W's singular vectors: d may be far above B.
    _, size_r, axes_rd = torch.linalg.svd(within_Bd, full_matrices=False)
    spread_r = (1 - SHRINKAGE) * size_r.square() / freedom + SHRINKAGE
    along_Or = mean_Od @ axes_rd.T
    white_Od = (mean_Od - along_Or @ axes_rd) / SHRINKAGE + (along_Or / spread_r) @ axes_rd
    bias_O = -0.5 * (white_Od * mean_Od).sum(dim=1)
    weight_dO, bias_O = white_Od.T / x.shape[1], bias_O / x.shape[1]
    empty_O = torch.where(count_O > 0, 0.0, -30.0).double()
    return [LinearModel(standardise, factor * weight_dO, factor * bias_O + empty_O) for factor in sharpness]
