"""The distance of a sound's features to those of the training sounds, in units of what known sounds keep.

The features are those that the classifier's linear layer reads, standardised and brought to one length: their direction
alone counts. Each class has a mean, all share a covariance of the deviations from it: exact along the ``RANK``
directions in which they vary most, the same along all others. A row's distance is the Mahalanobis distance to the
nearest mean. It is divided by the distance below which 95 % of held-out clips stay, so that 1 is the border; where
digital silence would lie below that, the border is moved in front of it, unless a tenth of the held-out clips lies
beyond. What was weighed against it: docs/prediction.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.utils.errors import ConfigError

RANK = 32
SHARE_KEPT = 0.95
"""Of held-out clips, that are not taken for unlike."""
LEAST_KEPT = 0.9
"""Of held-out clips, so that digital silence is unlike."""
SILENCE_MARGIN = 0.98
LEAST_HELD_OUT = 10
"""With fewer held-out clips no border can be told."""
_STEPS = 8
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Rejection:
    """What the distance needs; d values a row, K class means, r directions.

    Attributes:
        centre, scale: (d,) float32; features become (x - centre) * scale, then of length sqrt(d).
        means: (K, d) float16, of the classes in that form.
        directions: (r, d) float16, orthonormal.
        variances: (r,) float32, along the directions.
        rest: () float32, variance along every other direction.
        border: () float32, distance of which 1 is made.
    """

    centre: Tensor
    scale: Tensor
    means: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor
    border: Tensor

    @torch.no_grad()
    def distances(self, values: Tensor) -> Tensor:
        """Rows (N, d) of what the linear layer reads -> (N,) float32 on the CPU, 1 at the border."""
        z = _of_one_length((values.detach().float().cpu() - self.centre) * self.scale)
        means, directions = self.means.float(), self.directions.float()
        along_Nr, along_Kr = z @ directions.T, means @ directions.T
        whole_NK = z.square().sum(dim=1, keepdim=True) - 2 * z @ means.T + means.square().sum(dim=1)
        inside_NKr = (along_Nr[:, None] - along_Kr[None]).square()
        outside_NK = (whole_NK - inside_NKr.sum(dim=2)).clamp_min(0)
        squared_NK = (inside_NKr / self.variances).sum(dim=2) + outside_NK / self.rest
        return squared_NK.amin(dim=1).sqrt() / self.border

    def with_border(self, held_out: Tensor, silence: Tensor) -> Rejection:
        """The same with its border at the 95th percentile of held-out clips' distances (N,).

        Of N clips it is the ceil(0.95 (N + 1))-th smallest, so that of new ones of the same kind 95 % are expected
        below; the largest where N is less than 20. ``silence`` are distances of silent recordings, in front of which it
        is put where 90 % of the clips stay below. All distances are in units of the border that it has now.
        """
        place = min(len(held_out), math.ceil(SHARE_KEPT * (len(held_out) + 1)))
        border = held_out.float().sort().values[place - 1]
        before_silence = SILENCE_MARGIN * silence.float().min()
        if (held_out < before_silence).double().mean() >= LEAST_KEPT:
            border = torch.minimum(border, before_silence)
        return replace(self, border=(border * self.border).clamp_min(1e-12))

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check(self, values: int, source: str) -> None:
        """Raise ``ConfigError`` naming ``source`` where shapes or numbers are not those of a layer of ``values``."""
        rank, classes = len(self.variances) if self.variances.dim() else -1, len(self.means) if self.means.dim() else -1
        wanted: dict[str, tuple[int, ...]] = {
            "centre": (values,),
            "scale": (values,),
            "means": (classes, values),
            "directions": (rank, values),
            "variances": (rank,),
            "rest": (),
            "border": (),
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != wanted[name] or not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ConfigError(f"{source}: {name} does not fit the model's classifier of {values} values")
        if classes < 1 or min(float(self.rest), float(self.border), *self.variances.tolist()) <= 0:
            raise ConfigError(f"{source}: holds no class, or a variance that is not above 0")


@torch.no_grad()
def fit_rejection(values: Tensor, targets: Tensor, clips: int | None = None) -> Rejection:
    """Means and covariance of training rows (N, d) with ``targets`` (N, K), 1 where the class holds; the border is 1.

    ``clips`` is how many clips the rows are windows of (None: one each), which bounds the directions. Where a row has
    several classes, all rows share one mean: a mixture is near to none of its parts.
    """
    x, truth = values.detach().double().cpu(), targets.double().cpu()
    deviation, centre = torch.std_mean(x, dim=0, correction=0)
    scale = torch.where(deviation <= 1e-8 * centre.abs().clamp_min(1e-4), 0.0, 1 / deviation)
    z = _of_one_length((x - centre) * scale)
    if not (truth.sum(dim=1) == 1).all():
        truth = torch.ones(len(z), 1, dtype=torch.float64, device="cpu")
    truth = truth[:, truth.sum(dim=0) > 0]
    means = (truth.T @ z) / truth.sum(dim=0)[:, None]
    rest_of = z - truth @ means
    rank = max(1, min(RANK, ((clips or len(z)) - len(means)) // 2, z.shape[1] // 2))
    directions, variances = _main_directions(rest_of, rank)
    whole = float(rest_of.square().sum()) / len(z)
    rest = max(_LEAST_VARIANCE, (whole - float(variances.sum())) / max(1, z.shape[1] - rank))
    return Rejection(
        centre.float(),
        scale.float(),
        means.half(),
        directions.half(),
        variances.clamp_min(rest).float(),
        torch.tensor(rest, dtype=torch.float32, device="cpu"),
        torch.tensor(1.0, dtype=torch.float32, device="cpu"),
    )


def _of_one_length(z: Tensor) -> Tensor:
    return F.normalize(z, dim=1) * math.sqrt(z.shape[1])


def _main_directions(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The directions (rank, d) in which rows (N, d) vary most, and their variances (rank,): subspace iteration."""
    generator = torch.Generator().manual_seed(0)
    extra = min(rows.shape[1], rank + 8)
    basis = torch.randn(rows.shape[1], extra, generator=generator, dtype=torch.float64, device="cpu")
    for _ in range(_STEPS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
    along = rows @ basis
    variances, turn = torch.linalg.eigh(along.T @ along / len(rows))
    order = variances.argsort(descending=True)[:rank]
    return (basis @ turn[:, order]).T.contiguous(), variances[order]
