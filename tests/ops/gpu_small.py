"""Every GPU kernel once at a small size, compared with the reference: to be run under compute-sanitizer.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=src compute-sanitizer --tool memcheck python tests/ops/gpu_small.py
PYTHONPATH=src compute-sanitizer --tool racecheck python tests/ops/gpu_small.py  # synccheck, initcheck likewise
"""

from __future__ import annotations

import os
import sys

import torch
import torch.nn.functional as F
from mixer_inputs import mixer_inputs, pair_weights
from torch import Tensor

from ssamba import ops
from ssamba.ops.layer_norm import gpu as norm_gpu
from ssamba.ops.layer_norm import naive as naive_norm
from ssamba.ops.mamba import gpu, gpu_inference, gpu_input, naive
from ssamba.ops.mamba.params import MixerParams


def inputs(batch: int, length: int, width: int, rank: int, directions: int, dtype: torch.dtype) -> list[Tensor]:
    """``mixer_inputs`` of a pair on the GPU."""
    return [t.cuda() for t in mixer_inputs(batch, length, 2, width, rank, directions, dtype)]


def compare(name: str, found: Tensor, expected: Tensor, bound: float) -> None:
    error = float((found.double() - expected).norm() / expected.norm())
    print(f"{name}: {error:.1e}", flush=True)
    if not error < bound:
        sys.exit(f"{name}: off by {error:.1e}")


def mixer(
    length: int, width: int, rank: int, directions: int, dtype: torch.dtype, bound: float, fast: bool = False
) -> None:
    """Forward and backward; ``fast``: with tied decays and alternating directions."""
    tensors = inputs(2, length, width, rank, directions, dtype)
    if fast:
        tensors[6] = tensors[6][..., :1].contiguous()
    tensors = [t.requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    y = gpu.bimamba_inner_packed(tensors[0], MixerParams(*tensors[1:]), fast)
    expected = naive.bimamba_inner(exact[0][:, :, 0], exact[0][:, :, 1], MixerParams(*exact[1:]), fast)
    found = [y, *torch.autograd.grad(y.float().square().sum(), tensors)]
    truth = [expected, *torch.autograd.grad(expected.square().sum(), exact)]
    for i, (one, other) in enumerate(zip(found, truth, strict=True)):
        compare(
            f"{length} x {width}, {directions} directions, {dtype}, result {i}", one.detach(), other.detach(), bound
        )


@torch.no_grad()
def late_gate(cut: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """The scan without its gate in a cut, then gate and output: on Hopper, in one pass of Triton, by pieces."""
    os.environ["SSAMBA_CUT"] = cut
    for width, rank in ((128, 8), (96, 12), (80, 8)):
        x, *parameters = inputs(2, 69, width, rank, 2, dtype)
        x = x[:, :, 0].contiguous()
        params = MixerParams(*parameters)
        y = gpu_inference.bimamba_ungated(x, torch.empty_like(x), params)
        assert y is not None
        ungated = naive.bimamba_ungated(x.double(), torch.empty(0), params.to(torch.float64))
        compare(f"without a gate, {width}, {cut}", y, ungated, 1e-2)
        y, d = y.flatten(2).flatten(0, 1), width // 2
        stream = torch.randn(len(y), d, device="cuda").to(dtype)
        weights = [torch.randn(*s, device="cuda").to(dtype) / 8 for s in ((2 * width, d), (2 * width,), (d, 2 * width))]
        for scale in (None, 2.0):
            mine, exact = (y.clone(), stream.clone()), (y.double(), stream.double())
            out, expected = torch.empty_like(stream), stream.double()
            naive.gated_output_(*exact, *(w.double() for w in weights), expected, 1e-5, scale)
            gpu_inference.gated_output_(*mine, *weights, out, 1e-5, scale)
            compare(f"gate and output, {d}, {scale}", out, expected, 1e-2)
            compare(f"the stream after it, {d}, {scale}", mine[1], exact[1], 1e-2)
        x, given = torch.empty_like(y), stream.clone()
        if ops.gated_output_to_input_(y, given, *weights, *weights[:2], x, 1e-5, 2.0):
            product = F.linear(expected, weights[0].double(), weights[1].double())
            compare(f"the next input, {d}", x, product, 1e-2)
            compare(f"the stream after that, {d}", given, exact[1], 1e-2)
    del os.environ["SSAMBA_CUT"]


@torch.no_grad()
def ready_weights() -> None:
    """Of a pair in bfloat16, and of one whose small parameters need no conversion."""
    for source in (torch.bfloat16, torch.float32):
        tensors = [t.cuda() for t in pair_weights(24, 2, 2, source)]
        *exact, params = naive.ready_weights(*tensors[:4], MixerParams(*tensors[4:]), torch.float64)
        pair = *tensors[:4], MixerParams(*tensors[4:])
        *found, mine = gpu_inference.ready_weights_of_pairs(tensors[0], [pair], torch.bfloat16)[0]
        for i, (one, other) in enumerate(zip([*found, *mine], [*exact, *params], strict=True)):
            compare(f"weight {i} of {source}", one, other, 4e-3)


def training() -> None:
    """The kernels of a training pass that are no part of the mixer's own inside."""
    mine = [torch.randn(s, device="cuda", requires_grad=True) for s in ((2, 2, 37, 20), (2, 20), (2, 20))]
    exact = [t.detach().double().requires_grad_() for t in mine]
    made, truth = gpu_input._fold(*mine, torch.float32), naive.fold_norm(*exact)
    found = torch.autograd.grad(made[0].square().sum() + made[1].sum(), mine)
    expected = torch.autograd.grad(truth[0].square().sum() + truth[1].sum(), exact)
    for i, (one, other) in enumerate(zip((*made, *found), (*truth, *expected), strict=True)):
        compare(f"folded norm, result {i}", one.detach(), other.detach(), 1e-4)
    for sizes in ((1000, 130), (7, 3)):
        x = torch.randn(sizes, device="cuda").bfloat16()
        compare(f"columns of {sizes}", gpu_input.column_sums(x), x.double().sum(0), 5e-3)


def norm() -> None:
    x, residual = (torch.randn(3, 5, 20, device="cuda", requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(20, device="cuda", requires_grad=True) for _ in range(2))
    out, stream = norm_gpu.add_layer_norm(x, residual, weight, bias, residual_scale=2.0)
    expected, _ = naive_norm.add_layer_norm(
        x.double(), residual.double(), weight.double(), bias.double(), residual_scale=2
    )
    compare("norm", out.detach(), expected.detach(), 1e-5)
    (out.square().sum() + stream.sum()).backward()


@torch.no_grad()
def norm_in_place() -> None:
    """Rows held in registers or not, at aligned addresses and at others, some of them the last in their memory."""
    for rows, width, dtype in ((5, 192, torch.bfloat16), (3, 20, torch.float16), (2, 1031, torch.float32)):
        for skip in (0, 1):
            x, stream = (torch.randn(rows * width + skip, device="cuda").to(dtype)[skip:] for _ in range(2))
            x, stream = x.view(rows, width), stream.view(rows, width)
            sums = 2 * stream.double() + x.double()
            norm_gpu.add_layer_norm_(x, stream, 1e-5, 2.0)
            compare(f"norm in place of {(rows, width, skip)}", x, F.layer_norm(sums, (width,)), 4e-3)
            compare("its stream", stream, sums, 4e-3)


def main() -> None:
    for scan in ("triton", "nvrtc"):
        os.environ["SSAMBA_GPU_SCAN"] = scan
        norm()
        norm_in_place()
        ready_weights()
    training()
    for cut in ("split=1,warps=4,stages=3,chunks=1,blocks=2", "split=2,warps=2,stages=3,chunks=1,blocks=2",
                "split=1,warps=4,stages=4,chunks=3,blocks=2"):  # fmt: skip
        late_gate(cut)
        late_gate(cut, torch.float16)
    mixer(37, 48, 12, 2, torch.bfloat16, 2e-2)
    os.environ["SSAMBA_LPC"] = "1"  # the backward of many channels
    mixer(37, 48, 12, 1, torch.bfloat16, 2e-2, fast=True)
    mixer(37, 128, 12, 1, torch.bfloat16, 2e-2, fast=True)
    del os.environ["SSAMBA_LPC"]
    mixer(37, 48, 12, 1, torch.bfloat16, 2e-2, fast=True)
    mixer(21, 33, 5, 1, torch.float32, 1e-4)
    mixer(18, 40, 4, 2, torch.float16, 4e-3)
    mixer(37, 48, 12, 1, torch.float16, 4e-3, fast=True)
    os.environ["SSAMBA_CUT"] = "chunks=3"  # a lane for each channel, in chunks of time
    mixer(131, 33, 4, 2, torch.float32, 1e-4)


if __name__ == "__main__":
    main()
