"""Arguments of the operators with tied decays and alternating scans, and what they stand for, written out apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from compare import Shape, inner_inputs, scan_inputs
from torch import Tensor

from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams

SEQUENCES = ("x_BLKE", "z_BLKE")


class Form(NamedTuple):
    """How the decays and the scans of a mixer are given."""

    tied: bool
    scan: str

    @property
    def directions(self) -> int:
        """R."""
        return 2 if self.scan == "both" else 1

    @property
    def alternating(self) -> bool:
        """The operators' argument."""
        return self.scan == "alternating"

    def __str__(self) -> str:
        return f"{'tied' if self.tied else 'free'}-{self.scan}"


FORMS = [Form(tied, scan) for tied in (True, False) for scan in ("both", "alternating", "forward")][:5]
"""Without free decays from left to right: the oldest form has tests of its own."""


def mixer_of(form: Form, shape: Shape) -> dict[str, Tensor]:
    """Arguments of ``bimamba_inner``."""
    found = inner_inputs(shape._replace(R=form.directions))
    return found | ({"A_log_RKEN": found["A_log_RKEN"][..., :1].clone()} if form.tied else {})


def scan_of(form: Form, shape: Shape, gated: bool = True) -> dict[str, Tensor | None]:
    """Arguments of ``selective_scan``."""
    found = scan_inputs(shape._replace(R=form.directions), gated)
    rates = found["A_RKEN"]
    assert rates is not None
    return found | ({"A_RKEN": rates[..., :1].clone()} if form.tied else {})


def written_out(form: Form, inputs: dict[str, Tensor]) -> Tensor:
    """``bimamba_inner`` in float64 from free decays and scans in all directions, block by block."""
    given = {name: x.double() for name, x in inputs.items()}
    if form.tied:
        states = (given["x_proj_RKPE"].shape[2] - given["dt_proj_RKEr"].shape[-1]) // 2
        steps = [given["A_log_RKEN"][..., 0] + torch.tensor(n, dtype=torch.float64).log() for n in range(1, states + 1)]
        given["A_log_RKEN"] = torch.stack(steps, dim=-1)
    found = []
    for k in range(given["x_BLKE"].shape[2]):
        back = form.alternating and k == 1
        of_block = {n: x[:, :, [k]] if n in SEQUENCES else x[:, [k]] for n, x in given.items()}
        x, z = (of_block.pop(n) for n in SEQUENCES)
        x, z = (t.flip(1) if back else t for t in (x, z))
        y = naive.bimamba_inner(x, z, MixerParams(**of_block))
        found.append(y.flip(1) if back else y)
    return torch.cat(found, dim=2)
