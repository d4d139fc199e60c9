"""The gradient of an input product's bias from the mixer, in Triton's interpreter; test_training_kernels.py runs it."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Callable
from typing import Any

import torch
import triton_arrays  # noqa: F401  (makes the interpreter take NumPy's arrays)
from compare import assert_close, assert_sum_of_tokens
from decay_inputs import Form
from mixer_inputs import mixer_inputs
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.bimamba import MambaPair
from ssamba.models.block_pair import ResidualState
from ssamba.models.config import Config
from ssamba.ops.linear_layer import gpu_limits
from ssamba.ops.mamba import gpu, naive
from ssamba.ops.mamba.params import MixerParams
from ssamba.ops.mamba.triton import partial_sums

torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is full of NaN


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def check_values() -> None:
    """Against float64, and the sum of the gradient of xz: one direction and two, four taps and others, one step."""
    for B, L, E, R, alternating, taps in (
        (2, 11, 5, 2, False, 4), (1, 18, 3, 1, True, 4), (2, 5, 5, 2, False, 2), (1, 1, 3, 1, True, 3),
    ):  # fmt: skip
        xz, *params = (t.float() for t in mixer_inputs(B, L, 2, E, 3, R))
        params[0] = params[0][..., :taps].clone()
        results = []
        for form, kind in ((gpu, torch.float32), (gpu, torch.float32), (naive, torch.float64)):
            mine = [t.to(kind).requires_grad_() for t in (xz, draw(2, 2, E), *params)]
            y = form.bimamba_inner_packed(mine[0], MixerParams(*mine[2:]), alternating, mine[1])  # type: ignore[attr-defined]
            results.append([y.detach(), *torch.autograd.grad((y * draw(*y.shape)).sum(), mine)])
        where = f"{(B, L, E, R, alternating, taps)}"
        for i, (found, again, expected) in enumerate(zip(*results, strict=True)):
            assert torch.equal(found, again), where
            assert_close(f"{where}: {i}", found, expected, 1e-4)
        assert_sum_of_tokens(where, results[0][2], results[0][1])


def gradients_of_bias_by(name: str, run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], int]:
    """What ``run`` returns with ``name`` as ``SSAMBA_BIAS``, and how often columns were added up by themselves."""
    calls, plain = [], partial_sums.column_sums

    def counted(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return plain(x)

    partial_sums.column_sums = counted
    os.environ["SSAMBA_BIAS"] = name
    try:
        return run(), len(calls)
    finally:
        del os.environ["SSAMBA_BIAS"]
        partial_sums.column_sums = plain


def check_bias_of_a_model() -> None:
    """A model's training step: with the bias's gradient from the mixer, no value and no other gradient is another."""
    gpu_limits.MIN_VALUES = 1
    tokens = draw(2, 3, 16)
    keep_KB = 2 * torch.rand(5, 2, generator=torch.Generator().manual_seed(3))
    cases = (Form(False, "both"), 2, (None,)), (Form(True, "alternating"), 1, (keep_KB,))
    for form, residual_scale, keeps in cases:
        config = Config(
            width=16, depth=4, frames=64, decay="tied" if form.tied else "free", scan=form.scan,
            residual_scale=residual_scale,
        )  # fmt: skip
        model = SSAMBA(config, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for pair in model.pairs:
                pair.norm_bias_Kd.copy_(draw(2, 16))
        named = [(name, p) for name, p in model.named_parameters() if name.startswith("pairs")]
        for keep in keeps:

            def run(model: SSAMBA = model, named: Any = named, keep: Tensor | None = keep) -> list[Tensor]:
                with ops.use_backend("gpu"):
                    y = model.encode_tokens(tokens, keep)
                return [y.detach(), *torch.autograd.grad((y * draw(*y.shape)).sum(), [p for _, p in named])]

            (mixer, none), (product, sums) = (gradients_of_bias_by(name, run) for name in ("mixer", "product"))
            # With stochastic depth the pairs after the first have a product for each block, whose sum is torch's.
            assert (none, sums) == (0, 2 if keep is None else 1)
            for name, found, before in zip(["output", *(n for n, _ in named)], mixer, product, strict=True):
                if name.endswith(("norm_bias_Kd", "in_proj_hKEd")):
                    assert_close(f"{form}, {keep is not None}, gradient of {name}", found, before, 1e-5)
                else:
                    assert torch.equal(found, before), name
    gpu_limits.MIN_VALUES = 1 << 22


def check_bias_in_every_way() -> None:
    """A pair under autocast, compiled, recomputed in the backward, and with parts of it frozen."""
    pair = MambaPair(Config(width=16, depth=2, decay="tied", scan="alternating"))
    pair.reset_parameters(torch.Generator().manual_seed(1))
    inputs = [draw(2, 3, 16), draw(2, 3, 16, seed=1)]
    names = [name for name, _ in pair.named_parameters()]

    def step(x: Tensor, stream: Tensor) -> Tensor:
        return pair(ResidualState(x, stream))[0].float()

    def gradients(form: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        wanted = [*leaves, *(p for p in pair.parameters() if p.requires_grad)]
        with ops.use_backend("gpu"):
            value = (form(*leaves) * draw(2, 3, 16, seed=2)).sum()
            return list(torch.autograd.grad(value, wanted))

    def autocast(*leaves: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return step(*leaves)

    def again(*leaves: Tensor) -> Tensor:
        return checkpoint(step, *leaves, use_reentrant=False)

    plain = gradients(step)
    for form in (again, torch.compile(step, backend="aot_eager", fullgraph=True)):
        assert all(torch.equal(a, b) for a, b in zip(gradients(form), plain, strict=True))
    for i, (found, expected) in enumerate(zip(gradients(autocast), plain, strict=True)):
        assert found.dtype == torch.float32
        assert_close(f"autocast: {i}", found, expected, 1e-2)
    like, bias = draw(2, 3, 16), torch.zeros(2, 2, 32)
    with ops.use_backend("gpu"):
        assert pair.gives_bias_gradient(like, bias.requires_grad_())
        assert not pair.gives_bias_gradient(like.double(), bias)
        assert not pair.gives_bias_gradient(like, bias.detach())
        with torch.no_grad():
            assert not pair.gives_bias_gradient(like, bias)
        with forward_ad.dual_level():
            assert not pair.gives_bias_gradient(like, bias)
    assert not pair.gives_bias_gradient(like, bias)  # a CPU's mixer, and the reference form
    with ops.use_backend("reference"):
        assert not pair.gives_bias_gradient(like, bias)
    for frozen in ("in_proj_hKEd", "norm_bias_Kd"):
        for name, parameter in pair.named_parameters():
            parameter.requires_grad = (name == frozen) == (frozen == "norm_bias_Kd")
        kept = [plain[0], plain[1], *(g for name, g in zip(names, plain[2:], strict=True)
                                      if pair.get_parameter(name).requires_grad)]  # fmt: skip
        for i, (found, expected) in enumerate(zip(gradients(step), kept, strict=True)):
            assert_close(f"{frozen}: {i}", found, expected, 1e-5)


if __name__ == "__main__":
    check_values()
    check_bias_of_a_model()
    check_bias_in_every_way()
