"""Tied decays and alternating scans in the portable GPU form, interpreted on the CPU: see test_decay_forms.py."""

from __future__ import annotations

import torch
import triton_small  # noqa: F401 - prepares Triton's interpreter
from compare import Shape, compare
from decay_inputs import FORMS, mixer_of
from torch import Tensor

from ssamba import ops
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams


def main() -> None:
    """Compare values and gradients of both public operators with the plain form in float64."""
    for form in FORMS:
        for L in (1, 7):
            inputs = mixer_of(form, Shape(B=1, L=L, R=form.directions, K=2, E=5, N=4))

            def packed(x_BLKE: Tensor, z_BLKE: Tensor, *params: Tensor, alternating: bool = form.alternating) -> Tensor:
                return ops.bimamba_inner_packed(torch.stack([x_BLKE, z_BLKE], 2), *params, alternating)

            def apart(*tensors: Tensor, alternating: bool = form.alternating) -> Tensor:
                return ops.bimamba_inner(*tensors, alternating)

            def plain(*tensors: Tensor, alternating: bool = form.alternating) -> Tensor:
                return naive.bimamba_inner(*tensors[:2], MixerParams(*tensors[2:]), alternating)

            with ops.use_backend("portable"):
                for run in (packed, apart):
                    compare(
                        lambda run=run, **x: run(*x.values()), lambda plain=plain, **x: plain(*x.values()),
                        {n: x.clone() for n, x in inputs.items()}, 1e-5, 1e-4,
                    )  # fmt: skip


if __name__ == "__main__":
    main()
