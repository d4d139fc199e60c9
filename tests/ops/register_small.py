"""The first calls of the GPU's operators in a process, in Triton's interpreter; test_register.py runs it.

``fresh``: what they import. ``compiled``: the same calls once torch's compiler is there, and what it sees of them.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton_arrays  # noqa: F401  (makes the interpreter take NumPy's arrays)
from mixer_inputs import mixer_inputs, pair_weights
from torch import Tensor

from ssamba.ops.layer_norm import gpu as gpu_norm
from ssamba.ops.mamba import gpu, gpu_inference, gpu_input
from ssamba.ops.mamba.params import MixerParams

COMPILER = ("sympy", "torch._dynamo", "torch._inductor", "torch.distributed.fsdp")
"""What ``torch.library.custom_op`` imports at the first call of its own kernel."""


def results() -> list[Tensor]:
    """Every operator once, those with a gradient with their gradients."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    xz, *params = (x.float().requires_grad_() for x in mixer_inputs(1, 5, 2, 6, 2, 2))
    apart, packed = (
        gpu.bimamba_inner(*xz.unbind(2), MixerParams(*params)),
        gpu.bimamba_inner_packed(xz, MixerParams(*params)),
    )
    found = [apart, packed, *torch.autograd.grad((apart * packed).sum(), [xz, *params])]
    x, residual, weight, bias = (draw(*shape).requires_grad_() for shape in ((2, 3, 8), (2, 3, 8), (8,), (8,)))
    out, stream = gpu_norm.add_layer_norm(x, residual, weight, bias)
    found += [out, stream, *torch.autograd.grad((out * stream).sum(), [x, residual, weight, bias])]
    to_fold = [draw(*shape).requires_grad_() for shape in ((2, 2, 4, 8), (2, 8), (2, 8))]
    folded = gpu_input._fold(*to_fold, torch.float32)
    found += [*folded, gpu_input.column_sums(draw(9, 5))]
    found += torch.autograd.grad(folded[0].sum() + folded[1].sum(), to_fold)
    with torch.no_grad():
        found += [gpu_norm.layer_norm(x, 1e-5)]
        found += gpu_norm.add_layer_norm(x.clone(), residual.clone(), inplace=True)
        product, scale, shift, *others = pair_weights(24, 2, 2, torch.float32)
        found.append(gpu_inference.bimamba_inner_with_work(xz, torch.zeros_like(xz), MixerParams(*params)))
        found += gpu_inference.prepare_weights([product], [scale], [shift], others, torch.float16)
        tensors = [draw(*shape) for shape in ((70, 40), (70, 24), (40, 24), (40,), (24, 40), (70, 24))]
        gpu_inference.gated_output_(*tensors, 1e-5, 2.0)
        found += [tensors[1], tensors[5]]
    return [x.detach() for x in found]


def check_versions() -> None:
    """What an operator writes to counts as changed, so that autograd refuses to use it afterwards."""
    x, residual = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    before = x._version, residual._version
    gpu_norm.add_layer_norm_(x, residual, 1e-5, 1.0)
    assert (x._version, residual._version) == (before[0] + 1, before[1] + 1)


def main(form: str) -> None:
    first = results()
    check_versions()
    assert not [name for name in COMPILER if name in sys.modules]
    if form == "fresh":
        return
    import torch._dynamo

    x = torch.randn(2, 3, 8)
    traced: list[object] = []

    def look(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        traced.extend(node.target for node in graph.graph.nodes)
        return graph

    built = torch.compile(lambda x: gpu_norm.layer_norm(x + 0, 1e-5) * 2, backend=look, fullgraph=True)(x)
    assert torch.equal(built, gpu_norm.layer_norm(x, 1e-5) * 2)
    assert torch.ops.ssamba.gpu_layer_norm.default in traced
    for before, after in zip(first, results(), strict=True):
        assert torch.equal(before, after)

    # A frame that the compiler gives up on runs as it is, with the compiler looking at every frame below it: the
    # kernels are not for it to trace.
    seen: list[str] = []

    def note(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    def broken(x: Tensor) -> Tensor:
        for _ in range(2):
            torch._dynamo.graph_break()
            x = gpu_norm.layer_norm(x, 1e-5)
        return x

    assert torch.equal(torch.compile(broken, backend=note)(x), broken(x))
    assert set(seen) <= {"ssamba.gpu_layer_norm.default"}, seen


if __name__ == "__main__":
    main(sys.argv[1])
