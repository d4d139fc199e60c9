"""How far a sound's features are from those of the training sounds, in units of what known sounds keep.

The features are what the classifier's linear layer reads, standardised. The distance of a row is 1 minus its cosine
with the nearest class mean. It is divided by the distance below which 95 % of held-out clips stay, so that 1 is the
border; where digital silence would lie below that, the border is moved in front of it, unless a tenth of the held-out
clips lies beyond. A second score is the probability, by a regression on the same features, that a row is background:
made-up noise or what the user gave as such. The larger of the two counts. What was weighed against it:
docs/prediction.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.utils.errors import ConfigError

SHARE_KEPT = 0.95
"""Of held-out clips, that are not taken for unlike."""
MIN_KEPT = 0.9
"""Of held-out clips, so that digital silence is unlike."""
SILENCE_MARGIN = 0.98
MIN_HELD_OUT = 10
"""With fewer held-out clips there is no border."""
DISTANCE_TENSORS = ("centre", "scale", "means", "border")
BACKGROUND_PREFIX = "background_"


@dataclass(frozen=True)
class Background:
    """A regression that tells background from the known sounds; d values a row.

    Attributes:
        weight, bias: (d,), () float32; a row x is background with the probability sigmoid(x @ weight + bias).
        limit: () float32, from 0.5 to 1: the probability of which 1 is made.
    """

    weight: Tensor
    bias: Tensor
    limit: Tensor

    @torch.no_grad()
    def probabilities(self, values: Tensor) -> Tensor:
        """Rows (N, d) -> (N,) float32 on the CPU."""
        return (values.detach().float().cpu() @ self.weight + self.bias).sigmoid()


@dataclass(frozen=True)
class Rejection:
    """What the distance needs; d values a row, K classes.

    Attributes:
        centre, scale: (d,) float32; features become (x - centre) * scale.
        means: (K, d) float16, of the classes in that form.
        border: () float32, the distance of which 1 is made.
        background: the second score, or None.
    """

    centre: Tensor
    scale: Tensor
    means: Tensor
    border: Tensor
    background: Background | None = None

    def unlike(self, values: Tensor) -> Tensor:
        """Rows (N, d) of what the linear layer reads -> (N,) float32 on the CPU, above 1 for what has no class."""
        distances = self.distances(values)
        if self.background is None:
            return distances
        return torch.maximum(distances, self.background.probabilities(values) / self.background.limit)

    @torch.no_grad()
    def distances(self, values: Tensor) -> Tensor:
        """Rows (N, d) -> (N,) float32 on the CPU: distances from the class means alone, 1 at the border."""
        z = F.normalize((values.detach().float().cpu() - self.centre) * self.scale, dim=1)
        return (1 - (z @ F.normalize(self.means.float(), dim=1).T).amax(dim=1)) / self.border

    def with_border(self, held_out: Tensor, silence: Tensor, place: int | None = None) -> Rejection:
        """The same with its border at the 95th percentile of held-out clips' distances (N,).

        Of N clips it is the ``place``-th smallest, None: as :func:`border_place`. ``silence`` are distances of silent
        recordings, in front of which it is put where 90 % of the clips stay below. All distances are in units of the
        border that it has now.
        """
        border = held_out.float().sort().values[(border_place(len(held_out)) if place is None else place) - 1]
        before_silence = SILENCE_MARGIN * silence.float().min()
        if (held_out < before_silence).double().mean() >= MIN_KEPT:
            border = torch.minimum(border, before_silence)
        return replace(self, border=(border * self.border).clamp_min(1e-6))

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        found = {name: getattr(self, name) for name in DISTANCE_TENSORS}
        if self.background is not None:
            found |= {f"{BACKGROUND_PREFIX}{f.name}": getattr(self.background, f.name) for f in fields(Background)}
        return found

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Rejection | None:
        """The reverse of ``tensors``; None where names are missing or unknown."""
        more = {name: tensor for name, tensor in tensors.items() if name not in DISTANCE_TENSORS}
        expected = {f"{BACKGROUND_PREFIX}{f.name}" for f in fields(Background)}
        if not set(DISTANCE_TENSORS) <= set(tensors) or (more and set(more) != expected):
            return None
        background = Background(**{k.removeprefix(BACKGROUND_PREFIX): v for k, v in more.items()}) if more else None
        return cls(**{name: tensors[name] for name in DISTANCE_TENSORS}, background=background)

    def check(self, values: int, source: str) -> None:
        """Raise ``ConfigError`` naming ``source`` where shapes or numbers are not those of a layer of ``values``."""
        classes = len(self.means) if self.means.dim() else 0
        wanted = {"centre": (values,), "scale": (values,), "means": (classes, values), "border": ()}
        wanted |= {
            f"{BACKGROUND_PREFIX}weight": (values,),
            f"{BACKGROUND_PREFIX}bias": (),
            f"{BACKGROUND_PREFIX}limit": (),
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != wanted[name] or not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ConfigError(f"{source}: {name} does not fit the model's classifier of {values} values")
        if classes < 1 or float(self.border) <= 0:
            raise ConfigError(f"{source}: holds no class, or a border that is not above 0")
        if self.background is not None and not 0 < float(self.background.limit) <= 1:
            raise ConfigError(f"{source}: {BACKGROUND_PREFIX}limit is no probability above 0")


def border_place(count: int) -> int:
    """Of N held-out clips the ceil(0.95 (N + 1))-th, so that of new ones 95 % are expected below; N below 20."""
    return min(count, math.ceil(SHARE_KEPT * (count + 1)))


@torch.no_grad()
def fit_rejection(values: Tensor, targets: Tensor) -> Rejection:
    """The means of training rows (N, d) with ``targets`` (N, K), 1 where the class holds; the border is 1.

    A row of several classes counts for each of them.
    """
    x, truth = values.detach().double().cpu(), targets.double().cpu()
    deviation, centre = torch.std_mean(x, dim=0, correction=0)
    scale = torch.where(deviation <= 1e-8 * centre.abs().clamp_min(1e-4), 0.0, 1 / deviation)
    truth = truth[:, truth.sum(dim=0) > 0]
    means = (truth.T @ ((x - centre) * scale)) / truth.sum(dim=0)[:, None]
    border = torch.tensor(1.0, dtype=torch.float32, device="cpu")
    return Rejection(centre.float(), scale.float(), means.half(), border)
